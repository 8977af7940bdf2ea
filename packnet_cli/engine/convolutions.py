"""Convolutions whose training oneDNN, torch's library on a CPU, gets wrong or slow, and their replacements.

They are used where gradients are enabled. Elsewhere, as in evaluation, all is torch's own, to the bit.
"""

import torch
from torch import nn
from torch.nn import functional as F

FEW_CHANNELS = 16  # less than what oneDNN takes at once
FEW_PIXELS = 4  # of an output that is computed as a product of matrices; with nine, that is no faster
WIDE = 256  # output channels from which this holds also for filters larger than 1 x 1; with fewer, for one pixel


def replace(model: nn.Module) -> None:
    """Replace them in a network on a CPU; its tensors and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = next((kind for kind in KINDS if kind.fits(module)), nn.Conv2d)


class _Sampling(nn.Conv2d):
    """A strided 1 x 1 convolution that is given only the pixels that it does not stride over.

    With few channels, channels last, oneDNN's gradient of it writes out of bounds (its issue 6035): RepVGG, MobileOne
    and FastViT, which begin with one, would crash, or learn from wrong numbers.
    """

    @staticmethod
    def fits(module: nn.Conv2d) -> bool:
        single = module.kernel_size == (1, 1) and module.padding == (0, 0)
        return single and module.stride != (1, 1) and module.in_channels < FEW_CHANNELS

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(images)
        down, across = self.stride
        seen = images[..., ::down, ::across].contiguous()  # or of one column, torch gets the gradient wrong, too
        return F.conv2d(seen, self.weight, self.bias, groups=self.groups)


class _Small(nn.Conv2d):
    """A convolution that is a product of matrices where its output has few pixels.

    With few, oneDNN takes up to five times as long to learn from them, and fourteen times without AVX-512
    (examples/MEASURED.md).
    """

    @staticmethod
    def fits(module: nn.Conv2d) -> bool:
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return False
        dense = module.groups == 1 and module.dilation == (1, 1)
        within = all(padding < taps for padding, taps in zip(module.padding, module.kernel_size, strict=True))
        return dense and within and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (down, across), (above, left) = self.stride, map(int, self.padding)
        rows, used_rows, vertical = _positions(images.shape[2], self.kernel_size[0], down, above)
        columns, used_columns, horizontal = _positions(images.shape[3], self.kernel_size[1], across, left)
        most = FEW_PIXELS if self.kernel_size == (1, 1) or self.out_channels >= WIDE else 1
        few = min(rows, columns) > 0 and rows * columns <= most
        if not (few and torch.is_grad_enabled()):
            return super().forward(images)
        # With channels last, as they are in memory, and as their gradients then are.
        filters = self.weight.permute(0, 2, 3, 1)[:, used_rows, used_columns]
        height, width = filters.shape[1:3]
        padded = F.pad(images, horizontal + vertical).permute(0, 2, 3, 1)
        # Not by unfold, whose gradient takes ten times as long.
        windows = [
            padded[:, top : top + height, start : start + width].flatten(1)
            for top in range(0, rows * down, down)
            for start in range(0, columns * across, across)
        ]
        # Two-dimensional: of more dimensions, without gradients, torch may copy the filters for each image.
        seen = torch.stack(windows, 1).flatten(0, 1)  # (pixels, height * width * channels)
        found = F.linear(seen, filters.flatten(1), self.bias)
        return found.view(len(images), rows, columns, -1).permute(0, 3, 1, 2)


KINDS: tuple[type[_Sampling | _Small], ...] = (_Sampling, _Small)


def _positions(size: int, taps: int, stride: int, padding: int) -> tuple[int, slice, tuple[int, int]]:
    """The positions of a filter along one axis of `size` pixels, and what of it and of the padding is used there.

    Of a filter on small images most taps may see only padding, wherever it stands, and are left out: of 3 x 3 on one
    pixel eight. Returns the number of positions, the taps left, and the padding before and after that these need.
    """
    count = (size + 2 * padding - taps) // stride + 1
    last = (count - 1) * stride - padding  # where the filter starts there
    first_tap, end_tap = max(0, -last), min(taps, padding + size)
    return count, slice(first_tap, end_tap), (padding - first_tap, last + end_tap - size)
