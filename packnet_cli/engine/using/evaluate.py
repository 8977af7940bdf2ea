"""How good the tasks of a packed model are, on the images that they remember or on others."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from packnet_cli.artifact import format
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.artifact.verify import Finding
from packnet_cli.engine import network
from packnet_cli.engine.data import feed, splits
from packnet_cli.engine.device import choose_device, workable_batches
from packnet_cli.engine.measure import Batches, evaluate
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import DataError, TaskError
from packnet_cli.images import location
from packnet_cli.progress import Accuracy
from packnet_cli.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """How a task does on its held-out images; `missing` and `unsplit` are those of HeldOut.

    Of a task that was added without held-out images, and is evaluated among all others, the accuracy is None.
    """

    task: Task
    accuracy: Accuracy | None
    missing: tuple[str, ...] = ()
    unsplit: bool = False


def evaluate_tasks(
    path: Path,
    wanted: str = "all",
    *,
    data: Path | None = None,
    as_in: Path | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    amp: bool = False,
) -> Iterator[Evaluation]:
    """Evaluate one task (by index or name) or "all", on the data that it remembers or on `data`.

    A compact file remembers none: what the one that it was made of remembers is meant with `as_in`, the path of that.
    Raises TaskError, DataError, ArtifactError.
    """
    artifact = format.load(path)
    if as_in is not None:
        artifact = dataclasses.replace(artifact, header=format.load_header(as_in))
    tasks = artifact.header.tasks if wanted == "all" else (artifact.header.task(wanted),)
    if not tasks:
        raise TaskError(f"{path} holds no task yet; `packnet add-task {path} --data DIR` adds one")
    torch_device = choose_device(device)
    there = [task for task in tasks if wanted != "all" or data or (task.data and task.images)]
    if artifact.header.compact is not None and not (data or as_in):
        raise DataError("a compact file remembers no images; say where a task's are with --task NAME --data DIR")
    held_outs = {task.index: held_out_images(task, data) for task in there}
    yield from _measured(artifact, tasks, held_outs, torch_device, batch_size=batch_size, workers=workers, amp=amp)


def _measured(
    artifact: Artifact,
    tasks: tuple[Task, ...],
    held_outs: dict[int, splits.HeldOut],
    torch_device: torch.device,
    *,
    batch_size: int,
    workers: int | None,
    amp: bool = False,
) -> Iterator[Evaluation]:
    """The accuracy of each task on its held-out images, by index, if there are any."""
    packed = Packed(artifact)
    model: nn.Module | None = None
    for task in tasks:
        if task.index not in held_outs:
            yield Evaluation(task, None)
            continue
        held_out = held_outs[task.index]
        if model is None:
            model = network.place(packed.model(task.index), torch_device)
        else:
            packed.switch(model, task.index)
        batches = batches_of(artifact, held_out, batch_size=batch_size, workers=workers, device=torch_device)
        with workable_batches(batch_size):
            accuracy = evaluate(model, batches, amp=amp)
        yield Evaluation(task, accuracy, held_out.missing, held_out.unsplit)


def check_accuracies(
    path: Path, *, batch_size: int = 32, workers: int | None = None, device: str = "auto"
) -> list[Finding]:
    """The tasks whose accuracy, on the data that they remember, is not the recorded one, or cannot be measured.

    Raises ArtifactError, UsageError.
    """
    artifact, torch_device = format.load(path), choose_device(device)
    findings: list[Finding] = []
    held_outs: dict[int, splits.HeldOut] = {}
    for task in artifact.header.tasks:
        if task.data and task.images:
            try:
                held_outs[task.index] = held_out_images(task, None)
            except DataError as error:
                findings.append(Finding(str(error), task.index))
    tasks = artifact.header.tasks
    for result in _measured(artifact, tasks, held_outs, torch_device, batch_size=batch_size, workers=workers):
        task, found = result.task, result.accuracy
        if found is None or task.top1 is None:
            continue
        # Another device or batch size rounds otherwise, which may turn a close call.
        if found.images != task.images or abs(found.top1 - task.top1) > max(0.1, 100.5 / task.images):
            findings.append(
                Finding(
                    f"task {task.index} ({task.name}) has top-1 {found.top1:.2f} % on {found.images:,} images, "
                    f"not the recorded {task.top1:.2f} % on {task.images:,}",
                    task.index,
                )
            )
    return findings


def batches_of(
    artifact: Artifact,
    held_out: splits.HeldOut,
    *,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    rooms: Sequence[feed.Room] = (),
) -> Batches:
    """Batches of held-out images as the artifact's network takes them."""
    return feed.batches(
        held_out.split,
        network.preprocessing(artifact.header),
        training=False,
        batch_size=batch_size,
        workers=workers,
        device=device,
        rooms=rooms,
    )


def held_out_images(task: Task, data: Path | None) -> splits.HeldOut:
    """The readable images to evaluate a task on: of those it remembers, or in `data`. Raises DataError."""
    if not (data or task.data):
        raise DataError(f"task {task.index} ({task.name}) has no images on record; say where they are with --data")
    alone = f"`packnet eval PACKED --task {task.index} --data DIR`"
    where = data or splits.remembered(task, f"put it back, or measure this task alone with {alone}")
    try:
        held_out = splits.open_held_out(
            where,
            task.classes,
            val_split=task.recipe.get("val_split", Recipe.val_split),
            seed=task.recipe.get("seed", Recipe.seed),
            trained_on=location(where) == task.data,
        )
        held_out = splits.readable(held_out, task.classes, skip_bad=task.skipped > 0)
        if not held_out.split.paths:
            raise DataError(f"{where} holds no readable images to evaluate on")
    except DataError as error:
        raise DataError(f"task {task.index} ({task.name}) cannot be measured: {error}") from None
    return held_out
