"""The whole story: start a packed model, add tasks to it, and prune the newest further.

The method is PackNet's (Mallya and Lazebnik, CVPR 2018, section 3): a task trains all free weights on top of the
frozen ones of earlier tasks, releases the smallest of its own in each layer, retrains the rest, and owns them for good.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils import random_seed as _seed

from packnet_cli.artifact import atomic, edit, format, masks, plan, verify
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.engine import base, data, network
from packnet_cli.engine.claim import Claim, claim_again, claim_free, claim_nothing
from packnet_cli.engine.distributed import check_equal, rank, together
from packnet_cli.engine.feed import CACHE_GB
from packnet_cli.engine.fit import fit_batch_size
from packnet_cli.engine.network import Kind
from packnet_cli.engine.newtask import Machine, NewTask, Progress, silent
from packnet_cli.engine.resume import CHECKPOINT_MINUTES, Keeper, Say, unsaid
from packnet_cli.engine.search import prune_as_far_as
from packnet_cli.engine.start import Origin, start_from
from packnet_cli.engine.train import check_optimizer
from packnet_cli.errors import ArtifactError, CapacityError, ConflictError, TaskError, UsageError
from packnet_cli.images import location, task_name
from packnet_cli.recipe import Recipe

# --- init -----------------------------------------------------------------------------------------------------------


@together
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
    prune: float | None = None,
    folder: Path | None = None,
    distill: Path | None = None,
    name: str | None = None,
    class_names: Path | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    workers: int | None = None,
    amp: bool | None = None,
    compile: bool | None = None,
    deterministic: bool = False,
    cache: str = "auto",
    cache_gb: float = CACHE_GB,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Artifact:
    """Make an artifact of a timm classifier's weights, write it to `path` and return it.

    The weights come from the file `weights`, else from timm's hub, else (not `pretrained`) from `seed`. `model_kwargs`
    go to timm.create_model; `data_config` overrides timm's: img_size (pixels), in_chans, mean, std, crop_pct,
    interpolation.

    Without `prune` all weights are free. With it the network keeps its own classifier as task 1: that fraction of each
    layer is released, and the rest retrained on the labelled images in `folder`, or on any images in `distill` with
    the unpruned network as teacher, or (neither) not at all. `class_names` is a file with the classifier's classes.

    Raises ArtifactError if `path` exists, unless `force`; NetworkError, DataError, TaskError, UsageError.
    """
    recipe = recipe or Recipe()
    atomic.check_writable(path)
    if path.exists() and not force:
        raise ArtifactError(f"{path} exists already; name another file, or replace it with --force")
    if prune is not None:
        _check_settings(prune, recipe)
    _seed(seed)
    origin = start_from(
        arch,
        weights=weights,
        pretrained=pretrained,
        model_kwargs=model_kwargs or {},
        data_config=data_config or {},
        keep_head=prune is not None,
        say=say,
    )
    if origin.remark:
        say(origin.remark)
    artifact = _all_free(origin)
    if prune is not None:
        classes = base.class_names(origin, class_names, folder)
        name = name or base.default_name(classes, folder)
        artifact.header.check_new_name(name)
        images, recipe = base.open_images(classes, folder, distill, recipe)
        claim = dataclasses.replace(claim_free(artifact, recipe), state=network.read(origin.model))
        machine = Machine(device, workers, amp, compile, deterministic, cache, cache_gb)
        recipe = fit_batch_size(path, claim, images, recipe, machine, retrain=True, resume=resume, say=say)
        keeper = Keeper(path, _run(claim, name, images, recipe, prune=prune, amp=amp), 60 * checkpoint_minutes, say)
        with keeper.listening(), network.enough_memory(recipe.batch_size), machine.training():
            task = NewTask(name, claim, images, recipe, machine, progress, keeper)
            if resume:
                task.go_on_from(keeper.load())
            task.measure("dense")
            task.prune_and_retrain(prune)
            artifact = _keep(task, claim, name, images, folder, prune)
            _write(artifact, path, task, keeper)
    else:
        _save(artifact, path)
    return artifact


def plan_init(
    arch: str,
    *,
    prune: float | None,
    name: str | None,
    recipe: Recipe,
    model_kwargs: dict[str, Any],
    data_config: dict[str, Any],
) -> plan.Plan:
    """Who would own what after `init` with these arguments. Needs no weights, and writes nothing."""
    _check_settings(prune or 0.0, recipe)
    origin = start_from(arch, weights=None, pretrained=False, model_kwargs=model_kwargs, data_config=data_config)
    wanted = {} if prune is None else {name or "task 1": prune}
    return plan.share_out(_all_free(origin), wanted, keep_at_least=recipe.keep_at_least, skip_layers=recipe.skip_layers)


def _all_free(origin: Origin) -> Artifact:
    """A network's weights as an artifact without tasks."""
    kinds = network.classify(origin.model, origin.header.head)
    state = network.read(origin.model)
    shared = {tensor: state[tensor] for tensor, kind in kinds.items() if kind is Kind.PACKED}
    mask = {tensor: np.zeros(array.shape, np.uint8) for tensor, array in shared.items()}
    own = {tensor: state[tensor] for tensor, kind in kinds.items() if kind is Kind.PER_TASK}
    return format.make(origin.header, shared, mask, (own,))


