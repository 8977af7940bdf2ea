"""The whole story: start a packed model, add tasks to it, and prune the newest further.

The method is PackNet's (Mallya and Lazebnik, CVPR 2018, section 3): a task trains all free weights on top of the
frozen ones of earlier tasks, releases the smallest of its own in each layer, retrains the rest, and owns them for good.
"""

import dataclasses
from pathlib import Path
from typing import Any

from timm.utils import random_seed

from packnet_cli.artifact import atomic, plan
from packnet_cli.artifact.format import Artifact
from packnet_cli.engine import first_task, network
from packnet_cli.engine.checks import (
    are_as_measured,
    check_optimizer,
    check_settings,
    load_whole,
    say_what_is_left_out,
    say_what_is_used,
    warn_of_thin_share,
)
from packnet_cli.engine.claim import claim_again, claim_free, claim_nothing
from packnet_cli.engine.data import decoding, splits
from packnet_cli.engine.device import choose_device
from packnet_cli.engine.distributed import together
from packnet_cli.engine.fit import choose_recipe
from packnet_cli.engine.result import save, warn_of_guesses, with_trained, write
from packnet_cli.engine.search import prune_as_far_as
from packnet_cli.engine.session import Session
from packnet_cli.engine.start import all_free, start_from
from packnet_cli.errors import CapacityError, DataError, TaskError
from packnet_cli.images import task_name
from packnet_cli.machine import CHECKPOINT_MINUTES, THIS_MACHINE, Machine
from packnet_cli.progress import Progress, Say, silent, unsaid
from packnet_cli.recipe import ADAMW, FIRST_PHASE, SPLIT_SETTINGS, Recipe

# --- init -----------------------------------------------------------------------------------------------------------


