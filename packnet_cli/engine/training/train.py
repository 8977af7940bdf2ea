"""The one training loop. Knows a model, batches and what is frozen; nothing about files or printing."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timm.utils import random_seed
from torch import nn
from torch.nn import functional as F

from packnet_cli.engine import distributed
from packnet_cli.engine.compute import Ready, in_precision
from packnet_cli.engine.measure import Loader
from packnet_cli.engine.training.freezer import Freezer
from packnet_cli.engine.training.optimize import Optimization
from packnet_cli.engine.training.parts import CASTABLE
from packnet_cli.progress import Step

PAUSE = 0.5  # seconds between two readings of a GPU's results, each of which waits for it


@dataclass(frozen=True)
class Position:
    """How far a phase of training has come: `step` steps into epoch `epoch`, both from 0.

    `sums` are the epoch's losses, hits and images so far, as this process's meter has read them; in a checkpoint those
    of all processes.
    """

    epoch: int = 0
    step: int = 0
    sums: tuple[float, int, int] = (0.0, 0, 0)


@dataclass(frozen=True)
class Resume:
    """Where to resume a phase, and how to restore the state that a stopped run had there."""

    position: Position
    skip: Callable[[int], None]  # skips so many batches of the next epoch
    set_optimizer: Callable[[torch.optim.Optimizer], None]
    set_random: Callable[[], None]


def _nothing(position: Position, optimizer: torch.optim.Optimizer, looked: bool) -> None:
    """The callback of a run without checkpoints."""


class Teacher:
    """The network as it was before pruning: in retraining, its outputs are part of the target, or all of it."""

    TEMPERATURE = 2.0

    def __init__(self, model: nn.Module, weight: float, forward_of: Callable[[nn.Module], Ready], amp: bool) -> None:
        self.model, self.weight = copy.deepcopy(model).eval().requires_grad_(False), weight
        for module in self.model.modules():
            if amp and type(module) in CASTABLE:
                module.to(torch.bfloat16)  # once, instead of in each step
        self.ready = forward_of(self.model)

    def prepare(self) -> None:
        """Call at the start of each epoch."""
        self.forward = self.ready()

    def loss(self, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy with the labels, and the divergence from the teacher (Hinton et al. 2015, arXiv 1503.02531).

        Images are (N, C, H, W), labels (N,), logits (N, classes); the loss is a scalar, the mean over the images.
        """
        # The teacher has no gradients. On a CPU they are enabled all the same, to select training's convolutions.
        with torch.set_grad_enabled(images.device.type == "cpu"):
            # Explicitly float32: autocast on a CPU leaves log_softmax in bfloat16.
            wanted = F.log_softmax(self.forward(images).float() / self.TEMPERATURE, 1)
        given = F.log_softmax(logits.float() / self.TEMPERATURE, 1)
        soft = F.kl_div(given, wanted, log_target=True, reduction="batchmean") * self.TEMPERATURE**2
        return soft if self.weight == 1 else (1 - self.weight) * F.cross_entropy(logits, labels) + self.weight * soft


