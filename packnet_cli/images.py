"""What --data can name: a folder, a list, or a dataset; and what an image is in each. Imports no torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packnet_cli.errors import DataError, did_you_mean_path

TRAIN = "train"
HELD_OUT = ("val", "validation", "test")  # the first of them that there is
LISTS = (".csv", ".parquet")
DATASETS = ("torch", "hfds", "tfds", "wds")  # timm's words for where a dataset comes from


@dataclass(frozen=True)
class Item:
    """The image at `index` in a dataset or list called `where`; equal to another by these two."""

    where: str
    index: int
    images: Callable[[int], Any] = field(compare=False, repr=False)  # gives what PIL opens, or an image that it opened

    @property
    def name(self) -> str:
        return str(self.index)

    def __str__(self) -> str:
        return f"{self.where}, image {self.index}"


Picture = Path | Item  # an image file, or one that is in no file of its own
ClassFiles = dict[str, list[Picture]]  # class name -> its images


def is_list(data: Path) -> bool:
    """Whether a --data path is that of a list, and not of a folder."""
    return data.suffix.lower() in LISTS and not os.path.isdir(data)  # pathlib's raises where a path is too long


def is_dataset(data: Path) -> bool:
    """Whether it names a dataset, such as hfds/NAME, and no folder is called so."""
    return len(data.parts) > 1 and data.parts[0] in DATASETS and not os.path.exists(data)


def check_exists(data: Path) -> None:
    """Raise DataError if it names a folder or list that is not there; of a dataset only reading it can tell."""
    if is_dataset(data) or os.path.exists(data):
        return
    hint = did_you_mean_path(data) or "name a folder of images, a list or a dataset"
    raise DataError(f"the {'list' if is_list(data) else 'folder'} {data} does not exist; {hint}")


def task_name(data: Path) -> str:
    """What a task that is trained on it is called if nobody says: as the folder, the dataset, or the file's stem."""
    if is_dataset(data):
        return data.parts[1] if data.parts[0] == "torch" else data.name.partition(":")[0]
    return data.resolve().stem if is_list(data) else data.resolve().name


def location(data: Path) -> str:
    """What to remember it by: the absolute path; of a dataset the name, with that of its folder, if it has one."""
    if not is_dataset(data):
        return str(data.resolve())
    place = 2 if data.parts[0] == "torch" else 1
    folder = local(*data.parts[place:]) if data.parts[place:] else None
    return str(Path(*data.parts[:place])) + str(folder.resolve()) if folder and os.path.exists(folder) else str(data)


def local(*parts: str) -> Path:
    """The path that stands in a dataset's name. After a `/` one that is absolute looks as if it were not."""
    relative = Path(*parts)
    return relative if os.path.exists(relative) or not os.path.exists(Path("/", relative)) else Path("/", relative)
