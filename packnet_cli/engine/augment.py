"""Training augmentation of decoded images, as timm has it: a random resized crop and a horizontal flip.

The pixels stay uint8 tensors where they are. On a CPU such a crop is many times as fast as PIL's; on a GPU it takes a
few launches.
"""

import math
import random

import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil

RATIO = 3 / 4, 4 / 3  # of width to height
TRIES = 10
SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)  # what torch resizes tensors by, antialiased

Box = tuple[int, int, int, int]  # top, left, height, width


def augmented(
    image: torch.Tensor, size: tuple[int, int], interpolation: InterpolationMode, crop_scale: float, rng: random.Random
) -> torch.Tensor:
    """A random part of an image (C, H, W), at least `crop_scale` of it, resized to `size`; half of them are flipped."""
    top, left, height, width = random_box(image.shape[-2], image.shape[-1], crop_scale, rng)
    part = resized(image[:, top : top + height, left : left + width], size, interpolation)
    return part.flip(-1) if rng.random() < 0.5 else part


def random_box(height: int, width: int, crop_scale: float, rng: random.Random) -> Box:
    """A part of an image of random area and aspect ratio, as timm.data.RandomResizedCropAndInterpolation draws it."""
    for _ in range(TRIES):
        area = height * width * rng.uniform(crop_scale, 1)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def resized(image: torch.Tensor, size: tuple[int, int], interpolation: InterpolationMode) -> torch.Tensor:
    """An image (C, H, W), uint8, at another size (height, width), without aliasing."""
    found: torch.Tensor
    if interpolation not in SMOOTH:  # PIL alone has them
        found = pil.pil_to_tensor(pil.resize(pil.to_pil_image(image.cpu()), list(size), interpolation))
        return found.to(image.device)
    pixels = image[None] if image.device.type == "cpu" else image[None].float()  # as uint8 on the CPU alone
    found = interpolate(pixels, size, mode=interpolation.value, antialias=True)[0]
    return found if found.dtype == torch.uint8 else found.round_().clamp_(0, 255).byte()
