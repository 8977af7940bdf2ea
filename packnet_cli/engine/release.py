"""How many of its weights a task is to release in each layer."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from packnet_cli.artifact import masks, plan
from packnet_cli.artifact.format import State
from packnet_cli.recipe import Recipe

LEEWAY = 0.4  # with rank "balanced" a layer keeps by so much of an equal share more or less than that, at most

Goals = dict[str, tuple[int, int]]  # by layer: how many weights the task owns there, and how many it is to release


def release_goals(
    mask: dict[str, masks.Mask], index: int, prune: float, recipe: Recipe, weights: Callable[[], State]
) -> Goals:
    """The goals of task `index` that is pruned by `prune`; `weights` are asked for only if layers compete."""
    owned = {layer: masks.count_owned(array, index) for layer, array in mask.items()}
    counts = partial(plan.release_counts, owned, keep_at_least=recipe.keep_at_least, skip_layers=recipe.skip_layers)
    if recipe.rank == "layer":
        wanted = counts(prune)
    else:
        values = weights()
        magnitudes = {layer: np.abs(values[layer][array == index]) for layer, array in mask.items()}
        equal, most = plan.release_counts(owned, prune), counts(1)
        bounds = {layer: _around(equal[layer], owned[layer]) for layer in owned} if recipe.rank == "balanced" else None
        across = masks.counts_across(magnitudes, sum(equal.values()), adaptive=recipe.rank != "global", bounds=bounds)
        wanted = {layer: min(count, most[layer]) for layer, count in across.items()}
    return {layer: (count, wanted[layer]) for layer, count in owned.items()}


def _around(equal: int, owned: int) -> tuple[int, int]:
    """The least and the most that a layer releases with rank "balanced", where an equal share is `equal` of `owned`."""
    keep = owned - equal
    return owned - min(owned, math.floor((1 + LEEWAY) * keep)), owned - math.ceil((1 - LEEWAY) * keep)
