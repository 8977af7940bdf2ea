"""Opens pictures and converts them to the network's mode, or says in words why one cannot be used."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from packnet_cli.errors import is_out_of_memory, reason
from packnet_cli.images import Picture

MOST_ASPECT = 1000  # resized by its short side, a longer picture would fill the memory
READERS = min(8, os.cpu_count() or 1)  # threads, where the user gives no other number
ENDINGS = (*IMG_EXTENSIONS, ".gif", ".avif")


def is_image_name(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def open_picture(picture: Picture) -> Image.Image:
    """The image, for the caller to close; not decoded yet, unless it was stored decoded.

    Raises whatever PIL or its decoders do: see `problem`.
    """
    if isinstance(picture, Path):
        if os.path.exists(picture) and not os.path.isfile(picture):
            raise OSError("not a regular file")  # opening a pipe would block
        found = picture
    else:
        found = picture.images(picture.index)
    image = found if isinstance(found, Image.Image) else Image.open(found)
    # PIL only warns at this size, and raises at twice as much.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    if max(image.size) > MOST_ASPECT * min(image.size):
        image.close()
        raise ValueError(f"one side is more than {MOST_ASPECT:,} times the other")
    return image


def problem(error: Exception) -> str:
    """Why a picture cannot be used, given what was raised; raised again if memory ran out, no fault of the picture."""
    if is_out_of_memory(error):
        raise error
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    return (isinstance(error, OSError) and error.strerror) or reason(error)


def convert(image: Image.Image, mode: str) -> Image.Image:
    """An image in the network's mode; of an animated one the first frame.

    Raises ValueError for floating point, and for whole numbers below 0 or of more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels, of unknown range")
    if image.mode.startswith("I"):  # 16 bits, which PIL would clip at 255
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() >= 2**16:
            raise ValueError("pixels below 0 or of more than 16 bits, of unknown range")
        high = pixels >> 8 if image.mode != "I" or pixels.max() > 255 else pixels
        image = Image.fromarray(high.astype(np.uint8))
    elif image.mode == "LAB":
        image = image.convert("RGB")  # PIL converts LAB by way of RGB only
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as PIL recommends
    image.load()
    return image if image.mode == mode else image.convert(mode)  # convert() would copy
