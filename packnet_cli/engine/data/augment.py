"""timm's training augmentation, of decoded images: a random resized crop, and flips.

The pixels are uint8 tensors. On a CPU each crop is resized by itself, many times as fast as by PIL; on a GPU a whole
batch at once, as matrix products, since kernel launches take most of the time there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil

from packnet_cli.recipe import Recipe

RATIO = 3 / 4, 4 / 3  # of width to height
TRIES = 10
DRAWS = 2 * TRIES + 3  # random numbers for a crop: area and ratio of each try, top, left, and the flips
SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)  # modes in which torch resizes tensors, antialiased
RGBA = 4  # channels

CANVAS = 2**28  # pixels times channels resized at once: half a gigabyte

Box = tuple[int, int, int, int]  # top, left, height, width
Flips = tuple[bool, bool]  # whether to mirror an image top to bottom, and left to right
Crop = tuple[torch.Tensor, Box, Flips]  # an image (C, H, W), the box to cut out, and how to flip that


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; the default is the paper's."""

    crop_scale: float = Recipe.crop_scale  # smallest part of an image that a crop shows
    hflip: float = Recipe.hflip  # probabilities of a mirroring left to right and of one top to bottom
    vflip: float = Recipe.vflip

    @classmethod
    def of(cls, recipe: Recipe) -> "Augmentation":
        """The augmentation that a recipe asks for."""
        return cls(crop_scale=recipe.crop_scale, hflip=recipe.hflip, vflip=recipe.vflip)

    def crop(self, image: torch.Tensor, draws: Sequence[float]) -> Crop:
        """A random crop of an image (C, H, W), determined by `draws` (DRAWS,), random numbers from 0 to below 1."""
        _, height, width = image.shape
        return image, random_box(height, width, self.crop_scale, draws), self._flips(draws[-1])

    def _flips(self, draw: float) -> Flips:
        mirrored = draw < self.hflip
        # Within the interval that has been hit, the number is again uniform.
        again = draw / self.hflip if mirrored else (draw - self.hflip) / (1 - self.hflip)
        return again < self.vflip, mirrored


def resized_alone(crop: Crop, size: tuple[int, int], interpolation: InterpolationMode) -> torch.Tensor:
    """A crop resized to (C, height, width), and flipped if asked to."""
    image, (top, left, height, width), (down, across) = crop
    # By numpy, in this thread alone. Torch would use several, and as many for every thread that reads images; with more
    # than there are cores they no longer spin but sleep while they wait, and training takes a fifth longer.
    cut = np.ascontiguousarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
    found = resized(torch.from_numpy(cut).permute(2, 0, 1), size, interpolation).numpy()
    flipped = found[:, :: -1 if down else 1, :: -1 if across else 1]
    # A copy for every flip: of one row or column numpy would make none, and torch takes no negative strides.
    return torch.from_numpy(flipped.copy() if down or across else np.ascontiguousarray(flipped))


def resized_together(
    crops: Sequence[Crop], size: tuple[int, int], interpolation: InterpolationMode, device: torch.device
) -> torch.Tensor:
    """Crops of images (C, H, W) of any sizes as a uint8 batch (N, C, height, width), within 1 of `resized_alone`."""
    images = [image for image, _, _ in crops]
    largest = [max(sides) for sides in zip(*(image.shape for image in images), strict=True)]
    if len(crops) > 1 and len(crops) * math.prod(largest) > CANVAS:
        half = len(crops) // 2
        halves = (resized_together(few, size, interpolation, device) for few in (crops[:half], crops[half:]))
        return torch.cat(list(halves))
    # Whole images, on the device or not: the products are then the same to the bit, wherever images are cached.
    # Half precision holds a pixel exactly, and the result to an eighth of a level.
    canvas = _canvas(images, device)
    count, channels, rows, columns = canvas.shape
    # Channels within rows: matmul then sees more rows or columns, and need not repeat a matrix for each channel.
    canvas = canvas.transpose(1, 2).to(torch.half, memory_format=torch.contiguous_format).flatten(1, 2)
    spans = moved(_spans(crops, size), device)
    down, across = _resizing(spans, max(size), max(rows, columns), interpolation).unbind(1)
    down, across = down[:, : size[0], :rows], across[:, : size[1], :columns]
    # One axis after the other, as PIL does it.
    narrow = (canvas @ across.mT).clamp_(0, 255)  # (N, H * C, width)
    found = (down @ narrow.view(count, rows, -1)).round_().clamp_(0, 255).byte()  # (N, height, C * width)
    return found.view(count, size[0], channels, size[1]).transpose(1, 2)


