"""How good the tasks of a packed model are, on the images that they remember or on others."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from packnet_cli.artifact import format
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.artifact.verify import Finding
from packnet_cli.engine import network
from packnet_cli.engine.data import decoding, feed, splits
from packnet_cli.engine.device import choose_device, workable_batches
from packnet_cli.engine.measure import evaluate
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import DataError, quoted
from packnet_cli.images import location
from packnet_cli.progress import Accuracy
from packnet_cli.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """How a task does on its held-out images; `missing`: its classes that have none; `unsplit`, `doubt`: see HeldOut.

    Among all tasks, the accuracy of one is None if it was added without held-out images, or for the `problem` with
    them.
    """

    task: Task
    accuracy: Accuracy | None
    missing: tuple[str, ...] = ()
    unsplit: bool = False
    doubt: str | None = None
    problem: str | None = None


def evaluate_tasks(
    path: str | Path,
    wanted: str | int = "all",
    *,
    data: str | Path | None = None,
    as_in: str | Path | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    amp: bool = False,
) -> Iterator[Evaluation]:
    """Evaluate one task (by index or name) or "all", on the data that it remembers or on `data`.

    A compact file remembers none: `as_in` is the path of the file it was made of, which does.
    Raises TaskError, DataError, ArtifactError, NetworkError, UsageError; of "all" on remembered data, what is wrong
    with one task's is in its Evaluation.
    """
    path, data = Path(path), Path(data) if data is not None else None
    artifact = format.load(path)
    if as_in is not None:
        artifact = dataclasses.replace(artifact, header=format.load_header(Path(as_in)))
    tasks = artifact.header.asked(wanted, path)
    torch_device = choose_device(device)
    there = [task for task in tasks if wanted != "all" or data or task.has_images]
    if artifact.header.compact is not None and not (data or as_in):
        raise DataError("a compact file remembers no images; say where a task's are with --task NAME --data DIR")
    held_outs: dict[int, splits.HeldOut | DataError] = {}
    for task in there:
        try:
            held_outs[task.index] = held_out_images(path, task, data)
        except DataError as error:
            if data and len(tasks) > 1:
                raise DataError(f"{error}; without --task NAME all {len(tasks)} tasks are measured on {data}") from None
            if data or wanted != "all":
                raise
            held_outs[task.index] = error
    return _measured(artifact, tasks, held_outs, torch_device, batch_size=batch_size, workers=workers, amp=amp)


def _measured(
    artifact: Artifact,
    tasks: tuple[Task, ...],
    held_outs: Mapping[int, splits.HeldOut | DataError],
    torch_device: torch.device,
    *,
    batch_size: int,
    workers: int | None,
    amp: bool,
) -> Iterator[Evaluation]:
    """The accuracy of each task on its held-out images, by index, if there are any."""
    packed = Packed(artifact)
    model: nn.Module | None = None
    for task in tasks:
        held_out = held_outs.get(task.index)
        if held_out is None or isinstance(held_out, DataError):
            yield Evaluation(task, None, problem=str(held_out) if held_out else None)
            continue
        if model is None:
            model = network.place(packed.model(task.index), torch_device)
        else:
            packed.switch(model, task.index)
        config = network.preprocessing(artifact.header)
        batches = feed.batches(held_out.split, config, batch_size=batch_size, workers=workers, device=torch_device)
        with workable_batches(batch_size, training=False):
            accuracy = evaluate(model, batches, amp=amp)
        missing = held_out.split.missing(task.classes)
        yield Evaluation(task, accuracy, missing, held_out.unsplit, held_out.doubt(task))


def check_accuracies(
    path: str | Path, *, batch_size: int = 32, workers: int | None = None, device: str = "auto"
) -> list[Finding]:
    """The tasks whose accuracy, on the images that they remember, is not the recorded one, or cannot be measured.

    Raises TaskError if there is no task; ArtifactError, NetworkError, UsageError.
    """
    findings = []
    for result in evaluate_tasks(path, batch_size=batch_size, workers=workers, device=device):
        task, found = result.task, result.accuracy
        if problem := result.problem or result.doubt:
            findings.append(Finding(problem, task.index))
            continue
        if found is None or task.top1 is None:
            continue
        # Another device or batch size rounds otherwise, which may turn a close call.
        if found.images != task.images or abs(found.top1 - task.top1) > max(0.1, 100.5 / task.images):
            findings.append(
                Finding(
                    f"task {task} has top-1 {found.top1:.2f} % on {found.images:,} images, "
                    f"not the recorded {task.top1:.2f} % on {task.images:,}",
                    task.index,
                )
            )
    return findings


def held_out_images(path: Path, task: Task, data: Path | None) -> splits.HeldOut:
    """The readable images to evaluate a task of the file at `path` on: those it remembers, or in `data`.

    Raises DataError.
    """
    if not (data or task.data):
        raise DataError(f"task {task} has no images on record; say where they are with --data")
    elsewhere = f"put it back, or say where it is: `packnet eval {quoted(path)} --task {task.index} --data DIR`"
    where = data or splits.remembered(task, elsewhere)
    try:
        held_out = splits.open_held_out(
            where,
            task.classes,
            val_split=task.recipe.get("val_split", Recipe.val_split),
            seed=task.recipe.get("seed", Recipe.seed),
            trained_on=location(where) == task.data,
        )
        return decoding.readable(held_out, skip_bad=task.skipped > 0)
    except DataError as error:
        raise DataError(f"task {task} cannot be measured: {error}") from None
