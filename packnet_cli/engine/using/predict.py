"""Predictions of the packed tasks: class probabilities for a stream of pictures."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path

import torch
from torch import nn

from packnet_cli.artifact import format
from packnet_cli.artifact.format import Task
from packnet_cli.engine.calibrate import entropies
from packnet_cli.engine.compute import in_precision
from packnet_cli.engine.data import pictures, sources
from packnet_cli.engine.device import check_batches, choose_device
from packnet_cli.engine.using.packed import Packed, Transform

Read = torch.Tensor | str  # a picture (C, H, W), or why there is none
Batch = tuple[list[str | Path], list[Read]]


@dataclass(frozen=True)
class Prediction:
    """One task's prediction for a picture: the probability of each of its classes, in order of label."""

    task: Task
    probabilities: list[float]
    entropy: float  # at the task's temperature, from 0 (certain) to 1 (a mere guess); `auto` compares it

    def top(self, count: int) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, the likeliest first."""
        ranked = sorted(zip(self.task.classes, self.probabilities, strict=True), key=lambda pair: -pair[1])
        return ranked[:count]


@dataclass(frozen=True)
class Answer:
    """The answer for one picture: a prediction of each task asked or, if it cannot be read, the `problem`."""

    path: str | Path  # as it was given
    predictions: list[Prediction]
    problem: str = ""


def predict(
    path: str | Path,
    images: Iterable[str | Path],
    wanted: str | int,
    *,
    batch_size: int = 32,
    device: str = "auto",
    amp: bool = False,
    read_ahead: bool = True,
) -> Iterator[Answer]:
    """An answer for each image file, in order, as soon as its batch is done; each file is decoded once.

    `wanted` is the index or name of a task, "all", or "auto": for each picture the task with the lowest entropy (see
    `auto.py`). With `read_ahead` the next batch is decoded while one is computed. Raises ArtifactError, NetworkError,
    TaskError, UsageError.
    """
    check_batches(batch_size)
    torch_device = choose_device(device)
    path = Path(path)
    packed = Packed(format.load(path))
    tasks = packed.artifact.header.asked(wanted, path)
    batches = _batches(images, packed.transform, batch_size, read_ahead)
    answers = _answers(packed, tasks, batches, torch_device, amp)
    if wanted != "auto":
        return answers
    return (replace(each, predictions=sorted(each.predictions, key=attrgetter("entropy"))[:1]) for each in answers)


def _answers(
    packed: Packed, tasks: tuple[Task, ...], batches: Iterable[Batch], device: torch.device, amp: bool
) -> Iterator[Answer]:
    # One network is switched from task to task. Its memory format is left alone: another one would round differently.
    model = packed.model(tasks[0].index).to(device)
    for paths, reads in batches:
        readable = [read for read in reads if isinstance(read, torch.Tensor)]
        by_task = []
        if readable:
            stacked = torch.stack(readable).to(device)  # (N, C, H, W)
            for task in tasks:
                if len(tasks) > 1:
                    packed.switch(model, task.index)
                by_task.append(_ask(model, task, stacked, amp))
        by_picture = zip(*by_task, strict=True)
        for path, read in zip(paths, reads, strict=True):
            if isinstance(read, str):
                yield Answer(path, [], read)
            else:
                yield Answer(path, list(next(by_picture)))


def find_images(arguments: Iterable[str | Path]) -> Iterator[str | Path]:
    """The files named, as they are, and, for each folder named, the images in and below it, in order of name.

    A folder that has no images or cannot be read is itself yielded, to be reported like an unreadable image.
    """
    for path in arguments:
        if os.path.isdir(path):  # False, not an error, for an unusable path
            errors: list[OSError] = []
            found = [*filter(pictures.is_image_name, sources.walk(Path(path), errors.append))]
            yield from sorted([*found, *(Path(error.filename) for error in errors)]) or (path,)
        else:
            yield path


@torch.inference_mode()
def _ask(model: nn.Module, task: Task, images: torch.Tensor, amp: bool) -> list[Prediction]:
    """One task's predictions for a batch (N, C, H, W)."""
    with in_precision(images.device, amp):
        logits = model(images)  # (N, classes)
    probabilities = logits.float().softmax(1).cpu()
    pairs = zip(probabilities.tolist(), entropies(logits, task.temperature).tolist(), strict=True)
    return [Prediction(task, of_classes, entropy) for of_classes, entropy in pairs]


def _batches(images: Iterable[str | Path], transform: Transform, size: int, read_ahead: bool) -> Iterator[Batch]:
    """The files in batches, decoded by several threads."""
    images, waiting = iter(images), deque[tuple[list[str | Path], list[Future[Read]]]]()
    with ThreadPoolExecutor(pictures.READERS) as pool:
        while paths := list(islice(images, size)):
            waiting.append((paths, [pool.submit(_read, path, transform) for path in paths]))
            if len(waiting) > read_ahead:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(paths: list[str | Path], futures: list[Future[Read]]) -> Batch:
    return paths, [future.result() for future in futures]


def _read(path: str | Path, transform: Transform) -> Read:
    try:
        if os.path.isdir(path):
            os.scandir(path).close()  # raises if it cannot be read
            return "the folder holds no images"
        with pictures.open_picture(Path(path)) as image:
            return transform(image)
    except Exception as error:  # decoders raise nearly anything on broken files
        return pictures.problem(error)
