"""What `--dry-run` shows: who would own what after a command. Trains nothing, and writes nothing."""

from pathlib import Path
from typing import Any

from packnet_cli.artifact import format, plan
from packnet_cli.engine import first_task
from packnet_cli.engine.checks import check_optimizer, check_settings, say_what_is_used
from packnet_cli.engine.data import splits
from packnet_cli.engine.modes import own_modes
from packnet_cli.engine.start import all_free, start_from
from packnet_cli.images import task_name
from packnet_cli.progress import Say
from packnet_cli.recipe import Recipe


@own_modes()
def plan_init(
    arch: str,
    *,
    weights: Path | None,
    pretrained: bool,
    prune: float | None,
    name: str | None,
    data: Path | None,
    distill: Path | None,
    class_names: Path | None,
    recipe: Recipe,
    model_kwargs: dict[str, Any],
    data_config: dict[str, Any],
    say: Say,
) -> plan.Plan:
    """Who would own what after `init` with these arguments. Fetches no weights, and writes nothing."""
    check_settings(prune or 0.0)
    check_optimizer(recipe)
    origin = start_from(
        arch,
        weights=weights,
        pretrained=pretrained,
        model_kwargs=model_kwargs,
        data_config=data_config,
        keep_head=prune is not None,
        fetch=False,
    )
    artifact, wanted = all_free(origin), dict[str, float]()
    if prune is not None:
        classes = first_task.class_names(origin, class_names, data)
        name = first_task.default_name(classes, data) if name is None else name
        artifact.header.check_new_name(name)
        plan.check_release(artifact.free_counts(), prune, recipe)
        splits.open_retraining(classes, data, distill, val_split=recipe.val_split, seed=recipe.seed)
        wanted[name] = prune
    return _share_out(artifact, wanted, recipe, say)


@own_modes()
def plan_task(path: Path, data: Path, *, name: str | None, prune: float, recipe: Recipe, say: Say) -> plan.Plan:
    """Who would own what after `add_task` with these arguments, layers as by `--rank layer`; writes nothing.

    Raises what `add_task` would for its share, its name and its images, except for images that cannot be decoded.
    """
    check_settings(prune)
    check_optimizer(recipe)
    artifact = format.load(path)
    artifact.header.check_changeable(path)
    plan.check_capacity(path, artifact)
    name = task_name(data) if name is None else name
    artifact.header.check_new_name(name)
    plan.check_release(artifact.free_counts(), prune, recipe)
    say_what_is_used(name, splits.open_training(data, val_split=recipe.val_split, seed=recipe.seed), say)
    return _share_out(artifact, {name: prune}, recipe, say)


def _share_out(artifact: format.Artifact, prunes: dict[str, float], recipe: Recipe, say: Say) -> plan.Plan:
    if recipe.rank != "layer":
        say(f"--rank {recipe.rank} shares out layers after training; shown is what --rank layer would", warning=True)
    return plan.share_out(artifact, prunes, recipe)
