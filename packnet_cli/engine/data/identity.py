"""What tells sets of images apart: the names of those that a task is measured on, and a run's images as a whole."""

import hashlib
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from packnet_cli.images import Item, Picture

NAMES = "surrogateescape"  # how names of files that are not in UTF-8 become bytes again


def digest_of_names(pictures: Iterable[Picture]) -> str:
    """`sha256:` and the SHA-256 of the images' names, in whatever order they come."""
    names = "\n".join(sorted(map(_name, pictures)))
    return f"sha256:{hashlib.sha256(names.encode(errors=NAMES)).hexdigest()}"


def fingerprint(classes: tuple[str, ...], splits: Iterable[Iterable[tuple[Picture, int]]]) -> str:
    """A digest of class names, and of each split's images (names, and sizes or, of a dataset, content) and labels."""
    sha = hashlib.sha256(repr(classes).encode())
    for split in splits:
        for picture, label in split:
            sha.update(f"{_name(picture)} {_content(picture)} {label}\n".encode(errors=NAMES))
        sha.update(b"--\n")
    return sha.hexdigest()


def _name(picture: Picture) -> str:
    """An image's class folder and name, or its index in its dataset."""
    return f"{picture.parent.name}/{picture.name}" if isinstance(picture, Path) else picture.name


def _content(picture: Picture) -> str:
    """What tells an image from others of its name: a file's size, or the digest of what a dataset has stored."""
    if isinstance(picture, Item) and picture.where.startswith("torch/"):
        return ""  # these do not change, and would have to be decoded
    stored = picture if isinstance(picture, Path) else picture.images(picture.index)
    if isinstance(stored, BytesIO):
        return hashlib.sha256(stored.getbuffer()).hexdigest()
    return str(os.path.getsize(stored))
