"""The trainable part of a parameter, as a vector for the optimizer."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from packnet_cli.engine import convolutions

# These only do what autocast casts; other modules may do more with their weights.
CASTABLE = nn.Conv2d, nn.Linear, *convolutions.KINDS


class Part:
    """The trainable weights of a parameter, and the vector that the optimizer gets in its place."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.vector = nn.Parameter(parameter.new_empty(0))  # (k,)
        self.index, self.start = torch.empty(0, dtype=torch.int64), 0  # memory positions plus `start` (k,)
        self.known: torch.Tensor | None = None  # memory positions of the optimizer's state, if these are others

    def hold(self, mask: torch.Tensor) -> None:
        """Make the weights where `mask` is True the vector, at their present values."""
        if self.known is None:
            self.known = self._positions().int()
        self.index, self.start = flat(mask, self.parameter).nonzero().flatten(), 0
        self.vector.data = self._part_of(self.parameter.detach())

    def forget_released(self, state: dict[str, Any]) -> None:
        """Cut the optimizer's state of the vector down to the weights still in it."""
        if self.known is not None and len(self.known) > len(self.index):
            there = torch.zeros(self.parameter.numel(), dtype=torch.bool, device=self.index.device)
            there[self._positions()] = True
            kept = there[self.known.long()]
            for what, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == kept.shape:
                    state[what] = value[kept]
        self.known = None

    def take_gradient(self) -> None:
        gradient, self.parameter.grad = self.parameter.grad, None
        self.vector.grad = None if gradient is None else self._part_of(gradient)

    def _part_of(self, values: torch.Tensor) -> torch.Tensor:
        values = flat(values, self.parameter)
        return values.take(self.index) if self._shared_by_threads() else values.index_select(0, self.index)

    def write(self) -> None:
        values, index, vector = flat(self.parameter.detach(), self.parameter), self._positions(), self.vector.detach()
        if self._shared_by_threads():
            values.index_copy_(0, index, vector)
        else:
            values.scatter_(0, index, vector)

    def _positions(self) -> torch.Tensor:
        return self.index - self.start if self.start else self.index

    def _shared_by_threads(self) -> bool:
        """Whether to use the multi-threaded variants (CPU, several threads), which cost twice the work."""
        return self.vector.device.type == "cpu" and torch.get_num_threads() > 1


def wants_copies(device: torch.device, *, amp: bool, compiled: bool | None) -> bool:
    """Whether a network computes with copies: where kernel launches take time, unless torch.compile saves them."""
    return device.type == "cuda" and amp and not compiled


class Copied(nn.Module):
    """A network that computes with bfloat16 copies of its parameters that are trained in part.

    Autocast would cast all of their weights in each step, and all gradients back. Here only trainable weights are
    cast, those of all layers at once, as on a GPU each launch takes time. The results are the same to the bit, for
    weights that are used once in a pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.parts: dict[str, Part] = {}
        self.flat: nn.Parameter | None = None  # the copies, concatenated
        self.index = self.vectors = torch.empty(0)  # positions in `flat` of the vectors, and these, concatenated: (k,)

    def hold(self, parts: dict[str, Part]) -> None:
        """Copy the parameters of these parts, given by name, and concatenate the vectors."""
        if parts.keys() != self.parts.keys():
            count = sum(part.parameter.numel() for part in parts.values())
            device = next(self.model.parameters()).device
            self.flat = nn.Parameter(torch.empty(count, dtype=torch.bfloat16, device=device)) if parts else None
        self.parts = parts
        self.index = self.vectors = torch.empty(0)  # frees the old ones before there are new ones
        if self.flat is None:
            return
        self.index = torch.cat([part.index for part in parts.values()])
        self.vectors = torch.cat([part.vector.detach() for part in parts.values()])
        pieces = self._by_parameter(self.flat.detach()), self._by_part(self.index), self._by_part(self.vectors)
        for part, copy, index, vector in zip(parts.values(), *pieces, strict=True):
            copy.copy_(flat(part.parameter.detach(), part.parameter))
            # Views: another index would take eight bytes for each free weight.
            part.vector.data, part.index, part.start = vector, index, int(copy.storage_offset())
            index += part.start

    def forward(self, images: torch.Tensor) -> Any:
        if self.flat is None:
            return self.model(images)
        pieces = zip(self.parts.items(), self._by_parameter(self.flat), strict=True)
        weights = {name: _shaped(piece, part.parameter) for (name, part), piece in pieces}
        return functional_call(self.model, weights, (images,))

    def take_gradients(self) -> None:
        """Take the gradients of the parts' vectors from those of the copies."""
        if self.flat is None or self.flat.grad is None:
            return
        gradients = self._by_part(self.flat.grad.index_select(0, self.index).float())
        self.flat.grad = None
        for part, gradient in zip(self.parts.values(), gradients, strict=True):
            part.vector.grad = gradient

    def write(self) -> None:
        """Write the vectors into the copies, but not into the parameters."""
        if self.flat is not None:
            self.flat.detach().index_copy_(0, self.index, self.vectors.bfloat16())

    def _by_parameter(self, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(numbers, [part.parameter.numel() for part in self.parts.values()])

    def _by_part(self, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(numbers, [part.vector.numel() for part in self.parts.values()])


def _order(parameter: torch.Tensor) -> list[int]:
    """The parameter's dimensions in memory order, which may be channels last."""
    strides = parameter.stride()
    return sorted(range(parameter.ndim), key=lambda n: strides[n], reverse=True)


def flat(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Values of the parameter's shape, flattened in its memory order."""
    return values.permute(_order(parameter)).reshape(-1)


def _shaped(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The inverse of `flat`: in the parameter's shape and memory layout."""
    order = _order(parameter)
    back = [order.index(n) for n in range(parameter.ndim)]
    return values.view([parameter.shape[n] for n in order]).permute(back)
