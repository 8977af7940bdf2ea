"""One task out of a packed model: as a network, as accuracy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from packnet_cli.artifact import format
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.engine import data, network
from packnet_cli.engine.packed import Packed
from packnet_cli.engine.train import Accuracy, evaluate
from packnet_cli.errors import DataError, TaskError


@dataclass(frozen=True)
class Evaluation:
    """How a task does on its held-out images; `missing` names the classes that have none."""

    task: Task
    accuracy: Accuracy
    missing: tuple[str, ...]


def evaluate_tasks(
    path: Path,
    wanted: str = "all",
    *,
    folder: Path | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    amp: bool = False,
) -> Iterator[Evaluation]:
    """Evaluate one task (by index or name) or "all", on the data that it remembers or on `folder`.

    Raises TaskError, DataError, ArtifactError.
    """
    torch_device = network.choose_device(device)
    artifact = format.load(path)
    tasks = artifact.header.tasks if wanted == "all" else (artifact.header.task(wanted),)
    if not tasks:
        raise TaskError(f"{path} holds no task yet; `packnet add-task {path} --data DIR` adds one")
    held_outs = [_held_out(task, folder) for task in tasks]
    packed = Packed(artifact)
    model = network.place(packed.model(tasks[0].index), torch_device)
    for task, held_out in zip(tasks, held_outs, strict=True):
        packed.switch(model, task.index)
        batches = data.batches(
            held_out.split,
            artifact.header.data_config,
            training=False,
            batch_size=batch_size,
            workers=workers,
            device=torch_device,
        )
        yield Evaluation(task, evaluate(model, batches, amp=amp), held_out.missing)


def _held_out(task: Task, folder: Path | None) -> data.HeldOut:
    where = folder or Path(task.data)
    if folder is None and not where.is_dir():
        raise DataError(f"the data of task {task.index} ({task.name}) is no longer at {where}; say where with --data")
    return data.open_held_out(
        where,
        task.classes,
        val_split=task.recipe["val_split"],
        seed=task.recipe["seed"],
        trained_on=where.resolve() == Path(task.data),
    )


def task_network(artifact: Artifact, task: Task) -> nn.Module:
    """A plain timm network with one task's weights, in eval mode, on the CPU."""
    return Packed(artifact).model(task.index)
