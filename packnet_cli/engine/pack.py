"""The whole story: start a packed model, and add tasks to it.

The method is PackNet's (Mallya and Lazebnik, CVPR 2018, section 3): a task trains all free weights on top of the
frozen ones of earlier tasks, releases the smallest of its own in each layer, retrains the rest, and owns them for good.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import random_seed as _seed

from packnet_cli.artifact import atomic, edit, format, masks, verify
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.engine import data, network
from packnet_cli.engine.network import Kind
from packnet_cli.engine.start import start_from
from packnet_cli.engine.train import Freezer, Step, check_optimizer, evaluate, train
from packnet_cli.errors import ArtifactError, CapacityError, NetworkError, UsageError
from packnet_cli.recipe import Recipe

Progress = Callable[[str, Step], None]  # called after each step with the phase ("train", "retrain") and the step


def _silent(phase: str, step: Step) -> None:
    """The progress callback that shows nothing."""


# --- init -----------------------------------------------------------------------------------------------------------


@atomic.exclusive
def init(
    path: Path,
    arch: str,
    *,
    weights: Path | None = None,
    pretrained: bool = True,
    model_kwargs: dict[str, Any] | None = None,
    data_config: dict[str, Any] | None = None,
    seed: int = 0,
    force: bool = False,
) -> Artifact:
    """Make an artifact of a timm classifier's weights, all of them free, write it to `path` and return it.

    The weights come from the file `weights`, else from timm's hub, else (not `pretrained`) from `seed`. `model_kwargs`
    go to timm.create_model; `data_config` overrides timm's: img_size (pixels), in_chans, mean, std, crop_pct,
    interpolation. Raises ArtifactError if `path` exists, unless `force`; NetworkError; UsageError.
    """
    atomic.check_writable(path)
    if path.exists() and not force:
        raise ArtifactError(f"{path} exists already; name another file, or replace it with --force")
    _seed(seed)
    origin = start_from(
        arch,
        weights=weights,
        pretrained=pretrained,
        model_kwargs=model_kwargs or {},
        data_config=data_config or {},
    )
    kinds = network.classify(origin.model, origin.header.head)
    state = network.read(origin.model)
    shared = {name: state[name] for name, kind in kinds.items() if kind is Kind.PACKED}
    mask = {name: np.zeros(array.shape, np.uint8) for name, array in shared.items()}
    own = {name: state[name] for name, kind in kinds.items() if kind is Kind.PER_TASK}
    artifact = format.make(origin.header, shared, mask, (own,))
    format.save(artifact, path)
    return artifact


# --- add-task -------------------------------------------------------------------------------------------------------


@atomic.exclusive
def add_task(
    path: Path,
    folder: Path,
    *,
    name: str | None = None,
    prune: float = 0.0,
    recipe: Recipe | None = None,
    device: str = "auto",
    workers: int | None = None,
    amp: bool = False,
    skip_bad_images: bool = False,
    progress: Progress = _silent,
) -> Artifact:
    """Train the task in `folder` on the free weights, release the fraction `prune` of them in each layer, retrain.

    Returns the new artifact, already written to `path`; its last task is the new one. Whatever is raised, the file
    stays as it was: UsageError, ArtifactError, TaskError, CapacityError, DataError, DivergedError, ConflictError.
    """
    recipe = recipe or Recipe()
    plan = _plan(path, folder, name, prune, recipe, device, skip_bad_images)
    task = NewTask(plan, recipe, workers=workers, amp=amp, progress=progress)
    task.train()
    if prune:
        task.prune_and_retrain(prune)
    task.check_constants()
    entry = Task(
        index=plan.index,
        name=plan.name,
        classes=plan.images.classes,
        prune=prune,
        owned={},
        accuracy=task.accuracy,
        top1=task.final.top1,
        top5=task.final.top5,
        images=task.final.images,
        data=str(folder.resolve()),
        recipe=dataclasses.asdict(recipe),
        digest="",
        skipped=plan.skipped,
    )
    state = network.read(task.model)
    own = {tensor: array for tensor, array in state.items() if tensor not in task.mask}
    after = edit.with_task(plan.artifact, entry, state, task.mask, own)
    format.save(after, path, unchanged_since=plan.unchanged_since)
    return after


@dataclass(frozen=True)
class Plan:
    """What is settled before any training: the file as it is, and the new task's name, index, images and device."""

    artifact: Artifact
    unchanged_since: atomic.Stamp
    name: str
    index: int
    images: data.TrainingImages
    skipped: int  # so many images were not readable
    device: torch.device


