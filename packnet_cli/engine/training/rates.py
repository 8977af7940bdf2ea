"""How fast a task's weights learn: the plain rate, its factor for a task that owns few, and each layer's multiple."""

import dataclasses
import re
from collections.abc import Sequence
from itertools import groupby

from timm.optim import param_groups_layer_decay
from torch import nn

from packnet_cli.artifact import masks
from packnet_cli.artifact.format import Artifact
from packnet_cli.artifact.header import is_of_head
from packnet_cli.engine import network
from packnet_cli.engine.claim import Claim
from packnet_cli.progress import Say
from packnet_cli.recipe import Recipe, UsualRate, flag

MOST_SCALE = 10.0  # limit of `lr_scale`, however few weights a task owns


def settle_rates(artifact: Artifact, recipe: Recipe, say: Say) -> Recipe:
    """The recipe with its usual learning rates, if it leaves them open, as they are to be for this network.

    That is, as they are with batch norm, and a third of that without it or where the network `ends_without_norm`.
    """
    usual = {name: getattr(recipe, name) for name in ("lr", "retrain_lr")}
    usual = {name: float(rate) for name, rate in usual.items() if isinstance(rate, UsualRate)}
    if not usual:
        return recipe
    names = [name for name, _ in network.build_blank(artifact.header, 1).named_parameters()]
    ends = ends_without_norm(artifact, names)
    if ends or not has_batch_norm(artifact):
        usual = {name: rate / 3 for name, rate in usual.items()}
        why = "no norm follows this network's last layers" if ends else "this network has no batch norm"
        say(f"{' and '.join(map(flag, usual))} a third of the usual, {min(usual.values()):.3g}: {why}")
    return dataclasses.replace(recipe, **usual)


def has_batch_norm(artifact: Artifact) -> bool:
    """Whether some of its norms keep running statistics."""
    return any(name.endswith(".running_mean") for name in artifact.own[0])


def has_norm(artifact: Artifact) -> bool:
    """Whether it has norms of some kind, as ResNet and ViT; VGG and NFNet have none."""
    norms = (name for name, array in artifact.own[0].items() if name.endswith(".weight") and array.ndim == 1)
    return has_batch_norm(artifact) or any(norms)


def lr_scale(claim: Claim, recipe: Recipe, names: Sequence[str]) -> float:
    """The factor for the learning rates: the fewer weights the task owns, the larger.

    A step's effect on the network is the sum of its effects through each weight: at the same rate, a network in which a
    quarter of the weights can move learns about a quarter as fast as one in which all can. One that `ends_without_norm`
    keeps the plain rate. `names` are the network's parameters, in order.
    """
    owned = sum(masks.count_owned(array, claim.index) for array in claim.mask.values())
    if not owned or recipe.lr_scale == "none" or ends_without_norm(claim.artifact, names):
        return 1.0
    return min(MOST_SCALE, sum(array.size for array in claim.mask.values()) / owned)


def ends_without_norm(artifact: Artifact, names: Sequence[str]) -> bool:
    """Whether no norm follows the network's last two layers before the head, as in VGG: it dies at high rates.

    `names` are the network's parameters, in order.
    """
    before_head = [name for name in names if not is_of_head(name, artifact.header.head)]
    layers = [layer for layer, _ in groupby(re.sub("(weight|bias)$", "weight", name) for name in before_head)]
    return all(layer in artifact.mask for layer in layers[-2:])


def multiples(model: nn.Module, recipe: Recipe, head: tuple[str, ...]) -> dict[str, float]:
    """Trained parameters' multiples of the learning rate, by name; 1 for those that are not named.

    In each of timm's layers it is `layer_decay` times the next one's, from 1 in the last, and `head_lr` in the head.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(model, layer_decay=recipe.layer_decay) if recipe.layer_decay < 1 else []
    by_layer = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    return by_layer | {name: recipe.head_lr for name in names.values() if is_of_head(name, head)}