def _canvas(images: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Images (C, H, W) of any sizes, each in the upper left of its place in (N, C, H, W); the rest is undefined."""
    if len({image.shape for image in images}) == 1:
        return stacked(images, device)
    home = next((image.device for image in images if image.device == device), torch.device("cpu"))
    heights, widths = zip(*(image.shape[1:] for image in images), strict=True)
    # A GPU is fast at matrices whose sides are multiples of 8.
    sides = [-(-max(lengths) // 8) * 8 for lengths in (heights, widths)]
    canvas = torch.empty(len(images), len(images[0]), *sides, dtype=torch.uint8, device=home, pin_memory=home != device)
    for place, image, height, width in zip(canvas, images, heights, widths, strict=True):
        place[:, :height, :width] = moved(image, home)
    return moved(canvas, device)


def stacked(images: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Images (C, H, W) of one size as a batch (N, C, H, W) on the device."""
    if len({image.device for image in images}) == 1:
        return moved(torch.stack(list(images)), device)
    return torch.stack([moved(image, device) for image in images])


def moved(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor moved to the device, without waiting for a GPU."""
    if device.type != "cuda" or image.device.type != "cpu":
        return image.to(device)
    pinned = image if image.is_pinned() else image.contiguous().pin_memory()
    return pinned.to(device, non_blocking=True)


def _spans(crops: Sequence[Crop], size: tuple[int, int]) -> torch.Tensor:
    """Where each axis of each crop lies, as one tensor (5, N, 2) for `_resizing`, to be copied at once."""
    start, length = np.array([box for _, box, _ in crops]).reshape(-1, 2, 2).swapaxes(0, 1)  # each (N, 2)
    stop = start + length
    flipped = np.array([flips for _, _, flips in crops])  # such an axis runs from its stop to its start
    origin, step = np.where(flipped, stop, start), np.where(flipped, -length, length) / size
    return torch.from_numpy(np.stack((start, stop, origin, step, np.maximum(abs(step), 1))).astype(np.float32))


def _resizing(spans: torch.Tensor, size: int, side: int, interpolation: InterpolationMode) -> torch.Tensor:
    """Matrices (N, 2, size, side) that resize a part of each axis, as PIL and torch do.

    If one axis is shorter than the other, or resized to less, it uses the first columns, or rows, of its matrices.
    """
    start, stop, origin, step, reach = spans[..., None, None].unbind()  # each (N, 2, 1, 1)
    at = torch.arange(0.5, side, device=spans.device)
    centre = origin + step * torch.arange(0.5, size, device=spans.device)[:, None]
    near = 1 - ((at - centre) / reach).abs_()
    weight = near.clamp(min=0)
    if interpolation is InterpolationMode.BICUBIC:  # with a = -0.5
        weight = weight**2 * (1 - 2 * near) + (near + 1).clamp_(min=0) ** 2 * near / 2
    weight = weight * ((at > start) & (at < stop))
    return (weight / weight.sum(-1, keepdim=True)).half()


def random_box(height: int, width: int, crop_scale: float, draws: Sequence[float]) -> Box:
    """A part of an image of random area and aspect ratio, as timm.data.RandomResizedCropAndInterpolation draws it."""
    *tries, top, left, _ = draws
    for share, skew in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (crop_scale + (1 - crop_scale) * share)
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** skew
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            return int((height - h + 1) * top), int((width - w + 1) * left), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def by_torch(channels: int, interpolation: InterpolationMode) -> bool:
    """Whether torch resizes such images as PIL does, which has more modes, and weights colours by their opacity."""
    return interpolation in SMOOTH and channels != RGBA


def resized(image: torch.Tensor, size: tuple[int, int], interpolation: InterpolationMode) -> torch.Tensor:
    """An image (C, H, W), uint8, at another size (height, width), without aliasing."""
    if not by_torch(len(image), interpolation):
        found: torch.Tensor = pil.pil_to_tensor(pil.resize(pil.to_pil_image(image), list(size), interpolation))
    else:
        found = interpolate(image[None], size, mode=interpolation.value, antialias=True)[0]
    return found
