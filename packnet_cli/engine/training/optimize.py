"""timm's optimizers and schedules for a phase of training, at one learning rate or multiples of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from packnet_cli.errors import DivergedError

MOMENTUM = 0.9  # the paper's, for optimizers that have one


@dataclass(frozen=True)
class Optimization:
    """An optimizer and its schedule, by timm's names; `rates` names parameters that learn at a multiple of the rate.

    The learning rate is `lr` times `lr_scale`.
    """

    opt: str
    lr: float
    sched: str
    weight_decay: float
    lr_scale: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)

    def optimizer(self, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer for what is `trained` of each of the model's parameters, by their names."""
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=self.opt,
            lr=self.lr * self.lr_scale,
            weight_decay=self.weight_decay,
            momentum=MOMENTUM,
            param_group_fn=partial(self._groups, trained=trained),
            **fused(self.opt, next(model.parameters()).device),
        )
        return optimizer

    def scheduler(self, optimizer: torch.optim.Optimizer, epochs: int, batches: int) -> Scheduler | None:
        """The schedule over so many epochs of so many batches, updated at each step; None if the rate is constant.

        "step" divides the rate by ten for the second half, as in the paper; "poly" is linear.
        """
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=self.sched,
            num_epochs=epochs,
            decay_epochs=math.ceil(epochs / 2),
            decay_rate=1.0 if self.sched == "poly" else 0.1,  # of a polynomial, its power
            step_on_epochs=False,
            updates_per_epoch=batches,
        )
        return scheduler

    def diverged(self, what: str) -> DivergedError:
        """The error for a diverged training; `what` says how that showed."""
        raised = "" if self.lr_scale == 1 else f", which was raised {self.lr_scale:.3g} times, or --lr-scale none"
        decayed = f", or a lower weight decay than {self.weight_decay:g}" if self.weight_decay else ""
        return DivergedError(
            f"training diverged: {what}; nothing was written. "
            f"Try a lower learning rate than {self.lr:g}{raised}{decayed}"
        )

    def _groups(self, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """timm's parameter groups, with and without weight decay, each split by rate; nearest the plain rate first.

        In place of the model's parameters they hold what is `trained` of them, by name.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        tables: set[str] = getattr(model, "no_weight_decay", set)()
        groups = []
        for multiple in sorted({1.0, *self.rates.values()}, key=lambda multiple: abs(multiple - 1)):
            for group in param_groups_weight_decay(model, self.weight_decay, no_weight_decay_list=tables):
                found = [names[id(parameter)] for parameter in group["params"]]
                parameters = [trained[name] for name in found if self.rates.get(name, 1.0) == multiple]
                groups.append(group | {"params": parameters, "lr": self.lr * self.lr_scale * multiple})
        return [group for group in groups if group["params"]]


def fused(opt: str, device: torch.device) -> dict[str, bool]:
    """The argument that selects torch's fused optimizers, if timm takes `opt` from torch.

    Not for SGD on a CPU, where it costs more than it gains: it copies channels-last gradients.
    """
    have = {torch.optim.Adam, torch.optim.AdamW, *([torch.optim.SGD] if device.type == "cuda" else [])}
    there = device.type in ("cpu", "cuda") and get_optimizer_class(opt, bind_defaults=False) in have
    return {"fused": True} if there else {}
