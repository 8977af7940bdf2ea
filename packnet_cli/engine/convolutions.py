"""Convolutions that oneDNN, by which torch computes on a CPU, gets wrong or slow where they learn: done otherwise.

What a network computes where it does not learn stays what torch computes, to the bit.
"""

import torch
from torch import nn
from torch.nn import functional as F

FEW_CHANNELS = 16  # less than what oneDNN takes at once
FEW_PIXELS = 4  # with nine, it is no faster


def replace(model: nn.Module) -> None:
    """Replace those of a network on a CPU; its tensors and their names stay."""
    kinds: list[type[_Sampling | _Small]] = [_Sampling, _Small]
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = next((kind for kind in kinds if kind.fits(module)), nn.Conv2d)


class _Sampling(nn.Conv2d):
    """A strided convolution of single pixels that, where it learns, sees only those that it does not stride over.

    With few channels, channels last, oneDNN's gradient of such writes where it must not (its issue 6035): RepVGG,
    MobileOne and FastViT, which begin like that, would crash, or learn from wrong numbers.
    """

    @staticmethod
    def fits(module: nn.Conv2d) -> bool:
        single = module.kernel_size == (1, 1) and module.padding == (0, 0)
        return single and module.stride != (1, 1) and module.in_channels < FEW_CHANNELS

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(images)
        down, across = self.stride
        return F.conv2d(images[..., ::down, ::across], self.weight, self.bias, groups=self.groups)


class _Small(nn.Conv2d):
    """A convolution that, where it learns and leaves few pixels of an image, is a product of matrices.

    Without AVX-512 oneDNN takes the gradient of its filters image by image, by which a step of a ResNet-18 at 32 pixels
    took 1.7 times as long (examples/MEASURED.md).
    """

    @staticmethod
    def fits(module: nn.Conv2d) -> bool:
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        plain = zeros and module.groups == 1 and module.dilation == (1, 1)
        return plain and module.kernel_size != (1, 1) and torch.backends.cpu.get_cpu_capability() == "AVX2"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (height, width), (down, across) = self.kernel_size, self.stride
        above, left = map(int, self.padding)
        rows = (images.shape[2] + 2 * above - height) // down + 1
        columns = (images.shape[3] + 2 * left - width) // across + 1
        few = min(rows, columns) > 0 and rows * columns <= FEW_PIXELS
        if not (few and torch.is_grad_enabled()):
            return super().forward(images)
        # With channels last, as they are in memory.
        seen = F.pad(images, (left, left, above, above)).unfold(2, height, down).unfold(3, width, across)
        seen = seen.permute(0, 2, 3, 4, 5, 1).flatten(3)  # (N, rows, columns, taps)
        return F.linear(seen, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(0, 3, 1, 2)
