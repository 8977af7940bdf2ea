"""What packing costs: each thing beside the plain one, interleaved in one run; medians, spreads and ratios.

    python examples/benchmark.py --arch resnet50 --batch-size 32 --img-size 224
    python examples/benchmark.py --arch vgg16 --parts step,prune,file --json vgg16.json

Prints a table, and with --json writes all figures. Weights and images are random: only time is measured here.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from PIL import Image
from safetensors.numpy import load_file, save_file
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from typer import Option

from packnet_cli.artifact import atomic, edit, format, masks
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.cli.failing import in_one_line
from packnet_cli.engine import network, pack
from packnet_cli.engine.checks import check_optimizer
from packnet_cli.engine.compute import forward_of, in_precision
from packnet_cli.engine.device import choose_device
from packnet_cli.engine.measure import evaluate
from packnet_cli.engine.modes import training_on
from packnet_cli.engine.training.freezer import Freezer
from packnet_cli.engine.training.optimize import MOMENTUM, fused
from packnet_cli.engine.training.parts import wants_copies
from packnet_cli.engine.training.release import smallest
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import InterruptedRun
from packnet_cli.machine import Machine
from packnet_cli.recipe import Recipe

QUIET = {"stdout": subprocess.DEVNULL, "check": True}

Timing = dict[str, list[float]]  # what was timed -> seconds, one for each repeat


def interleaved(ways: dict[str, Callable[[], Any]], repeats: int) -> Timing:
    """Time the ways in turn, so that whatever else the machine does meets all of them; after a turn to warm up."""
    seconds: Timing = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            gc.collect()  # CUDA graphs of another way, which a loader's processes must not inherit
            synchronize()
            began = time.perf_counter()
            run()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def packed_artifact(arch: str, img_size: int, folder: Path, tasks: int = 2) -> tuple[Path, Artifact]:
    """An artifact with random weights and so many tasks of equal shares, none of them trained."""
    path = folder / f"{tasks}.st"
    artifact = pack.init(path, arch, pretrained=False, data_config={"img_size": img_size}, force=True)
    rng = np.random.default_rng(0)
    for index in range(1, tasks + 1):
        owner = {}
        for layer, mask in artifact.mask.items():
            drawn = rng.random(mask.shape, np.float32) < 1 / (tasks + 1)
            owner[layer] = np.where((mask == masks.FREE) & drawn, np.uint8(index), mask)
        model = network.build(artifact.header, 10)
        values = {layer: masks.keep_visible(artifact.shared[layer], mask, index) for layer, mask in owner.items()}
        entry = Task(index, f"task{index}", tuple(f"class{number}" for number in range(10)), prune=0.5)
        artifact = edit.with_task(artifact, entry, network.read(model) | values, owner)
    format.save(artifact, path)
    return path, artifact


# --- what is timed --------------------------------------------------------------------------------------------------


def stepper(bench: "Bench", artifact: Artifact, way: str) -> Callable[[], None]:
    """Training steps of the network: plain, packed, or as textbooks do it, all by the same optimizer."""
    images = torch.randn(bench.batch_size, 3, bench.img_size, bench.img_size, device=bench.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (bench.batch_size,), device=bench.device)
    trainable = {layer: mask == masks.FREE for layer, mask in artifact.mask.items()}
    model = network.place(network.build(artifact.header, 10), bench.device).train()
    copied = wants_copies(bench.device, amp=bool(bench.amp), compiled=bench.compile)
    freezer, held = Freezer(model, bench.opt, copied=copied and way == "packed"), {}
    if way == "packed":
        freezer.hold(trainable)
    if way == "textbook":
        parameters = dict(model.named_parameters())
        held = {parameters[layer]: torch.from_numpy(~free).to(bench.device) for layer, free in trainable.items()}
    optimizer = create_optimizer_v2(
        list(freezer.trained().values()), bench.opt, lr=1e-3, momentum=MOMENTUM, **fused(bench.opt, bench.device)
    )
    forward = forward_of(
        freezer.network, wanted=bench.compile, device=bench.device, shape=tuple(images.shape), amp=bool(bench.amp)
    )()

    def steps() -> None:
        for _ in range(bench.steps):
            with in_precision(bench.device, bool(bench.amp)):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            for parameter, frozen in held.items():
                parameter.grad[frozen] = 0
            freezer.take_gradients()
            optimizer.step()
            freezer.write_back()
            with torch.no_grad():
                for parameter, frozen in held.items():
                    parameter[frozen] = 0
            optimizer.zero_grad()

    return steps


def time_step(bench: "Bench") -> Timing:
    """A training step: plain, packed, and as textbooks do it, by an index of booleans for each layer and step."""
    _, artifact = packed_artifact(bench.arch, bench.img_size, bench.folder)
    with training_on(bench.machine):
        ways = {way: stepper(bench, artifact, way) for way in ("plain", "packed", "textbook")}
        return interleaved(ways, bench.repeats)


def peak_memory(bench: "Bench", path: Path, way: str) -> float:
    """The most MB that a process holds during a step; on a GPU, what it holds there."""
    steps = stepper(bench, format.load(path), way)
    with training_on(bench.machine):
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            steps()
            return torch.cuda.max_memory_allocated() / 1e6
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
        steps()
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(peak[1]) * 1024 / 1e6


def measure_memory(bench: "Bench") -> Timing:
    """The peak of a step, plain and packed, each in a process of its own; both hold the artifact, too."""
    path, _ = packed_artifact(bench.arch, bench.img_size, bench.folder)
    found = {}
    for way in ("plain", "packed"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[way] = [process.submit(peak_memory, bench, path, way).result()]
    return found


def image_folder(bench: "Bench") -> Path:
    """A folder of random JPEG images in five classes."""
    data = bench.folder / "images"
    rng = np.random.default_rng(0)
    for number in range(bench.images):
        for part in ("train", "val")[: 1 + (number % 25 < 5)]:
            file = data / part / f"class{number % 5}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(small).resize((bench.file_size, bench.file_size)).save(file, quality=90)
    return data


def recipe_of(bench: "Bench") -> Recipe:
    """As many epochs as are asked for, and half as many after pruning."""
    return Recipe(opt=bench.opt, epochs=bench.epochs, retrain_epochs=bench.epochs // 2, batch_size=bench.batch_size)


def time_whole(bench: "Bench") -> Timing:
    """All of add-task against a plain fine-tuning of as many epochs, from files of random JPEG images."""
    data = image_folder(bench)
    recipe = recipe_of(bench)

    def packed() -> None:
        path = bench.folder / "whole.st"
        format.save(start, path)
        pack.add_task(path, data, prune=0.5, recipe=recipe, machine=bench.machine)

    def plain() -> None:
        model = timm.create_model(bench.arch, num_classes=5, **start.header.model_kwargs).to(bench.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=MOMENTUM)
        transform = create_transform(**start.header.data_config, is_training=True, color_jitter=0)
        workers = min(8, os.cpu_count() or 1)
        lone = bench.images % bench.batch_size == 1  # which add-task leaves out, too: batch norm cannot take it
        loader = DataLoader(
            ImageFolder(str(data / "train"), transform), bench.batch_size, True, num_workers=workers, drop_last=lone
        )
        for _ in range(bench.epochs + bench.epochs // 2):
            model.train()
            for images, labels in loader:
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=bool(bench.amp)):
                    loss = F.cross_entropy(model(images.to(bench.device)), labels.to(bench.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    start = pack.init(
        bench.folder / "start.st", bench.arch, pretrained=False, data_config={"img_size": bench.img_size}, force=True
    )
    return interleaved({"plain": plain, "packed": packed}, max(1, bench.repeats // 3))


def time_eval(bench: "Bench") -> Timing:
    """A packed task on images in memory against the plain network on the same."""
    _, artifact = packed_artifact(bench.arch, bench.img_size, bench.folder)
    count = bench.batch_size * bench.steps
    images = TensorDataset(torch.randn(count, 3, bench.img_size, bench.img_size), torch.zeros(count, dtype=torch.long))
    batches = DataLoader(images, bench.batch_size)
    task = network.place(Packed(artifact).model(2), bench.device)
    model = network.place(network.build(artifact.header, 10), bench.device).eval()

    @torch.inference_mode()
    def plain() -> None:
        for pixels, labels in batches:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bool(bench.amp)):
                answers = model(pixels.to(bench.device, memory_format=torch.channels_last))
            int((answers.argmax(1) == labels.to(bench.device)).sum())

    return interleaved({"plain": plain, "packed": lambda: evaluate(task, batches, amp=bool(bench.amp))}, bench.repeats)


def time_prune(bench: "Bench") -> Timing:
    """Releasing half of every layer's weights, which are where the network is; beside it, a sort of them."""
    _, artifact = packed_artifact(bench.arch, bench.img_size, bench.folder, tasks=0)
    if bench.device.type == "cuda":
        layers = [torch.from_numpy(values).to(bench.device) for values in artifact.shared.values()]
        owned = [torch.ones_like(values, dtype=torch.bool) for values in layers]

        def release_there() -> None:
            for values, mine in zip(layers, owned, strict=True):
                smallest(values, mine, values.numel() // 2)

        def sort_there() -> None:
            for values in layers:
                values.abs().flatten().sort()

        return interleaved({"plain": sort_there, "packed": release_there}, max(1, bench.repeats // 3))
    claimed = {layer: masks.claim_free(mask, 1) for layer, mask in artifact.mask.items()}

    def release() -> None:
        for layer, mask in claimed.items():
            masks.release_smallest(mask, artifact.shared[layer], 1, mask.size // 2)

    def sort() -> None:
        for values in artifact.shared.values():
            np.sort(np.abs(values), axis=None)

    return interleaved({"plain": sort, "packed": release}, max(1, bench.repeats // 3))


def time_file(bench: "Bench") -> Timing:
    """Writing and reading an artifact against safetensors with the same tensors."""
    path, artifact = packed_artifact(bench.arch, bench.img_size, bench.folder)
    tensors, bare = load_file(path), bench.folder / "bare.st"
    ways = {
        "plain": lambda: save_file(tensors, bare),
        "packed": lambda: format.save(artifact, path),
        "plain load": lambda: load_file(bare),
        "packed load": lambda: format.load(path),
    }
    return interleaved(ways, bench.repeats)


def time_growth(bench: "Bench") -> Timing:
    """The 20th task against the first: adding it, evaluating it (whole processes), and the bytes of the file, in MB."""
    data = image_folder(bench)
    recipe = recipe_of(bench)
    files = {tasks: packed_artifact(bench.arch, bench.img_size, bench.folder, tasks)[0] for tasks in (0, 1, 19, 20)}

    def add(tasks: int) -> None:
        path = bench.folder / "growing.st"
        shutil.copy(files[tasks], path)
        pack.add_task(path, data, name="new", prune=0.5, recipe=recipe, machine=bench.machine)

    ways = {"plain": lambda: add(0), "add task 20": lambda: add(19)}
    ways |= {
        "plain eval": eval_command(bench, files[1], 1, data),
        "task 20 eval": eval_command(bench, files[20], 20, data),
    }
    sizes = {"plain MB": [files[1].stat().st_size / 1e6], "20 tasks MB": [files[20].stat().st_size / 1e6]}
    return interleaved(ways, max(1, bench.repeats // 3)) | sizes


def time_start(bench: "Bench") -> Timing:
    """Whole processes: Python alone, and `packnet` with --help, info and eval, which loads torch."""
    path, _ = packed_artifact(bench.arch, bench.img_size, bench.folder)
    data = image_folder(bench)
    program = [sys.executable, "-m", "packnet_cli"]
    lines = {"plain": [sys.executable, "-c", ""], "--help": [*program, "--help"], "info": [*program, "info", str(path)]}
    ways = {name: partial(subprocess.run, line, **QUIET) for name, line in lines.items()}
    return interleaved(ways | {"eval": eval_command(bench, path, 1, data)}, 5)


def eval_command(bench: "Bench", path: Path, task: int, data: Path) -> Callable[[], Any]:
    """`packnet eval` as a process, to be run."""
    line = [sys.executable, "-m", "packnet_cli", "eval", path, "--task", task, "--data", data / "val"]
    return partial(subprocess.run, [*map(str, line), "--device", str(bench.device)], **QUIET)


PARTS = {
    "step": time_step,
    "whole": time_whole,
    "eval": time_eval,
    "prune": time_prune,
    "file": time_file,
    "growth": time_growth,
    "memory": measure_memory,
    "start": time_start,
}


class Bench:
    """The settings of a run."""

    def __init__(self, folder: Path, device: str, **settings: Any) -> None:
        self.folder, self.device = folder, choose_device(device)
        for name, value in settings.items():
            setattr(self, name, value)
        self.machine = Machine(str(self.device), amp=self.amp)


def main(
    arch: Annotated[str, Option(help="By timm's name.")] = "resnet50",
    batch_size: Annotated[int, Option(min=2)] = 32,
    img_size: Annotated[int, Option(min=1)] = 224,
    device: str = "auto",
    opt: Annotated[str, Option(help="timm optimizer of the step.")] = "momentum",
    amp: Annotated[
        bool | None, Option(help="All in bfloat16; default: float32, but for the whole add-task as it chooses itself.")
    ] = None,
    compile: Annotated[
        bool | None, Option(help="Compile the step; default: on a GPU CUDA graphs, of which --no-compile makes none.")
    ] = None,
    parts: Annotated[str, Option(help=f"What to time, with commas between: {', '.join(PARTS)}.")] = ",".join(PARTS),
    steps: Annotated[int, Option(min=1, help="Training steps, or batches, that are timed at once.")] = 3,
    repeats: Annotated[int, Option(min=1, help="How often each thing is timed; the slow ones a third as often.")] = 7,
    epochs: Annotated[int, Option(min=1, help="Of the whole add-task; half as many more after pruning.")] = 4,
    images: Annotated[int, Option(min=2, help="Training images of the whole add-task.")] = 320,
    file_size: Annotated[int, Option(min=1, help="Pixels of those images as files.")] = 256,
    threads: Annotated[int | None, Option(min=1, help="Of torch, on the CPU.")] = None,
    json_file: Annotated[Path | None, Option("--json", help="A file for all figures.")] = None,
) -> None:
    """Time each thing beside the plain one: a table on stdout and, with --json, all figures in a file."""
    if unknown := set(parts.split(",")) - set(PARTS):
        raise typer.BadParameter(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if json_file is not None:
        atomic.check_writable(json_file)
    if threads:
        torch.set_num_threads(threads)
    settings = {"arch": arch, "batch_size": batch_size, "img_size": img_size, "amp": amp, "steps": steps, "opt": opt}
    settings |= {"repeats": repeats, "epochs": epochs, "images": images, "file_size": file_size, "compile": compile}
    results: dict[str, Timing] = {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), device, **settings)
        check_optimizer(recipe_of(bench))
        print("| part | what | median, s or MB | least | most | to plain |\n|---|---|---|---|---|---|")
        with contextlib.suppress(KeyboardInterrupt, InterruptedRun):  # what has been timed by then is kept
            for part in parts.split(","):
                results[part] = PARTS[part](bench)
                for what, seconds in results[part].items():
                    unit = what.rpartition(" ")[2]
                    plain = results[part].get(f"plain {unit}", results[part]["plain"])
                    ratio = statistics.median(one / other for one, other in zip(seconds, plain, strict=True))
                    times = f"{statistics.median(seconds):.4f} | {min(seconds):.4f} | {max(seconds):.4f}"
                    print(f"| {part} | {what} | {times} | {ratio:.3f} |", flush=True)
    if json_file is not None:
        about = {**settings, "device": str(bench.device), "torch": torch.__version__}
        json_file.write_text(json.dumps({"settings": about, "seconds": results}, indent=1))


if __name__ == "__main__":
    with in_one_line(lambda: "benchmark.py"):
        typer.run(main)
