"""Training augmentation of decoded images, as timm has it: a random resized crop and a horizontal flip.

The pixels are uint8 tensors. On a CPU each crop is resized by itself, many times as fast as by PIL; on a GPU all of a
batch together, as matrix products, since there the launches are what takes time.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil

RATIO = 3 / 4, 4 / 3  # of width to height
TRIES = 10
SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)  # what torch resizes tensors by, antialiased

CANVAS = 2**28  # pixels times channels that are resized at once: half a gigabyte

Box = tuple[int, int, int, int]  # top, left, height, width
Crop = tuple[torch.Tensor, Box, bool]  # of an image (C, H, W), and whether it is to be flipped


def random_crop(image: torch.Tensor, crop_scale: float, rng: random.Random) -> Crop:
    """A random part of an image (C, H, W), at least `crop_scale` of it; half of them are to be flipped."""
    return image, random_box(image.shape[-2], image.shape[-1], crop_scale, rng), rng.random() < 0.5


def resized_alone(crop: Crop, size: tuple[int, int], interpolation: InterpolationMode) -> torch.Tensor:
    """A crop at another size (C, height, width), flipped if it is to be."""
    image, (top, left, height, width), flipped = crop
    image = resized(image[:, top : top + height, left : left + width], size, interpolation)
    return image.flip(-1) if flipped else image


def resized_together(
    crops: Sequence[Crop], size: tuple[int, int], interpolation: InterpolationMode, device: torch.device
) -> torch.Tensor:
    """Crops of images (C, H, W) of any sizes as a batch (N, C, height, width), uint8, to within one of 255."""
    images, boxes, flipped = zip(*crops, strict=True)
    largest = [max(sides) for sides in zip(*(image.shape for image in images), strict=True)]
    if len(crops) > 1 and len(crops) * math.prod(largest) > CANVAS:
        half = len(crops) // 2
        halves = (resized_together(few, size, interpolation, device) for few in (crops[:half], crops[half:]))
        return torch.cat(list(halves))
    # Not waited for, as the numbers are few: else it would be for all that the GPU still has to do.
    top, left, height, width = torch.tensor(boxes).T.contiguous().to(device, non_blocking=True)
    mirrored = torch.tensor(flipped).to(device, non_blocking=True)[:, None, None]
    # Whole images, be they on the device or not: the products are then the same to the bit, wherever images are kept.
    # Half precision holds a pixel exactly, and what comes out to an eighth of a step.
    canvas = _canvas(images, device).half()
    down = _resizing(top, height, canvas.shape[2], size[0], interpolation)
    across = _resizing(left, width, canvas.shape[3], size[1], interpolation)
    across = torch.where(mirrored, across.flip(1), across)
    # One axis after the other, as PIL does it: (N, 1, height, H) times (N, C, H, W) times (N, 1, W, width).
    narrow = (canvas @ across.mT[:, None]).clamp_(0, 255)
    return (down[:, None] @ narrow).round_().clamp_(0, 255).byte()


def _canvas(images: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Images (C, H, W) in the upper left of places of one size (N, C, H, W); beside them is anything."""
    if len({image.shape for image in images}) == 1:
        return stacked(images, device)
    home = next((image.device for image in images if image.device == device), torch.device("cpu"))
    heights, widths = zip(*(image.shape[1:] for image in images), strict=True)
    # Sides that are multiples of 8 are what a GPU multiplies fast.
    sides = [-(-max(lengths) // 8) * 8 for lengths in (heights, widths)]
    canvas = torch.empty(len(images), len(images[0]), *sides, dtype=torch.uint8, device=home, pin_memory=home != device)
    for place, image, height, width in zip(canvas, images, heights, widths, strict=True):
        place[:, :height, :width] = image
    return moved(canvas, device)


def stacked(images: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Images (C, H, W) of one size as a batch (N, C, H, W) on the device."""
    if all(image.device.type == "cpu" for image in images):
        return moved(torch.stack(list(images)), device)
    return torch.stack([moved(image, device) for image in images])


def moved(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the device; a GPU is not waited for."""
    if device.type != "cuda" or image.device.type != "cpu":
        return image.to(device)
    pinned = image if image.is_pinned() else image.contiguous().pin_memory()
    return pinned.to(device, non_blocking=True)


def _resizing(
    starts: torch.Tensor, lengths: torch.Tensor, side: int, size: int, interpolation: InterpolationMode
) -> torch.Tensor:
    """Matrices (N, size, side) that resize a part of an axis, given by start and length (N,), as PIL and torch do."""
    scale = (lengths / size)[:, None, None]
    at = torch.arange(side, device=starts.device) + 0.5 - starts[:, None, None]
    centre = (torch.arange(size, device=starts.device) + 0.5)[:, None] * scale
    away = ((at - centre) / scale.clamp(min=1)).abs()
    if interpolation is InterpolationMode.BILINEAR:
        weight = (1 - away).clamp(min=0)
    else:  # bicubic, with a = -0.5
        near = (1.5 * away - 2.5) * away**2 + 1
        far = ((-0.5 * away + 2.5) * away - 4) * away + 2
        weight = torch.where(away < 1, near, torch.where(away < 2, far, 0))
    weight = weight * ((at > 0) & (at < lengths[:, None, None]))
    return (weight / weight.sum(2, keepdim=True)).half()


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
    if interpolation not in SMOOTH:  # PIL alone has them
        found: torch.Tensor = pil.pil_to_tensor(pil.resize(pil.to_pil_image(image), list(size), interpolation))
    else:
        found = interpolate(image[None], size, mode=interpolation.value, antialias=True)[0]
    return found