def _plan(
    path: Path, folder: Path, name: str | None, prune: float, recipe: Recipe, device: str, skip_bad_images: bool
) -> Plan:
    """Try everything that can fail now, before hours of training."""
    if not 0 <= prune < 1:
        raise UsageError(f"--prune must be at least 0 and less than 1, not {prune}")
    check_optimizer(recipe.opt)
    unchanged_since = atomic.stamp(path)
    artifact = verify.load_verified(path)
    atomic.check_writable(path)
    index = artifact.header.last_index + 1
    if index > masks.MAX_TASKS:
        raise CapacityError(f"{path} holds {masks.MAX_TASKS} tasks, the most that one file can; start another")
    if artifact.free_count() == 0:
        raise CapacityError(
            f"no free weights are left in {path}: its last task kept all that it was given. Start another file, or add "
            "that task again with --prune to a copy made before it"
        )
    largest = max(sum(array.nbytes for array in own.values()) for own in artifact.own)
    atomic.check_room(path, path.stat().st_size + largest)  # the new task's own tensors, roughly
    name = name or folder.resolve().name
    artifact.header.check_new_name(name)
    images = data.open_training(folder, val_split=recipe.val_split, seed=recipe.seed)
    images, skipped = data.usable(images, skip_bad=skip_bad_images)
    return Plan(artifact, unchanged_since, name, index, images, skipped, network.choose_device(device))


class NewTask:
    """A task in training: its network, and the task-index masks, in which it owns less after each release."""

    def __init__(self, plan: Plan, recipe: Recipe, *, workers: int | None, amp: bool, progress: Progress) -> None:
        self.plan, self.recipe, self.amp, self.progress = plan, recipe, amp, progress
        self.accuracy: dict[str, float] = {}
        _seed(recipe.seed)
        header = plan.artifact.header
        self.model = network.build(header, len(plan.images.classes))
        self.train_norm = recipe.norm == "task" or not header.tasks
        self.mask = {layer: masks.claim_free(array, plan.index) for layer, array in plan.artifact.mask.items()}
        self.freezer = self._set_starting_values()
        self.constants = network.constants(self.model)
        self.train_batches, self.val_batches = (
            data.batches(
                split,
                header.data_config,
                training=split is plan.images.train,
                batch_size=recipe.batch_size,
                workers=workers,
                device=plan.device,
                crop_scale=recipe.crop_scale,
            )
            for split in (plan.images.train, plan.images.held_out.split)
        )

    def _set_starting_values(self) -> Freezer:
        """The frozen weights of earlier tasks, the free ones at their dormant values (or 0), and a random head."""
        artifact, k = self.plan.artifact, self.plan.index
        own = artifact.own[0 if self.train_norm else artifact.header.tasks[0].index]
        kinds = network.classify(self.model, artifact.header.head)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(kinds[name] is not Kind.PER_TASK or self.train_norm)
        network.write(self.model, {name: own[name] for name, kind in kinds.items() if kind is Kind.PER_TASK})
        network.place(self.model, self.plan.device)
        last_seen = k - 1 if self.recipe.restart == "zero" else k
        freezer = Freezer(self.model)
        freezer.hold(
            {layer: masks.keep_visible(artifact.shared[layer], self.mask[layer], last_seen) for layer in self.mask},
            self._trainable(),
        )
        return freezer

    def _trainable(self) -> dict[str, masks.Bools]:
        return {layer: array == self.plan.index for layer, array in self.mask.items()}

    def train(self) -> None:
        for _ in self._epochs("train", self.recipe.epochs, self.recipe.lr):
            pass
        self._evaluate("dense")

    def prune_and_retrain(self, prune: float) -> None:
        """Release the fraction `prune` of each layer's own weights, in steps along the first epochs, and retrain.

        Most go at first and ever fewer later: cubically, after Zhu and Gupta (2017, arXiv 1710.01878).
        """
        k = self.plan.index
        claimed = {layer: masks.count_owned(array, k) for layer, array in self.mask.items()}
        steps = max(1, min(self.recipe.prune_steps, self.recipe.retrain_epochs))

        def release(step: int) -> None:
            weights = network.read(self.model, set(self.mask))
            for layer, count in claimed.items():
                goal = round(masks.release_count(count, prune) * (1 - (1 - step / steps) ** 3))
                done = count - masks.count_owned(self.mask[layer], k)
                self.mask[layer] = masks.release_smallest(self.mask[layer], weights[layer], k, goal - done)
                weights[layer] = masks.keep_visible(weights[layer], self.mask[layer], k)
            self.freezer.hold(weights, self._trainable())
            if step == steps:
                self._evaluate("pruned")

        release(1)
        for epoch in self._epochs("retrain", self.recipe.retrain_epochs, self.recipe.retrain_lr):
            if 0 < epoch < steps:
                release(epoch + 1)
        self._evaluate("retrained")

    def _epochs(self, phase: str, epochs: int, lr: float) -> Iterator[int]:
        return train(
            self.model,
            self.train_batches,
            self.freezer,
            epochs=epochs,
            lr=lr,
            opt=self.recipe.opt,
            weight_decay=self.recipe.weight_decay,
            sched=self.recipe.sched,
            train_norm=self.train_norm,
            amp=self.amp,
            progress=partial(self.progress, phase),
        )

    def check_constants(self) -> None:
        """Raise NetworkError if training moved a buffer that the state dict leaves out, and with it the artifact."""
        for name, buffer in network.constants(self.model).items():
            if not torch.equal(buffer, self.constants[name]):
                raise NetworkError(
                    f"cannot pack this network: training changes {name}, which its state dict leaves out"
                )

    def _evaluate(self, phase: str) -> None:
        self.final = evaluate(self.model, self.val_batches, amp=self.amp)
        self.accuracy[phase] = self.final.top1
