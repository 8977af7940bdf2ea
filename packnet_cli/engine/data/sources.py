"""Where images come from: folders with a folder for each class, lists, or datasets."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from packnet_cli.artifact.atomic import Stamp, stamp
from packnet_cli.engine.data import datasets
from packnet_cli.engine.data.lists import read_list
from packnet_cli.engine.data.pictures import is_image_name
from packnet_cli.engine.data.shards import SPLITS
from packnet_cli.errors import DataError, did_you_mean_path
from packnet_cli.images import HELD_OUT, LISTS, TRAIN, ClassFiles, check_exists, is_dataset, is_list

VALID = "valid"  # another name for a folder of held-out images
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


class HeldOutFiles(NamedTuple):
    """Held-out images, and the name of the place they are in."""

    name: str
    files: ClassFiles


@contextmanager
def _reading() -> Iterator[None]:
    """Turn errors of the file system into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename or 'the images'}: {error.strerror or error}") from None


@_reading()
def training_files(data: Path) -> ClassFiles:
    """The training images of a folder, list or dataset. Raises DataError."""
    splits = _splits(data)
    if splits is None:
        return _class_files(_training_folder(data))
    if TRAIN not in splits:
        raise DataError(f"{data} lists held-out images only, and none of the split {TRAIN!r}")
    return splits[TRAIN]


@_reading()
def held_out_files(data: Path) -> HeldOutFiles | None:
    """The held-out images of a folder, list or dataset, if it has any of its own. Raises DataError."""
    splits = _splits(data)
    if splits is not None:
        split = next((name for name in HELD_OUT if name in splits), None)
        return None if split is None else HeldOutFiles(f"the split {split!r} of {data}", splits[split])
    folder = _held_out_folder(data)
    return HeldOutFiles(str(folder), _class_files(folder)) if folder else None


@_reading()
def class_names(data: Path) -> tuple[str, ...]:
    """The names of the classes, in order of label: the training images', else the held-out ones'. Raises DataError."""
    splits = _splits(data)
    trains = (data / TRAIN).is_dir() if splits is None else TRAIN in splits
    held_out = None if trains else held_out_files(data)
    return tuple(held_out.files if held_out else training_files(data))


def _splits(data: Path) -> dict[str, ClassFiles] | None:
    """The images of a list or dataset by split and class; None of a folder."""
    if is_list(data):
        check_exists(data)
        return _read_list(data, stamp(data))
    return datasets.read(data) if is_dataset(data) else None


@lru_cache(maxsize=1)  # needed more than once, and it may hold the images
def _read_list(path: Path, version: Stamp) -> dict[str, ClassFiles]:
    return read_list(path)


@_reading()
def images_below(folder: Path) -> list[Path]:
    """Every image below a folder, in order of name. Raises DataError, also if there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {did_you_mean_path(folder) or 'name a folder of images'}")
    paths = _images_in(folder)
    if not paths:
        raise DataError(f"{folder} holds no images (.jpg, .png and the like, in it or below)")
    return paths


def _check_folder(folder: Path) -> None:
    check_exists(folder)
    if not folder.is_dir():
        hint = "; unpack it first" if folder.suffix.lower() in ARCHIVES else ""
        raise DataError(f"{folder} is no folder, and no list of images by its name ({', '.join(LISTS)}){hint}")


def _training_folder(folder: Path) -> Path:
    held_out = _held_out_folder(folder)
    if (folder / TRAIN).is_dir():
        return folder / TRAIN
    if held_out is not None:
        raise DataError(f"{folder} has held-out images ({held_out}) but no train/ folder beside them")
    return folder


def _held_out_folder(folder: Path) -> Path | None:
    _check_folder(folder)
    trains = (folder / TRAIN).is_dir()
    # "valid" may also be a class, beside "invalid".
    names = (HELD_OUT[0], VALID, *HELD_OUT[1:]) if trains else HELD_OUT
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if trains and not found and (near := [n for n in _class_names(folder) if SPLITS.get(n.lower(), TRAIN) != TRAIN]):
        raise DataError(f"{folder} holds {', '.join(near)} beside {TRAIN}; call what is held out {HELD_OUT[0]}")
    return found


def _class_names(folder: Path) -> list[str]:
    return sorted(_shown([entry.name for entry in folder.iterdir() if entry.is_dir()]))


def _class_files(folder: Path) -> ClassFiles:
    """The image files of each class folder, both in order of name."""
    names = _class_names(folder)
    files: ClassFiles = {name: [*_images_in(folder / name)] for name in names}
    trained = [folder / name for name in names if (folder / name / TRAIN).is_dir()]
    if trained and (len(trained) == len(names) or any(map(_held_out_folder, trained))):
        raise DataError(f"{folder} holds folders with a train/ of their own; name one of them, such as {trained[0]}")
    if len(names) > 1 and {name.lower() for name in names} <= SPLITS.keys():
        raise DataError(f"{folder} holds {', '.join(names)}, which are no classes; call them {TRAIN} and {HELD_OUT[0]}")
    if not any(files.values()):
        raise DataError(
            f"{folder} holds no class folders with images (expected {folder}/<class>/<image>, a .jpg, .png or the like)"
        )
    return files


@_reading()
def left_out(data: Path) -> list[Path]:
    """In the class folders files not named like images, and links to folders; beside them images, and dead links."""
    if _splits(data) is not None:
        return []
    found, held_out = [], _held_out_folder(data)
    training = _training_folder(data) if held_out is None or (data / TRAIN).is_dir() else None
    for folder in filter(None, (training, held_out)):
        # A link to nothing may have been a class, on a disk that is gone.
        beside = [folder / name for name in _shown(os.listdir(folder))]
        found += [path for path in beside if not path.exists() or (path.is_file() and is_image_name(path))]
        for name in _class_names(folder):
            for where, folders, files in os.walk(folder / name):
                folders[:] = _shown(folders)
                found += [Path(where, link) for link in folders if os.path.islink(Path(where, link))]
                found += [path for path in (Path(where, file) for file in _shown(files)) if not is_image_name(path)]
    return found


def _images_in(folder: Path) -> list[Path]:
    def fail(error: OSError) -> NoReturn:
        raise error

    return sorted(filter(is_image_name, walk(folder, fail)))


def walk(folder: Path, onerror: Callable[[OSError], object]) -> Iterator[Path]:
    """Every file below a folder, in no hidden one and through no link; `onerror` is told of what cannot be read."""
    for where, folders, names in os.walk(folder, onerror=onerror):
        folders[:] = _shown(folders)
        yield from (Path(where, name) for name in names)


def _shown(names: list[str]) -> list[str]:
    """Those of files or folders that are not hidden, as Jupyter's copies in .ipynb_checkpoints are."""
    return [name for name in names if not name.startswith(".")]
