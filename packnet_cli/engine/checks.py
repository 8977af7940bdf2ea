"""What can fail is tried before hours of training, and what a run is a run of is written down."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from packnet_cli.artifact import atomic, format, masks, plan, verify
from packnet_cli.artifact.format import Artifact
from packnet_cli.engine import data
from packnet_cli.engine.claim import Claim
from packnet_cli.engine.resume import Say
from packnet_cli.errors import CapacityError, UsageError, reason
from packnet_cli.recipe import AUTO, Recipe


def check_settings(prune: float, recipe: Recipe, max_drop: float | None = None, head_only: bool = False) -> None:
    plan.check_fraction(prune)
    if max_drop is not None and not 0 <= max_drop < 100:
        raise UsageError(f"--max-drop must be a number of points from 0 and less than 100, not {max_drop}")
    if head_only and (prune or max_drop is not None):
        raise UsageError("--head-only claims no weights, so there is nothing to prune; leave out --prune")
    if recipe.opt != AUTO:
        check_optimizer(recipe.opt)


def check_optimizer(opt: str) -> None:
    """Raise UsageError unless timm knows the optimizer, and it can take a step here."""
    if opt not in list_optimizers():
        close = ", ".join(difflib.get_close_matches(opt, list_optimizers(), cutoff=0.4)) or "sgd, momentum, adamw"
        raise UsageError(f"timm knows no optimizer {opt!r}; did you mean {close}?")
    layer = nn.Linear(2, 2)
    layer(torch.zeros(1, 2)).sum().backward()
    try:
        create_optimizer_v2(layer, opt=opt, lr=0.1).step()
    except Exception as error:  # one that needs another package, a GPU, or second derivatives
        raise UsageError(
            f"the optimizer {opt!r} cannot be used here ({reason(error)}); try momentum or adamw"
        ) from None


def load_whole(path: Path) -> Artifact:
    """The artifact at `path`, if every task in it is what was added, and the disk has room for one more."""
    artifact = verify.load_verified(path)
    largest = max(sum(array.nbytes for array in own.values()) for own in artifact.own)
    atomic.check_room(path, path.stat().st_size + largest)  # the new task's own tensors, roughly
    return artifact


def say_what_is_not_measured(images: data.TrainingImages, say: Say) -> None:
    """The classes of which nothing could be held out, as they have a single image."""
    if lone := images.classes if images.held_out is None else images.held_out.missing:
        named = f"{len(lone)} of {len(images.classes)} classes have one image only, {lone[0]!r} among them"
        say(f"{named}: it is trained on, not measured")


def check_capacity(path: Path, artifact: Artifact, head_only: bool) -> None:
    tasks = artifact.header.tasks
    if artifact.header.last_index >= masks.MAX_TASKS:
        raise CapacityError(
            f"{path} has given {masks.MAX_TASKS} tasks an index, the most that one file can; "
            "remove the newest, or start another file"
        )
    if head_only and not tasks:
        raise UsageError("--head-only needs a task whose weights it can use; add one, or keep the base: init --prune")
    if not head_only and artifact.free_count() == 0:
        room = f"make room with `packnet prune {path} --task {tasks[-1].index} --prune 0.5`, or "
        if not any(tasks[-1].owned.values()):
            room = ""
        raise CapacityError(f"no free weights are left in {path}; {room}train a classifier alone with --head-only")


def describe_run(
    claim: Claim, name: str, images: data.TrainingImages, recipe: Recipe, **how: float | bool | None
) -> dict[str, Any]:
    """What a training run depends on, so that a checkpoint of another one is told apart, by the name of it."""
    state = claim.state | {f"mask.{layer}": array for layer, array in claim.mask.items()}
    return {
        "task": name,
        **how,
        "recipe": dataclasses.asdict(recipe),
        "images": data.fingerprint(images),
        "weights": format.digest(state),
    }
