"""Which weights a task releases in each layer, and in which steps."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from packnet_cli.artifact import masks, plan
from packnet_cli.artifact.format import State
from packnet_cli.recipe import Recipe

Goals = dict[str, tuple[int, int]]  # by layer: how many weights the task owns, and how many to release


def release_goals(
    mask: dict[str, masks.Mask], index: int, prune: float, recipe: Recipe, weights: Callable[[], State]
) -> Goals:
    """The goals for pruning task `index` by `prune`; `weights` is called only if layers compete."""
    owned = {layer: masks.count_owned(array, index) for layer, array in mask.items()}
    wanted = plan.release_counts(owned, prune, recipe)
    if recipe.rank != "layer":
        values, total = weights(), sum(wanted.values())
        wanted = plan.release_counts(owned, 1, recipe)  # the most that a layer can release
        competing = {layer: np.abs(values[layer][mask[layer] == index]) for layer, most in wanted.items() if most}
        while competing:  # what would be more than a layer's most, the others release in its place
            left = total - sum(most for layer, most in wanted.items() if layer not in competing)
            across = masks.counts_across(competing, left, adaptive=recipe.rank == "adaptive")
            if all(count <= wanted[layer] for layer, count in across.items()):
                wanted |= across
                break
            competing = {layer: competing[layer] for layer, count in across.items() if count < wanted[layer]}
    return {layer: (count, wanted[layer]) for layer, count in owned.items()}


@torch.no_grad()
def release_in_steps(
    mask: dict[str, masks.Mask],
    parameters: Mapping[str, nn.Parameter],
    index: int,
    goals: Goals,
    done: float,
    taps: Mapping[str, masks.Bools],
) -> None:
    """Release, in `mask` and `parameters`, what is due once the fraction `done` of the steps (up to 1) is.

    Most go first and ever fewer later: the cubic schedule of Zhu and Gupta (2017, arXiv 1710.01878). Of the layers in
    `taps` (see `taps_in_use`) the same fraction is released of the weights at those taps and of the others.
    """
    for layer, (claimed, count) in goals.items():
        owned = masks.count_owned(mask[layer], index)
        wanted = max(0, round(count * (1 - (1 - done) ** 3)) - (claimed - owned))  # a resumed run may be further on
        if layer not in taps:
            mask[layer] = _release(mask[layer], parameters[layer], index, wanted)
            continue
        used, mask[layer] = taps[layer], mask[layer].copy()
        of_used = round(wanted * masks.count_owned(mask[layer][..., used], index) / max(1, owned))
        for part, share in ((used, of_used), (~used, wanted - of_used)):
            weights = parameters[layer][..., torch.from_numpy(part)]  # (outputs, inputs, taps), a copy
            mask[layer][..., part] = _release(mask[layer][..., part], weights, index, share)
            parameters[layer][..., torch.from_numpy(part)] = weights


def _release(mask: masks.Mask, weights: torch.Tensor, index: int, count: int) -> masks.Mask:
    """A new mask, in which the `count` smallest of the task's weights are free; they become 0, in place."""
    if weights.device.type == "cuda":
        released = smallest(weights, torch.from_numpy(mask == index).to(weights.device), count)
        weights.masked_fill_(released, 0)
        after: masks.Mask = mask * ~released.cpu().numpy()
        return after
    values = weights.detach().cpu().contiguous().numpy()
    after = masks.release_smallest(mask, values, index, count)
    weights.copy_(torch.from_numpy(masks.keep_visible(values, after, index)))
    return after


def smallest(weights: torch.Tensor, owned: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the `count` smallest-magnitude weights among the `owned`, of their shape; ties go by position.

    The same weights as `masks.release_smallest` releases, found on their device by a sort, which is fast on a GPU.
    Raises ValueError if fewer are owned.
    """
    if not 0 <= count <= int(owned.sum()):
        raise ValueError(f"cannot release {count} of {int(owned.sum())} weights")
    if count == 0:
        return torch.zeros_like(owned)
    others = torch.iinfo(torch.int32).max
    keys = weights.contiguous().view(torch.int32) & others  # without the sign: magnitudes, in the same order
    keys.masked_fill_(~owned, others)
    cutoff = keys.flatten().sort().values[count - 1]
    found = keys < cutoff
    ties = (keys == cutoff).flatten().nonzero().flatten()
    found.view(-1)[ties[: count - int(found.sum())]] = True
    return found
