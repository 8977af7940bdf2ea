"""Keeps every optimizer from moving the weights that a task in training does not own."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

from packnet_cli.engine.training.parts import CASTABLE, Copied, Part

PIECE = 2**17  # weights written back at once by each core
LARGEST_PART = 0.5  # of a parameter: a larger part takes as much time and memory as the whole


class Freezer:
    """Holds every packed weight that is not trainable at its value, whatever the optimizer does.

    Masking gradients is not enough: weight decay, momentum and Adam's moments move a weight that has no gradient.
    So where only part of a parameter is trainable, the optimizer gets that part, as a vector, and spends neither work
    nor moments on the rest. If it is the larger part, or the optimizer needs whole parameters (see `is_elementwise`),
    it gets the parameter, and after each step the frozen values are written back, in one pass. That takes five bytes of
    memory per weight, for a copy and a mask; parts take at most six.

    `network` is the module to train. With `copied`, training updates only copies of the parameters trained in part,
    until `write_parameters` is called.
    """

    def __init__(self, model: nn.Module, opt: str, *, copied: bool = False) -> None:
        self.parameters = dict(model.named_parameters())
        self.copied = Copied(model) if copied else None
        self.network = self.copied or model
        self.divisible = self._divisible(model) if is_elementwise(opt) else set()
        self.parts: dict[str, Part] = {}
        self.held: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        # By parameter; never changes, since the optimizer's state, also in a checkpoint, has the part's shape.
        self.in_part: dict[str, bool] = {}

    @torch.no_grad()
    def hold(self, trainable: dict[str, NDArray[np.bool_]]) -> None:
        """From now on hold each named parameter at its present values, except where it is `trainable`."""
        for name, where in trainable.items():
            parameter, count = self.parameters[name], int(np.count_nonzero(where))
            parameter.requires_grad_(count > 0)
            in_part = self.in_part.setdefault(name, name in self.divisible and count <= LARGEST_PART * where.size)
            part, _ = self.parts.pop(name, None), self.held.pop(name, None)
            if count in (0, where.size):
                continue
            mask = torch.empty_like(parameter, dtype=torch.bool).copy_(torch.from_numpy(where))
            if in_part:
                self.parts[name] = part or Part(parameter)
                self.parts[name].hold(mask)
            else:
                frozen = parameter.detach().clone().masked_fill_(mask, 0)
                if parameter.device.type == "cpu":
                    mask, frozen = mask.view(torch.int8).neg_(), frozen.view(torch.int32)
                self.held[name] = parameter, mask, frozen
        if self.copied:
            # A checkpoint from another device may have put other parameters in part; those have no copies.
            layers = self.parts.keys() & self.divisible
            self.copied.hold({name: self.parts[name] for name in self.parameters if name in layers})

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer gets, by name: the parameters, or for some only the trainable part, as a vector."""
        return self.parameters | {name: part.vector for name, part in self.parts.items()}

    def forget_released(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the optimizer forget its state of weights that have been held since its last step."""
        for part in self.parts.values():
            part.forget_released(optimizer.state.get(part.vector, {}))

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Before a step: give the parts their gradients."""
        if self.copied:
            self.copied.take_gradients()
        for part in self._uncopied():
            part.take_gradient()

    @torch.no_grad()
    def write_back(self) -> None:
        """After a step: put the parts into the network, and the frozen values back."""
        if self.copied:
            self.copied.write()
        for part in self._uncopied():
            part.write()
        for parameter, trainable, frozen in self.held.values():
            if trainable.dtype == torch.bool:
                torch.where(trainable, parameter, frozen, out=parameter)
            else:
                _write_bits(parameter, trainable, frozen)

    @torch.no_grad()
    def write_parameters(self) -> None:
        """Put the parts into their parameters too, if the network computes with copies of these."""
        if self.copied:
            for part in self.copied.parts.values():
                part.write()

    def _uncopied(self) -> list[Part]:
        copied = self.copied.parts if self.copied else {}
        return [part for name, part in self.parts.items() if name not in copied]

    def _divisible(self, model: nn.Module) -> set[str]:
        """The parameters that may be trained in part."""
        gpu = next(model.parameters()).device.type == "cuda"
        if gpu and (not self.copied or torch.are_deterministic_algorithms_enabled()):
            # A launch for each layer takes longer than writing back all of a small one; and a deterministic
            # index_copy_ sorts its index first.
            return set()
        if self.copied:
            return {f"{path}.weight" for path, module in model.named_modules() if type(module) in CASTABLE}
        return set(self.parameters)


def _write_bits(parameter: torch.Tensor, trainable: torch.Tensor, frozen: torch.Tensor) -> None:
    """torch.where for a CPU, where torch's own takes one weight at a time; on bits it is four times as fast, and exact.

    `trainable` is int8: 0, or -1, which is all ones also when widened to 32 bits; `frozen` holds the bits as int32.
    """
    # In pieces, so that the mask is widened within the cache, not into a copy as large as the weights.
    rows = PIECE * torch.get_num_threads() // parameter[0].numel() + 1
    bits = parameter.view(torch.int32).split(rows)
    for weights, ones, values in zip(bits, trainable.split(rows), frozen.split(rows), strict=True):
        weights.bitwise_and_(ones).bitwise_or_(values)


@functools.cache
def is_elementwise(opt: str) -> bool:
    """Whether timm's optimizer updates each weight from that weight's own history alone, as SGD and Adam do.

    Others treat matrices unlike vectors (Adafactor, Muon), or use the parameter's norm (LAMB). Determined by trying.
    """
    weights, *gradients = torch.randn(4, 128, 128, generator=torch.Generator().manual_seed(0))
    rows = F.normalize(weights)
    gradients = [each - (each * rows).sum(1, keepdim=True) * rows for each in gradients]  # AdamP treats these specially

    def moved(weights: torch.Tensor, *gradients: torch.Tensor) -> torch.Tensor:
        parameter = nn.Parameter(weights.clone())
        optimizer = create_optimizer_v2([parameter], opt=opt, lr=0.1, weight_decay=0.1)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        return parameter.detach()

    whole = moved(weights, *gradients)
    return torch.allclose(whole.flatten()[::3], moved(*(each.flatten()[::3] for each in (weights, *gradients))))
