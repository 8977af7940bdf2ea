"""Which taps of a network's filters see anything but padding, at the size of its images.

Of 3 x 3 filters on a single pixel, as in the last layers of a network for large images that is given small ones, only
the tap in the middle does. The others' weights are nothing to any task, but small: if a layer's smallest weights are
released, they go first, and of those that matter hardly any are left to later tasks.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from packnet_cli.artifact.masks import Bools


@torch.no_grad()
def taps_in_use(model: nn.Module, size: tuple[int, ...]) -> dict[str, Bools]:
    """Those taps (height, width), by weight, for images of this size (C, H, W); only where there are others."""
    found: dict[str, Bools] = {}

    def look(module: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor, *, weight: str) -> None:
        used = np.logical_and.outer(*(_in_use(module, axis, inputs[0], output) for axis in (0, 1)))
        if not used.all():
            found[weight] = used

    hooks = [
        module.register_forward_hook(partial(look, weight=f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
    ]
    try:
        model.eval()(torch.zeros(1, *size, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _in_use(module: nn.Conv2d, axis: int, images: torch.Tensor, output: torch.Tensor) -> Bools:
    """Which taps along an axis, 0 for height or 1 for width, see one of the pixels at some position of the filter."""
    pixels, positions = images.shape[2 + axis], output.shape[2 + axis]
    stride, taps = module.stride[axis], module.dilation[axis] * np.arange(module.kernel_size[axis])
    before: Any = module.padding[axis]
    if not before or isinstance(before, str):  # "same", also timm's: as much as is needed, half of it before
        before = max(0, stride * (positions - 1) + int(taps[-1]) + 1 - pixels) // 2
    seen = stride * np.arange(positions)[:, None] - before + taps
    used: Bools = ((seen >= 0) & (seen < pixels)).any(0)
    return used
