r"""CIFAR-100 as 20 tasks, its superclasses of 5 classes each, packed into one network that starts from random weights.

Prints each task's top-1 and the average. All the state there is lies in the artifact and beside it: stopped, the same
command goes on where it was. DATA holds a folder for each task; if there is none, torchvision downloads CIFAR-100 and
it is made.

    python examples/cifar20.py cifar20 packed.st --prune .85 --opt adamw --lr 1e-3 --retrain-lr 1e-3 \
        --weight-decay .05 --sched cosine --epochs 20 --retrain-epochs 10 --prune-steps 4 --crop-scale .6 \
        --batch-size 64

A VGG (--arch vgg16_bn) needs lower rates: 3e-4.
"""

import json
import pickle
import shutil
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torchvision.datasets import CIFAR100
from typer import Argument, Option

from packnet_cli.artifact import format, verify
from packnet_cli.artifact.plan import equal_share, fraction_of
from packnet_cli.cli.failing import in_one_line
from packnet_cli.cli.settings import recipe_from, with_settings
from packnet_cli.engine import pack
from packnet_cli.errors import DataError, InterruptedRun, few
from packnet_cli.machine import Machine
from packnet_cli.recipe import SETTINGS


@with_settings(*SETTINGS)
def main(
    data: Annotated[Path, Argument(file_okay=False, help="A folder with a folder for each task.")],
    packed: Annotated[Path, Argument(help="The packed model; made if it is not there.")],
    settings: dict[str, Any],
    arch: str = "resnet18",
    img_size: Annotated[int, Option(help="Pixels that images are enlarged to; 64 is better than 32.")] = 32,
    prune: Annotated[str, Option(help="Fraction that each task releases, or 'equal' shares.")] = "equal",
    tasks: Annotated[int | None, Option(min=1, help="Stop after so many.")] = None,
    amp: Annotated[bool | None, Option(help="In bfloat16; default: where that is fast.")] = None,
    threads: Annotated[int | None, Option(min=1, help="Of torch, on the CPU.")] = None,
) -> None:
    """Pack what is not packed yet, then print a line for each task and the average."""
    if threads:
        torch.set_num_threads(threads)
    recipe = recipe_from(settings)
    constant = None if prune == "equal" else fraction_of(prune, "equal")
    if not data.exists():
        unfinished = data.with_name(data.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unpack(unfinished, download=data.with_name(data.name + ".download"))
        unfinished.rename(data)
    folders = sorted(folder for folder in data.iterdir() if folder.is_dir())
    if not folders:
        raise DataError(f"{data} holds no folder for a task; name one that does, or none, to have CIFAR-100 downloaded")
    if not packed.exists():
        pack.init(packed, arch, pretrained=False, data_config={"img_size": img_size}, recipe=recipe)
    done = len(format.load_header(packed).tasks)
    for number, folder in enumerate(folders[done:tasks], start=done + 1):
        left = len(folders) - number
        fraction = 0.0 if not left else equal_share(left) if constant is None else constant
        artifact = pack.add_task(packed, folder, prune=fraction, recipe=recipe, machine=Machine(amp=amp), resume=True)
        task = artifact.header.tasks[-1]
        print(json.dumps({"task": number, "name": task.name, "top1": task.top1, "accuracy": task.accuracy}), flush=True)
    artifact = format.load(packed)
    assert not verify.altered_tasks(artifact)  # every task is, to the bit, what it was when it was added
    if unmeasured := [task.name for task in artifact.header.tasks if task.top1 is None]:
        raise DataError(f"nothing was held out to measure {few(unmeasured)} on; give each class at least two images")
    for task in artifact.header.tasks:
        print(f"{task.index:3}  {task.top1:6.2f} %  {task.name}")
    print(f"mean {statistics.mean(task.top1 for task in artifact.header.tasks):6.2f} %")


def unpack(target: Path, download: Path) -> None:
    """Lay CIFAR-100 out as <superclass>/train|val/<class>/<number>.png."""
    for part, train in (("train", True), ("val", False)):
        try:
            images = CIFAR100(str(download), train=train, download=True)
        except (OSError, RuntimeError) as error:  # no network, no room, or another checksum
            raise DataError(
                f"cannot download CIFAR-100 to {download}: {error}; try again, or name your own DATA"
            ) from None
        raw = Path(images.root, images.base_folder, "train" if train else "test")
        with raw.open("rb") as file:  # torchvision has compared its checksum; of the superclasses it makes no use
            coarse = pickle.load(file, encoding="latin1")["coarse_labels"]
        with raw.with_name("meta").open("rb") as file:
            names = pickle.load(file, encoding="latin1")["coarse_label_names"]
        for number, ((image, label), superclass) in enumerate(zip(images, coarse, strict=True)):
            folder = target / names[superclass] / part / images.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:05}.png")


if __name__ == "__main__":
    with in_one_line(lambda: "cifar20.py"):
        try:
            typer.run(main)
        except InterruptedRun:
            raise InterruptedRun("interrupted; the same command goes on from here") from None