@together
def init(
    path: str | Path,
    arch: str,
    *,
    weights: str | Path | None = None,
    pretrained: bool = True,
    model_kwargs: dict[str, Any] | None = None,
    data_config: dict[str, Any] | None = None,
    force: bool = False,
    prune: float | None = None,
    data: str | Path | None = None,
    distill: str | Path | None = None,
    name: str | None = None,
    class_names: str | Path | None = None,
    recipe: Recipe | None = None,
    machine: Machine = THIS_MACHINE,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Artifact:
    """Make an artifact of a timm classifier's weights, write it to `path` and return it.

    The weights come from the file `weights`, else from timm's hub, else (not `pretrained`) from the recipe's seed.
    `model_kwargs` go to timm.create_model; `data_config` overrides timm's: img_size (pixels), in_chans, mean, std,
    crop_pct, interpolation.

    Without `prune` all weights are free. With it the network keeps its own classifier as task 1: that fraction of each
    layer is released, and the rest retrained on the labelled images in `data`, or on any images in `distill` with
    the unpruned network as teacher, or (neither) not at all. `class_names` is a file with the classifier's classes.

    Raises ArtifactError if `path` exists, unless `force`; NetworkError, DataError, TaskError, UsageError,
    ConflictError, DivergedError, InterruptedRun.
    """
    path = Path(path)
    weights, data, distill, class_names = map(_as_path, (weights, data, distill, class_names))
    recipe = dataclasses.replace(recipe or Recipe(), anneal="twice")  # its only phase has the schedule
    unchanged_since = atomic.stamp(path)
    atomic.check_new(path, force)
    if prune is not None:
        check_settings(prune)
        check_optimizer(recipe)
        choose_device(machine.device)
    random_seed(recipe.seed)
    origin = start_from(
        arch,
        weights=weights,
        pretrained=pretrained,
        model_kwargs=model_kwargs or {},
        data_config=data_config or {},
        keep_head=prune is not None,
        say=say,
    )
    artifact = all_free(origin)
    if prune is None:
        save(artifact, path, unchanged_since)
        return artifact
    plan.check_release(artifact.free_counts(), prune, recipe)
    classes = first_task.class_names(origin, class_names, data)
    name = first_task.default_name(classes, data) if name is None else name
    artifact.header.check_new_name(name)
    images = splits.open_retraining(classes, data, distill, val_split=recipe.val_split, seed=recipe.seed)
    images = decoding.usable(images)
    if data is not None:
        say_what_is_left_out(data, say)
    warn_of_thin_share(artifact, name, prune, recipe, say)
    claim = dataclasses.replace(claim_free(artifact, recipe), state=network.read(origin.model))
    session = Session(path, machine, resume, checkpoint_minutes, progress, say)
    with session.training(name, claim, images, recipe, prune=prune) as task:
        task.measure("dense")
        task.prune_and_retrain(prune)
        artifact = with_trained(task, data, prune)
        write(artifact, path, task, unchanged_since)
    return artifact


# --- add-task -------------------------------------------------------------------------------------------------------


@together
def add_task(
    path: str | Path,
    data: str | Path,
    *,
    name: str | None = None,
    prune: float = 0.0,
    max_drop: float | None = None,
    head_only: bool = False,
    skip_bad_images: bool = False,
    recipe: Recipe | None = None,
    few_steps: Recipe | None = None,
    machine: Machine = THIS_MACHINE,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Artifact:
    """Train the task in `data` on the free weights, release the fraction `prune` of them in each layer, retrain.

    With `max_drop` the fraction is searched for: the largest after which top-1 is at most so many points lower. With
    `head_only` the task gets a head on what the newest task sees, and no weights. `few_steps` takes the place of
    `recipe` where that means fewer than FEW_STEPS steps, on a network with norms; without either it is AdamW's.
    Returns the new artifact, already written to `path`; its last task is the new one. Whatever is raised, the file
    stays as it was: UsageError, ArtifactError, NetworkError, TaskError, CapacityError, DataError, DivergedError,
    ConflictError, InterruptedRun.
    """
    path, data = Path(path), Path(data)
    few_steps = few_steps or recipe or ADAMW
    recipe = recipe or Recipe()
    few_steps = few_steps.with_split_of(recipe)  # what is held out does not depend on which is taken
    # Try everything that can fail now, before hours of training.
    check_settings(prune, max_drop, head_only)
    for possible in (recipe, few_steps):
        check_optimizer(possible)
    choose_device(machine.device)
    unchanged_since = atomic.stamp(path)
    artifact = load_whole(path)
    plan.check_capacity(path, artifact, head_only=head_only)
    for possible in (recipe, few_steps):
        plan.check_release(artifact.free_counts(), prune if max_drop is None else 1, possible)
    name = task_name(data) if name is None else name
    artifact.header.check_new_name(name)
    images = splits.open_training(data, val_split=recipe.val_split, seed=recipe.seed)
    images = decoding.usable(images, skip_bad=skip_bad_images, hint=", or go on without, with --skip-bad-images")
    say_what_is_left_out(data, say)
    say_what_is_used(name, images, say)
    if not (artifact.header.tasks or prune or head_only) and max_drop is None:
        say("the first task keeps all weights, and leaves none to another: --prune would release some")
    recipe = choose_recipe(artifact, images, recipe, few_steps, say)
    if not head_only and max_drop is None:
        warn_of_thin_share(artifact, name, prune, recipe, say)
    claim = claim_nothing(artifact) if head_only else claim_free(artifact, recipe)
    aside = None
    if max_drop is not None:
        kept, aside = splits.set_aside(images.train, recipe.val_split, recipe.seed)
        images = dataclasses.replace(images, train=kept)

    session = Session(path, machine, resume, checkpoint_minutes, progress, say)
    retrain = bool(prune) or max_drop is not None
    with session.training(name, claim, images, recipe, prune=prune, max_drop=max_drop, retrain=retrain) as task:
        task.train(retrained=bool(prune))
        search: dict[str, float] = {}
        if max_drop is not None and aside is not None:
            task.keep_result()  # so that a search that is stopped need not train again
            prune, search = prune_as_far_as(task, max_drop, task.feed(aside))
        elif prune:
            task.prune_and_retrain(prune)
        after = with_trained(task, data, prune, search)
        write(after, path, task, unchanged_since)
    warn_of_guesses(after.header.tasks[-1], images, say)
    return after


# --- prune ----------------------------------------------------------------------------------------------------------


@together
def prune_task(
    path: str | Path,
    wanted: str | int,
    *,
    prune: float,
    data: str | Path | None = None,
    distill: str | Path | None = None,
    recipe: Recipe | None = None,
    machine: Machine = THIS_MACHINE,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Artifact:
    """Release the fraction `prune` of what the newest task owns in each layer and retrain it, on its own images.

    Only the newest: every later task runs on an earlier one's weights, so that they cannot go. What is released keeps
    the value that the task had given it as the dormant one. The recipe is by default the one that the task was trained
    by, which in any case decides on the seed and the held-out images; `data` and `distill` are as for `init`. Returns
    the new artifact; errors are those of `add_task`.
    """
    path, data, distill = Path(path), _as_path(data), _as_path(distill)
    unchanged_since = atomic.stamp(path)
    artifact = load_whole(path)
    entry = artifact.header.task(wanted)
    newest = artifact.header.tasks[-1]
    if entry != newest:
        raise TaskError(
            f"task {entry} cannot be pruned any more: later tasks run on its weights. "
            f"Only the newest can, {newest.index} ({newest.name})"
        )
    if not any(entry.owned.values()):
        raise CapacityError(f"task {entry} owns no weights that it could release")
    trained = Recipe.recorded(entry.recipe)
    given = recipe or trained
    recipe = given.to_prune(trained)
    settled = (*FIRST_PHASE, *SPLIT_SETTINGS)
    if kept := [name for name in settled if getattr(given, name) != getattr(recipe, name) == getattr(trained, name)]:
        say(f"{', '.join(kept)}: kept as they were when task {entry} was added")
    check_settings(prune)
    check_optimizer(recipe)
    choose_device(machine.device)
    plan.check_release(entry.owned, prune, recipe)
    if data is None and entry.data:
        try:
            data = splits.remembered(entry, "say where it is with --data, or retrain on any images with --distill")
        except DataError:
            if distill is None:
                raise
            say(f"its images are no longer at {entry.data}, and --data names no others to measure it on", warning=True)
    images = splits.open_retraining(entry.classes, data, distill, val_split=recipe.val_split, seed=recipe.seed)
    images = decoding.usable(images, skip_bad=entry.skipped > 0)  # as it was added
    if data is not None:
        say_what_is_left_out(data, say)
    comparable = are_as_measured(entry, data, images, say)
    session = Session(path, machine, resume, checkpoint_minutes, progress, say)
    with session.training(entry.name, claim_again(artifact), images, recipe, prune=prune) as task:
        if comparable:
            task.accuracy |= {"dense": entry.accuracy["dense"]} if "dense" in entry.accuracy else {}
        else:
            task.measure("dense")
        task.prune_and_retrain(prune)
        total = min(1 - (1 - entry.prune) * (1 - prune), 1 - 2**-53)  # some weight is left, however it rounds
        after = with_trained(task, data, total, entry.search)
        write(after, path, task, unchanged_since)
    return after


def _as_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
