"""Which images are trained on and which are held out."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packnet_cli.artifact.format import Task
from packnet_cli.engine.data import identity, sources
from packnet_cli.errors import DataError, few
from packnet_cli.images import HELD_OUT, ClassFiles, Picture, is_gone

UNLABELLED = -1  # in place of a label


@dataclass(frozen=True)
class Split:
    """Images, in files or in a dataset, and the index of each one's class."""

    paths: list[Picture]
    labels: list[int]

    def where(self, wanted: Callable[[Picture], bool]) -> "Split":
        """The images that are wanted, in the same order."""
        pairs = [(path, label) for path, label in zip(self.paths, self.labels, strict=True) if wanted(path)]
        return Split([path for path, _ in pairs], [label for _, label in pairs])

    def missing(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The classes without an image here."""
        there = set(self.labels)
        return tuple(name for label, name in enumerate(classes) if label not in there)


@dataclass(frozen=True)
class HeldOut:
    """Images to evaluate on, from the place called `where`.

    `unsplit`: these are all images of a place where none are held out and the task was not trained; `drawn`: these
    are held out, by lot, of the images that it was trained on.
    """

    split: Split
    where: str
    unsplit: bool = False
    drawn: bool = False

    @property
    def digest(self) -> str:
        """The SHA-256 of the images' names."""
        return identity.digest_of_names(self.split.paths)

    def are_those_of(self, task: Task) -> bool:
        """Whether the task was measured on images of these names; if they are not on record, on as many."""
        return self.digest == task.held_out if task.held_out else len(self.split.paths) == task.images

    def doubt(self, task: Task) -> str | None:
        """Why the task's accuracy on these may be too high, if it may be: lots are drawn among other images now."""
        if not (self.drawn and task.data) or self.are_those_of(task):
            return None
        return (
            f"other images of {self.where} are held out now than when task {task} was added; "
            "it may have been trained on some of them"
        )


@dataclass(frozen=True)
class TrainingImages:
    """The class names of a task in order of label, and its images; without held-out ones accuracy is not measured."""

    classes: tuple[str, ...]
    train: Split
    held_out: HeldOut | None
    skipped: int = 0  # how many more could not be read

    @property
    def splits(self) -> list[Split]:
        return [self.train] + ([self.held_out.split] if self.held_out else [])

    @property
    def fingerprint(self) -> str:
        """A digest of the classes and images, wherever these are: a run resumes only on the same ones."""
        return identity.fingerprint(
            self.classes, (zip(split.paths, split.labels, strict=True) for split in self.splits)
        )

    @property
    def labelled(self) -> bool:
        """Whether the training images have labels; without them only a teacher can give targets."""
        return UNLABELLED not in self.train.labels


def open_training(data: Path, *, val_split: float, seed: int, classes: tuple[str, ...] | None = None) -> TrainingImages:
    """The classes, training images and held-out images in a folder, list or dataset (see `sources.py`).

    `data` holds train/<class>/ and val/<class>/ (valid/, validation/, test/), or just <class>/, or train/<class>/.
    Where none are held out, the fraction `val_split` of each class is, always the same files under one seed. If
    `classes` are given, labels follow from them, and not all of them need be there.
    Raises DataError.
    """
    files = sources.training_files(data)
    if classes is not None:
        _check_known(data, files, classes)
    classes = classes or tuple(files)
    if len(classes) < 2:
        raise DataError(f"{data} has only the class {classes[0]!r}; a classifier needs at least two")
    for name, paths in files.items():
        if not paths:
            raise DataError(
                f"{data}: the class folder {name!r} holds no images (.jpg, .png and the like); fill it or remove it"
            )
    source = sources.held_out_files(data)
    if source is None:
        files, rest = _hold_out(files, val_split, seed)
        return TrainingImages(classes, _split(files, classes), _drawn(data, rest, classes))
    held_out = _held_out(*source, classes)
    if empty := [name for name in held_out.split.missing(classes) if name in files]:
        raise DataError(
            f"{source.name} has no images of {len(empty)} class(es): {few(empty, limit=20)}; "
            "add some, or take it away to have a part of the training images held out"
        )
    return TrainingImages(classes, _split(files, classes), held_out)


def open_retraining(
    classes: tuple[str, ...],
    data: Path | None,
    unlabelled: Path | None,
    *,
    val_split: float,
    seed: int,
) -> TrainingImages:
    """What a task that knows its classes is retrained and measured on.

    With `unlabelled`, all images below it, without labels, and the held-out images of `data`, if any, which are not
    trained on if they lie there, too; else those of `data`; with neither none, so that it is not retrained, and its
    accuracy is not known. Raises DataError.
    """
    if unlabelled is not None:
        held_out = None if data is None else _measurable(data, classes, val_split, seed, trained_on=True)
        train = open_unlabelled(unlabelled)
        if held_out is not None:
            train = _without(train, held_out.split)
            if not train.paths:
                raise DataError(f"{unlabelled} holds the held-out images of {data} and no others; name other images")
        return TrainingImages(classes, train, held_out)
    if data is not None:
        return open_training(data, val_split=val_split, seed=seed, classes=classes)
    return TrainingImages(classes, Split([], []), None)


def open_held_out(
    data: Path, classes: tuple[str, ...], *, val_split: float, seed: int, trained_on: bool = True
) -> HeldOut:
    """The images to evaluate on, their classes matched by name.

    These are the held-out folder's; without one, the part that `open_training` held out if the task was
    `trained_on` this folder, else every image in it. Raises DataError, also for a class that the task does not know.
    """
    found = _measurable(data, classes, val_split, seed, trained_on)
    if found is None:
        raise DataError(
            f"{data} has one image in each class, and so no images to evaluate on; name another place with --data"
        )
    return found


def remembered(task: Task, hint: str) -> Path:
    """Where the images are that a task was added with. Raises DataError with this hint if they are gone."""
    if is_gone(task.data):
        raise DataError(f"the data of task {task} is no longer at {task.data}; {hint}")
    return Path(task.data)


def open_unlabelled(folder: Path) -> Split:
    """Every image below a folder, whatever its subfolders are called. Raises DataError."""
    paths = sources.images_below(folder)
    return Split([*paths], [UNLABELLED] * len(paths))


def _without(split: Split, other: Split) -> Split:
    """A split less the image files of another, by whatever path or link."""
    files = set(map(_file, other.paths))
    return split.where(lambda path: _file(path) not in files)


def _file(picture: Picture) -> tuple[int, int] | str | Picture:
    """What tells a file from others; the picture itself if it is no file that is there."""
    try:
        found = os.stat(str(picture))
    except (OSError, ValueError):  # a path that no file can have
        return picture
    # Where there are no inodes, as on some network drives, every file has the number 0.
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(str(picture))


def set_aside(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """A split in two, the second with the seeded, stratified fraction `fraction` of it. Raises DataError."""
    files: ClassFiles = {}
    for path, label in zip(split.paths, split.labels, strict=True):
        files.setdefault(str(label), []).append(path)
    _, held_out = _hold_out(files, fraction, seed)
    chosen = {path for paths in held_out.values() for path in paths}
    if not chosen:
        raise DataError("with one image in each class none can be set aside to search on; give a fraction to prune")
    return split.where(lambda path: path not in chosen), split.where(chosen.__contains__)


# --- splits -----------------------------------------------------------------------------------------------------------


def _hold_out(files: ClassFiles, fraction: float, seed: int) -> tuple[ClassFiles, ClassFiles]:
    """Split each class in two by a hash of seed and file name: no state, and nearly stable when files come or go.

    The size of the second part follows that of the class, so that a few files may then change sides.
    """
    kept, held_out = {}, {}
    for name, paths in files.items():
        ranked = sorted(
            paths, key=lambda path: hashlib.sha256(f"{seed}/{path.name}".encode(errors=identity.NAMES)).digest()
        )
        count = min(max(1, round(fraction * len(paths))), max(0, len(paths) - 1))  # a lone image is trained on
        held_out[name], kept[name] = ranked[:count], ranked[count:]
    return kept, held_out


def _measurable(data: Path, classes: tuple[str, ...], val_split: float, seed: int, trained_on: bool) -> HeldOut | None:
    """The images of `open_held_out`; None if all were trained on, as each class has a single one."""
    source = sources.held_out_files(data)
    if source is not None:
        return _held_out(*source, classes)
    files = sources.training_files(data)
    if trained_on:
        _, rest = _hold_out(files, val_split, seed)
        return _drawn(data, rest, classes)
    unsplit = data.name not in (*HELD_OUT, sources.VALID)
    return dataclasses.replace(_held_out(str(data), files, classes), unsplit=unsplit)


def _drawn(data: Path, files: ClassFiles, classes: tuple[str, ...]) -> HeldOut | None:
    """Images held out by lot; None if there are none, as each class has a single image."""
    if any(files.values()):
        return dataclasses.replace(_held_out(str(data), files, classes), drawn=True)
    _check_known(data, files, classes)
    return None


def _held_out(where: str, files: ClassFiles, classes: tuple[str, ...]) -> HeldOut:
    _check_known(where, files, classes)
    split = _split(files, classes)
    if not split.paths:
        raise DataError(f"{where} holds no images to evaluate on; add some, or name another place with --data")
    return HeldOut(split, where)


def _check_known(where: Path | str, files: ClassFiles, classes: tuple[str, ...]) -> None:
    known = set(classes)
    unknown = [name for name in files if name not in known]
    if unknown:
        raise DataError(
            f"{where} has {len(unknown)} class(es) unknown to the task: {few(unknown)}; its own: {few(list(classes))}. "
            "Take these away, or name other images"
        )


def _split(files: ClassFiles, classes: tuple[str, ...]) -> Split:
    index = {name: number for number, name in enumerate(classes)}
    pairs = [(path, index[name]) for name, paths in files.items() for path in paths]
    return Split([path for path, _ in pairs], [label for _, label in pairs])