def train(
    model: nn.Module,
    batches: Loader,
    freezer: Freezer,
    optimization: Optimization,
    *,
    epochs: int,
    around: tuple[int, int] = (0, 0),
    train_norm: bool,
    amp: bool,
    progress: Callable[[Step], None],
    ready: Ready | None = None,
    teacher: Teacher | None = None,
    seed: int = 0,
    resume: Resume | None = None,
    after_step: Callable[[Position, torch.optim.Optimizer, bool], None] = _nothing,
) -> Iterator[int]:
    """Train the network in place, with a fresh optimizer; yields each epoch's number, from 0, before it starts.

    Each epoch's order, augmentation and dropout follow from `seed` and its number; one that is resumed half-way is not
    yielded again, and the batches that it has seen are skipped.

    The schedule spans these epochs and those `around` them: so many before, already done, and so many after. Between
    epochs the caller may hold more weights with `freezer`. With `train_norm` off, batch norm uses its stored
    statistics. `amp` computes in bfloat16 while the weights stay float32. `ready` gives the network as a function, if
    it is not to run as it is.
    `progress` is called after each step, on a single GPU only every PAUSE seconds and at the end of an epoch;
    `after_step` after every step, with whether `progress` was.
    Raises DivergedError.
    """
    if not epochs:
        return
    device = next(model.parameters()).device
    gpu = device.type == "cuda"  # elsewhere nothing keeps the source of a non-blocking copy alive
    optimizer = optimization.optimizer(model, freezer.trained())
    before, after = around
    scheduler = optimization.scheduler(optimizer, before + epochs + after, len(batches))
    finite = _finite(model)
    at = resume.position if resume else Position()
    images: torch.Tensor | None = None
    if resume:
        resume.set_optimizer(optimizer)
    if scheduler is not None and (before or at.epoch or at.step):
        scheduler.step_update((before + at.epoch) * len(batches) + at.step)
    for epoch in range(at.epoch, epochs):
        skip = at.step if epoch == at.epoch else 0
        if not skip:
            yield epoch
        freezer.forget_released(optimizer)
        random_seed((seed + epoch) % 2**32)
        model.train()
        if not train_norm:
            stop_statistics(model)
        forward = ready() if ready else freezer.network
        if teacher:
            teacher.prepare()
        meter = _Meter(device, at.sums if skip and not distributed.rank() else Position().sums)
        if resume and skip:
            resume.skip(skip)
        for step, (images, labels) in enumerate(batches, skip):
            if resume and 0 < step == skip:
                resume.set_random()
            images = images.to(device, memory_format=torch.channels_last, non_blocking=gpu)  # (N, C, H, W)
            labels = labels.to(device, non_blocking=gpu)  # (N,)
            with in_precision(device, amp):
                logits = forward(images)  # (N, classes)
                loss = F.cross_entropy(logits, labels) if teacher is None else teacher.loss(images, labels, logits)
            loss.backward()
            freezer.take_gradients()
            distributed.average_gradients(freezer.trained().values(), len(labels))
            optimizer.step()
            freezer.write_back()
            optimizer.zero_grad()  # here, for the next forward pass to have the memory
            rate = optimizer.param_groups[0]["lr"]
            if scheduler is not None:
                scheduler.step_update((before + epoch) * len(batches) + step + 1)

            meter.add(loss, logits, labels)
            looked = meter.is_due() or step + 1 == len(batches)
            if looked:
                if (bad := meter.read()) is not None:
                    steps_ago, value = bad
                    where = f"in epoch {epoch + 1}, step {step + 1 - steps_ago}"
                    raise optimization.diverged(f"the loss is {value} {where}")
                means = meter.means(of_all=step + 1 == len(batches))
                progress(Step(epoch + 1, epochs, step + 1, len(batches), *means, rate))
            after_step(Position(epoch, step + 1, meter.sums), optimizer, looked)
        freezer.write_parameters()
        if train_norm:
            distributed.average_statistics(model)
    # No loss has been computed with the last step's weights yet.
    if lost := finite - _finite(model):
        raise optimization.diverged(f"{min(lost)} is no longer finite after the last epoch")
    if images is not None and not _answers_are_finite(model, images):
        raise optimization.diverged("the logits are no longer finite after the last epoch")


def _finite(model: nn.Module) -> set[str]:
    """The tensors whose numbers are all finite; some networks have infinite bounds."""
    return {name for name, value in model.state_dict().items() if _is_finite(value)}


def _is_finite(values: torch.Tensor) -> bool:
    """By the extremes, which are NaN if any number is: testing each one takes twenty times as long on a CPU."""
    if not values.is_floating_point() or not values.numel():
        return True
    return bool(torch.stack(values.aminmax()).isfinite().all())


@torch.no_grad()
def _answers_are_finite(model: nn.Module, images: torch.Tensor) -> bool:
    """Whether the logits of these images (N, C, H, W) are finite in eval mode, in which they will be measured."""
    return bool(model.eval()(images).isfinite().all())


class _Meter:
    """Means over an epoch so far, of numbers left on the device until there is a reason to wait for them."""

    def __init__(self, device: torch.device, sums: tuple[float, int, int]) -> None:
        # Processes have to read at the same steps, to agree on when to stop.
        self.pause = 0.0 if device.type == "cpu" or distributed.world() > 1 else PAUSE
        self.sums, self.before = sums, sums[-1]
        self.began = self.last = time.perf_counter()
        self.unread: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # of each step: mean loss, hits, images

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.unread.append((loss.detach(), (logits.argmax(1) == labels).sum(), len(labels)))

    def is_due(self) -> bool:
        return time.perf_counter() - self.last >= self.pause

    def read(self) -> tuple[int, float] | None:
        """Read what is new. Returns how many steps ago the first loss was that is not finite, if any, and that loss."""
        losses, hits, counts = zip(*self.unread, strict=True)
        values = torch.stack(losses).tolist()
        loss_sum, correct, seen = self.sums
        loss_sum += sum(value * count for value, count in zip(values, counts, strict=True))
        self.sums = loss_sum, correct + int(torch.stack(hits).sum()), seen + sum(counts)
        self.unread, self.last = [], time.perf_counter()
        return next(((len(values) - 1 - i, value) for i, value in enumerate(values) if not math.isfinite(value)), None)

    def means(self, *, of_all: bool) -> tuple[float, float, float]:
        """Loss, accuracy in percent, images a second: of this process, or `of_all`, which then must all call this."""
        here = *self.sums, self.sums[-1] - self.before
        loss_sum, correct, seen, new = map(sum, zip(*(distributed.gathered(here) if of_all else [here]), strict=True))
        speed = (1 if of_all else distributed.world()) * new / (self.last - self.began)
        return loss_sum / seen, 100 * correct / seen, speed


def stop_statistics(model: nn.Module) -> None:
    """Put every layer that keeps running statistics into eval mode, which `model.train()` undoes each time."""
    for module in model.modules():
        if any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False)):
            module.eval()
