"""What no optimizer moves: the weights that a task in training does not own."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

PIECE = 2**17  # weights that a core writes back at once


class Freezer:
    """Holds every packed weight that is not trainable at its value, whatever the optimizer does.

    Masking gradients would not: weight decay, momentum and Adam's moments move a weight that has no gradient.
    So after each step the frozen values are written back, in one pass over each partly frozen parameter. Beside the
    frozen values that takes a byte of memory for each weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.held: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def hold(self, values: dict[str, NDArray[np.float32]], trainable: dict[str, NDArray[np.bool_]]) -> None:
        """Set each named parameter to its `values`, and from now on hold it there except where `trainable`."""
        for name, array in values.items():
            parameter = self.parameters[name]
            parameter.copy_(torch.from_numpy(array))
            parameter.requires_grad_(bool(trainable[name].any()))
            self.held.pop(name, None)
            if parameter.requires_grad and not trainable[name].all():
                mask = torch.empty_like(parameter, dtype=torch.bool).copy_(torch.from_numpy(trainable[name]))
                frozen = parameter.detach().clone().masked_fill_(mask, 0)
                if parameter.device.type == "cpu":
                    mask, frozen = mask.view(torch.int8).neg_(), frozen.view(torch.int32)
                self.held[name] = parameter, mask, frozen

    @torch.no_grad()
    def write_back(self) -> None:
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
