"""What --data can name (a folder, a list or a dataset), and how an image in each is referred to. Imports no torch."""

import os
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packnet_cli.errors import DataError, did_you_mean_path

TRAIN = "train"
HELD_OUT = ("val", "validation", "test")  # the first that exists
LISTS = (".csv", ".parquet")
DATASETS = ("torch", "hfds", "tfds", "wds")  # timm's prefixes for the source of a dataset


@dataclass(frozen=True)
class Item:
    """The image at `index` in a dataset or list called `where`; these two alone decide equality."""

    where: str
    index: int
    images: Callable[[int], Any] = field(compare=False, repr=False)  # returns what PIL can open, or an opened image

    @property
    def name(self) -> str:
        return str(self.index)

    def __str__(self) -> str:
        place = f"row {self.index + 1}" if is_list(Path(self.where)) else f"image {self.index}"  # as lists are told of
        return f"{self.where}, {place}"


@dataclass(frozen=True)
class Subset:
    """One split of a dataset: what opens an image by index, each one's label, and the labels' names, if any."""

    images: Callable[[int], Any]
    labels: list[Any]
    names: list[str] = field(default_factory=list)


Picture = Path | Item  # an image file, or an image without a file of its own
ClassFiles = dict[str, list[Picture]]  # class name -> its images


def in_use(splits: Container[str]) -> list[str]:
    """The split to train on and those to hold out, as far as they are there."""
    return [split for split in (TRAIN, *HELD_OUT) if split in splits]


def is_list(data: Path) -> bool:
    """Whether a --data path names a list, not a folder."""
    return data.suffix.lower() in LISTS and not os.path.isdir(data)  # Path.is_dir raises if a path is too long


def is_dataset(data: Path) -> bool:
    """Whether it names a dataset, such as hfds/NAME, and nothing of that name exists on disk."""
    return len(data.parts) > 1 and data.parts[0] in DATASETS and not os.path.exists(data)


def check_exists(data: Path) -> None:
    """Raise DataError if it names a folder or list that does not exist; a dataset is not checked before it is read."""
    if is_dataset(data) or os.path.exists(data):
        return
    hint = did_you_mean_path(data) or "name a folder of images, a list or a dataset"
    raise DataError(f"the {'list' if is_list(data) else 'folder'} {data} does not exist; {hint}")


def task_name(data: Path) -> str:
    """The default name of a task trained on it: that of the folder or dataset, or the file's stem."""
    if is_dataset(data):
        return data.parts[1] if data.parts[0] == "torch" else data.name.partition(":")[0]
    named = Path(os.path.abspath(data))  # of a link the name that the user gave it
    return named.stem if is_list(data) else named.name


def location(data: Path) -> str:
    """What the artifact records of it: the absolute path; for a dataset its name, with that of its folder, if any."""
    if not is_dataset(data):
        return str(_resolved(data))
    name, folder = _divided(data)
    there = local(*folder) if folder else None
    return f"{Path(*name)}{_resolved(there)}" if there and os.path.exists(there) else str(data)


def is_gone(data: str) -> bool:
    """Whether what `location` has recorded is no longer on this machine; of a dataset on a hub that is not known."""
    path = Path(data)
    if not is_dataset(path):
        return not os.path.exists(path)
    name, folder = _divided(path)
    on_disk = name[0] in ("torch", "wds") or (name[0] == "hfds" and len(folder) > 2)  # the hub has OWNER/NAME
    return bool(folder) and on_disk and not os.path.exists(Path("/", *folder))


def _divided(data: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A dataset's name, in parts, and those of its folder, if any: torch/NAME/FOLDER, else KIND/FOLDER."""
    place = 2 if data.parts[0] == "torch" else 1
    return data.parts[:place], data.parts[place:]


def _resolved(path: Path) -> Path:
    """The absolute path, links followed, but for a loop of links, of which Path.resolve makes an error.

    A list that is itself a link, as in the hub's cache, stays: its name says what it is, and its paths start beside it.
    """
    return Path(os.path.realpath(path.parent), path.name) if is_list(path) else Path(os.path.realpath(path))


def local(*parts: str) -> Path:
    """The path in a dataset's name. After a `/`, an absolute path looks like a relative one."""
    relative = Path(*parts)
    return relative if os.path.exists(relative) or not os.path.exists(Path("/", relative)) else Path("/", relative)
