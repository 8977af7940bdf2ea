"""Checks that come before hours of training, and what the user is told then."""

from pathlib import Path

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from packnet_cli.artifact import atomic, plan, verify
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.engine.data import sources, splits
from packnet_cli.errors import UsageError, did_you_mean, few, reason
from packnet_cli.images import location
from packnet_cli.progress import Say
from packnet_cli.recipe import Recipe


def check_settings(prune: float, max_drop: float | None = None, head_only: bool = False) -> None:
    """Raise UsageError for numbers out of range, and for options that exclude each other."""
    plan.check_fraction(prune)
    if max_drop is not None and not 0 <= max_drop < 100:
        raise UsageError(f"--max-drop must be a number of points from 0 and less than 100, not {max_drop}")
    if max_drop is not None and prune:
        raise UsageError("give either a fraction to prune, or the points that it may cost at most, for a search")
    if head_only and (prune or max_drop is not None):
        raise UsageError("--head-only claims no weights, so there is nothing to prune; leave out --prune and the like")


def check_optimizer(recipe: Recipe) -> None:
    """Raise UsageError unless timm knows the optimizer and it can take a step on this machine, at these rates."""
    opt = recipe.opt
    if opt.startswith("lookahead_"):
        raise UsageError(f"Lookahead is not supported; take {opt.removeprefix('lookahead_')} alone")
    if opt not in list_optimizers():
        hint = did_you_mean(opt, list_optimizers(), 0.4) or "try sgd, momentum or adamw"
        raise UsageError(f"timm knows no optimizer {opt!r}; {hint}")
    layer = nn.Linear(2, 2)
    layer(torch.zeros(1, 2)).sum().backward()
    try:
        for lr in (recipe.lr, recipe.retrain_lr):
            optimizer = create_optimizer_v2(layer, opt=opt, lr=lr, weight_decay=recipe.weight_decay)
        optimizer.step()
    except Exception as error:  # one that needs another package, a GPU, second derivatives, or a rate above 0
        raise UsageError(
            f"the optimizer {opt!r} cannot be used here ({reason(error)}); try momentum or adamw"
        ) from None


def load_whole(path: Path) -> Artifact:
    """The artifact at `path`, verified. Raises ArtifactError, also if the disk has no room for one more task."""
    artifact = verify.load_verified(path)
    largest = max(sum(array.nbytes for array in own.values()) for own in artifact.own)
    atomic.check_room(path, path.stat().st_size + largest)  # the new task's own tensors, roughly
    return artifact


def say_what_is_left_out(data: Path, say: Say) -> None:
    """Say which files and links in and beside the class folders are skipped."""
    if found := sources.left_out(data):
        say(f"skipped (a link, no image file extension, or in no class folder): {few([*map(str, found)], 1)}")


def say_what_is_used(name: str, images: splits.TrainingImages, say: Say) -> None:
    """Say how many images a task is trained and measured on, and which classes cannot be measured."""
    held_out = images.held_out
    counts = f"{len(images.classes):,} classes, {len(images.train.paths):,} images to train on"
    if held_out:
        where = "at random" if held_out.drawn else f"({held_out.where})"
        counts += f", {len(held_out.split.paths):,} held out {where}"
    say(f"{name}: {counts}")
    if missing := held_out.split.missing(images.classes) if held_out else images.classes:
        named = f"{len(missing)} of {len(images.classes)} classes have no image to hold out, {missing[0]!r} among them"
        say(f"{named}: trained on, not measured")


def warn_of_thin_share(artifact: Artifact, name: str, prune: float, recipe: Recipe, say: Say) -> None:
    """Warn if a new task of this name will own so little that it can learn little more than its head."""
    planned = plan.share_out(artifact, {name: prune}, recipe)
    [share] = planned.planned
    if planned.is_thin(share):
        owned = f"{100 * share.total / planned.packed_weights:.2g} % of the weights"
        hint = "; a smaller --prune leaves it more" if prune else ""
        say(f"{name} will own {owned}, and can learn little more than its head{hint}", warning=True)


def are_as_measured(task: Task, data: Path | None, images: splits.TrainingImages, say: Say) -> bool:
    """Whether the task's recorded accuracies are of these held-out images, in `data`, or none are at hand.

    Warns if it may have been trained on some of them.
    """
    held_out = images.held_out
    if held_out is None or data is None:
        return True
    if doubt := held_out.doubt(task):
        say(doubt, warning=True)
    return location(data) == task.data and held_out.are_those_of(task)
