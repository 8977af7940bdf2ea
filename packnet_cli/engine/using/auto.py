"""Measure how well `auto` guesses an image's task, as the one that is most certain. Experimental."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from packnet_cli.artifact import format
from packnet_cli.artifact.format import Task
from packnet_cli.engine import network
from packnet_cli.engine.calibrate import entropies
from packnet_cli.engine.data import feed
from packnet_cli.engine.device import choose_device, workable_batches
from packnet_cli.engine.measure import Loader, answers
from packnet_cli.engine.using import evaluate
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import DataError
from packnet_cli.machine import THIS_MACHINE


@dataclass(frozen=True)
class Choice:
    """The share of a task's held-out images for which that task is picked, and for which its class is right too."""

    task: Task
    right_task: float  # percent
    top1: float  # percent
    images: int


def evaluate_auto(
    path: str | Path, *, batch_size: int = 32, workers: int | None = None, device: str = "auto", amp: bool = False
) -> list[Choice]:
    """How often the right task is picked, for each task with recorded images: every task is asked about each of them.

    Raises DataError if no task has recorded images, or those of one are gone; ArtifactError.
    """
    path = Path(path)
    packed = Packed(format.load(path))
    asked_about = [(task, evaluate.held_out_images(path, task, None)) for task in packed.tasks if task.has_images]
    if not asked_about:
        raise DataError(f"no task in {path} has images on record, which is what --task auto is measured on")
    torch_device = choose_device(device)
    model = network.place(packed.model(packed.tasks[0].index), torch_device)
    choices = []
    for task, held_out in asked_about:
        batches = feed.batches(
            held_out.split,
            network.preprocessing(packed.artifact.header),
            batch_size=batch_size,
            workers=workers,
            device=torch_device,
            # Cached, as every task is asked about the same images.
            budgets=feed.budgets(THIS_MACHINE.cache, THIS_MACHINE.cache_gb, torch_device),
        )
        with workable_batches(batch_size, training=False):
            asked = [_ask(packed, model, each, batches, amp) for each in packed.tasks]
        picked = torch.stack([entropy for entropy, _ in asked]).argmin(0)  # (N,)
        place = packed.tasks.index(task)
        right_task = picked == place
        right_class = right_task & asked[place][1]
        images = len(picked)
        choices.append(
            Choice(task, 100 * int(right_task.sum()) / images, 100 * int(right_class.sum()) / images, images)
        )
    return choices


def _ask(packed: Packed, model: nn.Module, task: Task, batches: Loader, amp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The entropy (N,) of a task's prediction for each image, and whether the predicted class is the label (N,)."""
    packed.switch(model, task.index)
    found = [
        (entropies(logits, task.temperature), logits.argmax(1) == labels)
        for logits, labels in answers(model, batches, amp=amp)
    ]
    return torch.cat([entropy for entropy, _ in found]), torch.cat([same for _, same in found])
