"""Which of its weights a task is to release in each layer, and in which steps."""

from collections.abc import Callable
from functools import partial

import numpy as np

from packnet_cli.artifact import masks, plan
from packnet_cli.artifact.format import State
from packnet_cli.recipe import Recipe

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
        total, most = sum(plan.release_counts(owned, prune).values()), counts(1)
        across = masks.counts_across(magnitudes, total, adaptive=recipe.rank == "adaptive")
        wanted = {layer: min(count, most[layer]) for layer, count in across.items()}
    return {layer: (count, wanted[layer]) for layer, count in owned.items()}


def release_in_steps(mask: dict[str, masks.Mask], weights: State, index: int, goals: Goals, done: float) -> None:
    """Release what is to be gone when the part `done` of the steps, up to 1, is; in `mask` and `weights`.

    Most go at first and ever fewer later: cubically, after Zhu and Gupta (2017, arXiv 1710.01878).
    """
    for layer, (claimed, count) in goals.items():
        so_far = claimed - masks.count_owned(mask[layer], index)
        wanted = round(count * (1 - (1 - done) ** 3))
        mask[layer] = masks.release_smallest(mask[layer], weights[layer], index, wanted - so_far)
        weights[layer] = masks.keep_visible(weights[layer], mask[layer], index)
