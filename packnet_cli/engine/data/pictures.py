"""A picture on its way into a network: opened, brought into the network's mode; and in words, why it cannot be."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from packnet_cli.errors import is_out_of_memory, reason
from packnet_cli.images import Picture

ENDINGS = (*IMG_EXTENSIONS, ".gif", ".avif")


def is_image_name(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def open_picture(picture: Picture) -> Image.Image:
    """The image, to be closed; its pixels are not decoded yet, unless they were stored as such.

    Raises whatever PIL or its decoders do: see `problem`.
    """
    if isinstance(picture, Path):
        if os.path.exists(picture) and not os.path.isfile(picture):
            raise OSError("no file")  # to open a pipe would be to wait
        found = picture
    else:
        found = picture.images(picture.index)
    image = found if isinstance(found, Image.Image) else Image.open(found)
    # PIL only warns of this size, and raises of twice as much.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    return image


def problem(error: Exception) -> str:
    """Why a picture cannot be used, by what was raised. Raises it again if memory was short: that is no fault of it."""
    if is_out_of_memory(error):
        raise error
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "no image, or damaged"
    return (isinstance(error, OSError) and error.strerror) or reason(error)


def convert(image: Image.Image, mode: str) -> Image.Image:
    """An image in the network's mode; of an animated one the first frame. Raises ValueError if that cannot be told."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, of unknown range")
    if image.mode.startswith("I"):  # 16 bits, of which PIL would show the least 8, cut off at white
        pixels = np.asarray(image)
        high = pixels >> 8 if image.mode != "I" or pixels.max() > 255 else pixels
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    elif image.mode == "LAB":
        image = image.convert("RGB")  # PIL knows no other way from there
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as PIL asks for
    image.load()
    return image if image.mode == mode else image.convert(mode)  # which would be a copy
