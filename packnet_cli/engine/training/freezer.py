"""What no optimizer moves: the weights that a task in training does not own."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

PIECE = 2**17  # weights that a core writes back at once
LARGEST_PART = 0.5  # of a parameter: a larger one is neither faster nor smaller than the whole


class _Part:
    """The trainable weights of a parameter, and the vector that the optimizer has in place of it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.vector = nn.Parameter(parameter.new_empty(0))  # (k,)
        self.index = self.known = torch.empty(0, dtype=torch.int64)  # where they are in memory: (k,)

    def hold(self, mask: torch.Tensor) -> None:
        """Have what is True in `mask` as the vector, as it now is in the parameter."""
        self.index = self._flat(mask).nonzero().flatten()
        self.vector.data = self._part_of(self.parameter.detach())

    def forget_released(self, state: dict[str, Any]) -> None:
        """Leave of an optimizer's state of the vector what is still in it."""
        if len(self.known) > len(self.index):
            there = torch.zeros(self.parameter.numel(), dtype=torch.bool, device=self.index.device)
            there[self.index] = True
            kept = there[self.known]
            for what, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == kept.shape:
                    state[what] = value[kept]
        self.known = self.index

    @torch.no_grad()
    def take_gradient(self) -> None:
        gradient, self.parameter.grad = self.parameter.grad, None
        self.vector.grad = None if gradient is None else self._part_of(gradient)

    def _part_of(self, values: torch.Tensor) -> torch.Tensor:
        flat = self._flat(values)
        return flat.take(self.index) if self._shared_by_threads() else flat.index_select(0, self.index)

    def write(self) -> None:
        flat, vector = self._flat(self.parameter.detach()), self.vector.detach()
        if self._shared_by_threads():
            flat.index_copy_(0, self.index, vector)
        else:
            flat.scatter_(0, self.index, vector)

    def _shared_by_threads(self) -> bool:
        """On a CPU some operations share their work among threads, but take twice as long for it as their likes."""
        return self.vector.device.type == "cpu" and torch.get_num_threads() > 1

    def _flat(self, values: torch.Tensor) -> torch.Tensor:
        """In the order in which the parameter lies in memory, such as channels last."""
        strides = self.parameter.stride()
        return values.permute(sorted(range(values.ndim), key=lambda n: strides[n], reverse=True)).reshape(-1)


class Freezer:
    """Holds every packed weight that is not trainable at its value, whatever the optimizer does.

    Masking gradients would not: weight decay, momentum and Adam's moments move a weight that has no gradient.
    So of a parameter that is trainable in part the optimizer gets that part, as a vector, and has neither work nor
    moments for the rest. If it is the larger part, or the optimizer needs the whole (`is_elementwise`), it gets the
    parameter, and after each step the frozen values are written back, in one pass; beside a copy of these that takes a
    byte of memory for each weight, and parts take no more.
    """

    def __init__(self, model: nn.Module, opt: str) -> None:
        self.parameters = dict(model.named_parameters())
        # Made deterministic, a GPU would have to sort before it could copy to an index.
        sorts = torch.are_deterministic_algorithms_enabled() and next(model.parameters()).device.type == "cuda"
        self.by_parts = is_elementwise(opt) and not sorts
        self.parts: dict[str, _Part] = {}
        self.held: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        # By parameter, and for good, as the optimizer's state has its shape, also in a checkpoint.
        self.in_part: dict[str, bool] = {}

    @torch.no_grad()
    def hold(self, values: dict[str, NDArray[np.float32]], trainable: dict[str, NDArray[np.bool_]]) -> None:
        """Set each named parameter to its `values`, and from now on hold it there except where `trainable`."""
        for name, array in values.items():
            parameter, count = self.parameters[name], int(np.count_nonzero(trainable[name]))
            parameter.copy_(torch.from_numpy(array))
            parameter.requires_grad_(count > 0)
            in_part = self.in_part.setdefault(name, self.by_parts and count <= LARGEST_PART * array.size)
            part, _ = self.parts.pop(name, None), self.held.pop(name, None)
            if count in (0, array.size):
                continue
            mask = torch.empty_like(parameter, dtype=torch.bool).copy_(torch.from_numpy(trainable[name]))
            if in_part:
                self.parts[name] = part or _Part(parameter)
                self.parts[name].hold(mask)
            else:
                frozen = parameter.detach().clone().masked_fill_(mask, 0)
                if parameter.device.type == "cpu":
                    mask, frozen = mask.view(torch.int8).neg_(), frozen.view(torch.int32)
                self.held[name] = parameter, mask, frozen

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer is to have, by name: the parameters, and of some the part of them that is trainable."""
        return self.parameters | {name: part.vector for name, part in self.parts.items()}

    def forget_released(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the optimizer forget what it knows of weights that since its last step are held, too."""
        for part in self.parts.values():
            part.forget_released(optimizer.state.get(part.vector, {}))

    def take_gradients(self) -> None:
        """Before a step: give the parts their gradients."""
        for part in self.parts.values():
            part.take_gradient()

    @torch.no_grad()
    def write_back(self) -> None:
        """After a step: have the parts where they belong, and the frozen values where they were."""
        for part in self.parts.values():
            part.write()
        for parameter, trainable, frozen in self.held.values():
            if trainable.dtype == torch.bool:
                torch.where(trainable, parameter, frozen, out=parameter)
            else:
                _write_bits(parameter, trainable, frozen)


def _write_bits(parameter: torch.Tensor, trainable: torch.Tensor, frozen: torch.Tensor) -> None:
    """`where` on a CPU, where torch's takes one weight at a time; on the bits it is four times as fast, and as exact.

    `trainable` is int8, 0 or -1, which is all ones, also once it is widened to 32 bits; `frozen` the bits as int32.
    """
    # By pieces, so that the mask is widened in the cache and not to a copy as large as the weights.
    rows = PIECE * torch.get_num_threads() // parameter[0].numel() + 1
    bits = parameter.view(torch.int32).split(rows)
    for weights, ones, values in zip(bits, trainable.split(rows), frozen.split(rows), strict=True):
        weights.bitwise_and_(ones).bitwise_or_(values)


@functools.cache
def is_elementwise(opt: str) -> bool:
    """Whether timm's optimizer moves each weight by that weight's own past alone, as SGD and Adam do.

    Others know a matrix from a vector (Adafactor, Muon), or look at the norm of the whole (LAMB). Found out by trying.
    """
    weights, *gradients = torch.randn(4, 128, 128, generator=torch.Generator().manual_seed(0))
    rows = F.normalize(weights)
    gradients = [each - (each * rows).sum(1, keepdim=True) * rows for each in gradients]  # AdamP looks for such

    def moved(weights: torch.Tensor, *gradients: torch.Tensor) -> torch.Tensor:
        parameter = nn.Parameter(weights.clone())
        optimizer = create_optimizer_v2([parameter], opt=opt, lr=0.1, weight_decay=0.1)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        return parameter.detach()

    whole = moved(weights, *gradients)
    return torch.allclose(whole.flatten()[::3], moved(*(each.flatten()[::3] for each in (weights, *gradients))))