# --- add-task -------------------------------------------------------------------------------------------------------


@together
def add_task(
    path: Path,
    folder: Path,
    *,
    name: str | None = None,
    prune: float = 0.0,
    max_drop: float | None = None,
    head_only: bool = False,
    skip_bad_images: bool = False,
    recipe: Recipe | None = None,
    device: str = "auto",
    workers: int | None = None,
    amp: bool | None = None,
    compile: bool | None = None,
    deterministic: bool = False,
    cache: str = "auto",
    cache_gb: float = CACHE_GB,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Artifact:
    """Train the task in `folder` on the free weights, release the fraction `prune` of them in each layer, retrain.

    With `max_drop` the fraction is searched for: the largest after which top-1 is at most so many points lower. With
    `head_only` the task gets a head on what the newest task sees, and no weights.
    Returns the new artifact, already written to `path`; its last task is the new one. Whatever is raised, the file
    stays as it was: UsageError, ArtifactError, TaskError, CapacityError, DataError, DivergedError, ConflictError.
    """
    recipe = recipe or Recipe()
    # Try everything that can fail now, before hours of training.
    _check_settings(prune, recipe, max_drop, head_only)
    unchanged_since = atomic.stamp(path)
    artifact = _load_whole(path)
    _check_capacity(path, artifact, head_only)
    name = name or task_name(folder)
    artifact.header.check_new_name(name)
    images = data.open_training(folder, val_split=recipe.val_split, seed=recipe.seed)
    images = data.usable(images, skip_bad=skip_bad_images)
    claim = claim_nothing(artifact) if head_only else claim_free(artifact, recipe)
    kept, aside = images.train, None
    if max_drop is not None:
        kept, aside = data.set_aside(images.train, recipe.val_split, recipe.seed)
    machine = Machine(device, workers, amp, compile, deterministic, cache, cache_gb)
    retrain = bool(prune) or max_drop is not None
    recipe = fit_batch_size(path, claim, images, recipe, machine, retrain=retrain, resume=resume, say=say)

    run = _run(claim, name, images, recipe, prune=prune, max_drop=max_drop, amp=amp)
    keeper = Keeper(path, run, 60 * checkpoint_minutes, say)
    with keeper.listening(), network.enough_memory(recipe.batch_size), machine.training():
        images = dataclasses.replace(images, train=kept)
        task = NewTask(name, claim, images, recipe, machine, progress, keeper)
        if resume:
            task.go_on_from(keeper.load())
        task.train()
        search: dict[str, float] = {}
        if max_drop is not None and aside is not None:
            task.keep_result()  # so that a search that is stopped need not train again
            prune, search = prune_as_far_as(task, max_drop, task.feed(aside, training=False))
        elif prune:
            task.prune_and_retrain(prune)
        after = _keep(task, claim, name, images, folder, prune, search)
        _write(after, path, task, keeper, unchanged_since)
    return after


# --- prune ----------------------------------------------------------------------------------------------------------


@together
def prune_task(
    path: Path,
    wanted: str,
    *,
    prune: float,
    folder: Path | None = None,
    distill: Path | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    workers: int | None = None,
    amp: bool | None = None,
    compile: bool | None = None,
    deterministic: bool = False,
    cache: str = "auto",
    cache_gb: float = CACHE_GB,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    progress: Progress = silent,
    say: Say = unsaid,
) -> Artifact:
    """Release the fraction `prune` of what the newest task owns in each layer and retrain it, on its own images.

    Only the newest: every later task runs on an earlier one's weights, so that they cannot go. What is released keeps
    the value that the task had given it as the dormant one. The recipe is by default the one that the task was trained
    by; `folder` and `distill` are as for `init`. Returns the new artifact; errors are those of `add_task`.
    """
    unchanged_since = atomic.stamp(path)
    artifact = _load_whole(path)
    entry = artifact.header.task(wanted)
    newest = artifact.header.tasks[-1]
    if entry != newest:
        raise TaskError(
            f"task {entry.index} ({entry.name}) cannot be pruned any more: later tasks run on its weights. "
            f"Only the newest can, {newest.index} ({newest.name})"
        )
    if not any(entry.owned.values()):
        raise CapacityError(f"task {entry.index} ({entry.name}) owns no weights to release")
    recipe = recipe or Recipe.recorded(entry.recipe)
    _check_settings(prune, recipe)
    if folder is None and entry.data and distill is None:
        folder = Path(entry.data)
    images, recipe = base.open_images(entry.classes, folder, distill, recipe)
    claim, machine = claim_again(artifact), Machine(device, workers, amp, compile, deterministic, cache, cache_gb)
    recipe = fit_batch_size(path, claim, images, recipe, machine, retrain=True, resume=resume, say=say)
    keeper = Keeper(path, _run(claim, entry.name, images, recipe, prune=prune, amp=amp), 60 * checkpoint_minutes, say)
    with keeper.listening(), network.enough_memory(recipe.batch_size), machine.training():
        task = NewTask(entry.name, claim, images, recipe, machine, progress, keeper)
        task.accuracy |= {"dense": entry.accuracy["dense"]} if "dense" in entry.accuracy else {}
        if resume:
            task.go_on_from(keeper.load())
        task.prune_and_retrain(prune)
        total = 1 - (1 - entry.prune) * (1 - prune)
        after = _keep(task, claim, entry.name, images, folder, total, entry.search)
        _write(after, path, task, keeper, unchanged_since)
    return after


# --- what they share ------------------------------------------------------------------------------------------------


def _check_settings(prune: float, recipe: Recipe, max_drop: float | None = None, head_only: bool = False) -> None:
    if not 0 <= prune < 1:
        raise UsageError(f"--prune must be at least 0 and less than 1, not {prune}")
    if max_drop is not None and not 0 <= max_drop < 100:
        raise UsageError(f"--max-drop is a number of points from 0 to 100, not {max_drop}")
    if head_only and (prune or max_drop is not None):
        raise UsageError("--head-only claims no weights, so there is nothing to prune; leave out --prune")
    check_optimizer(recipe.opt)


def _load_whole(path: Path) -> Artifact:
    """The artifact at `path`, if every task in it is what was added, and the disk has room for one more."""
    artifact = verify.load_verified(path)
    largest = max(sum(array.nbytes for array in own.values()) for own in artifact.own)
    atomic.check_room(path, path.stat().st_size + largest)  # the new task's own tensors, roughly
    return artifact


def _check_capacity(path: Path, artifact: Artifact, head_only: bool) -> None:
    tasks = artifact.header.tasks
    if artifact.header.last_index >= masks.MAX_TASKS:
        raise CapacityError(f"{path} holds {masks.MAX_TASKS} tasks, the most that one file can; start another")
    if head_only and not tasks:
        raise UsageError("--head-only needs a task whose weights it can use; add one, or keep the base: init --prune")
    if not head_only and artifact.free_count() == 0:
        room = f"make room with `packnet prune {path} --task {tasks[-1].index} --prune 0.5`, or "
        if not any(tasks[-1].owned.values()):
            room = ""
        raise CapacityError(f"no free weights are left in {path}; {room}train a classifier alone with --head-only")


def _run(
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


def _keep(
    task: NewTask,
    claim: Claim,
    name: str,
    images: data.TrainingImages,
    folder: Path | None,
    prune: float,
    search: dict[str, float] | None = None,
) -> Artifact:
    """The artifact with the trained task in it, if training left everything else alone."""
    task.check_constants()
    final = task.final
    entry = Task(
        index=claim.index,
        name=name,
        classes=images.classes,
        prune=prune,
        owned={},
        accuracy=task.accuracy,
        top1=final.top1 if final else None,
        top5=final.top5 if final else None,
        images=final.images if final else 0,
        data=location(folder) if folder else "",
        recipe=dataclasses.asdict(task.recipe),
        search=search or {},
        digest="",
        skipped=images.skipped,
        temperature=task.temperature(),
    )
    state = network.read(task.model)
    own = {tensor: array for tensor, array in state.items() if tensor not in task.mask}
    return edit.with_task(claim.artifact, entry, state, task.mask, own)


def _write(
    artifact: Artifact, path: Path, task: NewTask, keeper: Keeper, unchanged_since: atomic.Stamp | None = None
) -> None:
    """Write the artifact. If that cannot be, what was trained is kept as the checkpoint."""
    try:
        _save(artifact, path, unchanged_since)
    except (ArtifactError, ConflictError) as error:
        if task.keep_result():
            raise type(error)(f"{error}. What was trained is kept: when that is mended, --resume writes it") from None
        raise
    keeper.remove()


def _save(artifact: Artifact, path: Path, unchanged_since: atomic.Stamp | None = None) -> None:
    """Write the artifact, which is the same in every process of the run, in the first."""
    check_equal("".join(task.digest for task in artifact.header.tasks))
    if not rank():
        format.save(artifact, path, unchanged_since=unchanged_since)
