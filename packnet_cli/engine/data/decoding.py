"""The check that images can be decoded: those that cannot are named before an hour of training, or skipped."""

import dataclasses
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from packnet_cli.engine import distributed
from packnet_cli.engine.data import pictures
from packnet_cli.engine.data.splits import HeldOut, Split, TrainingImages
from packnet_cli.errors import DataError, few
from packnet_cli.images import Item, Picture
from packnet_cli.progress import passing

SHARE = 32  # images that a thread looks at together: a future for each would take 2 KB


def usable(images: TrainingImages, *, skip_bad: bool = False, hint: str = "") -> TrainingImages:
    """The images that can be decoded. Raises DataError if some cannot, or with `skip_bad` if too few are left."""
    found = check_images(*images.splits, skip_bad=skip_bad, hint=hint)
    skipped = sum(len(before.paths) - len(after.paths) for before, after in zip(images.splits, found, strict=True))
    train, *rest = found
    gone = set(images.train.labels) - set(train.labels)
    if gone and not images.labelled:
        raise DataError("no readable image is left to retrain on; name another folder")
    if gone:
        empty = [images.classes[label] for label in sorted(gone)]
        raise DataError(
            f"no readable image is left to train {len(empty)} class(es) on: {few(empty)}; "
            "add some, or take these classes away"
        )
    held_out = images.held_out
    if held_out is not None:
        if not rest[0].paths:
            raise DataError("no readable image is left to evaluate on; add some, or take the held-out folder away")
        held_out = dataclasses.replace(held_out, split=rest[0])
    return dataclasses.replace(images, train=train, held_out=held_out, skipped=skipped)


def readable(held_out: HeldOut, *, skip_bad: bool) -> HeldOut:
    """The images that can be decoded. Raises DataError for others, unless `skip_bad`, and if none is left."""
    [split] = check_images(held_out.split, skip_bad=skip_bad)
    if not split.paths:
        raise DataError(f"{held_out.where} holds no readable images to evaluate on")
    return dataclasses.replace(held_out, split=split)


def check_images(*splits: Split, skip_bad: bool = False, hint: str = "") -> list[Split]:
    """Decode every image once, so that an unreadable one is named now and not after an hour of training.

    Returns the splits, without bad images if they are to be skipped. Raises DataError that lists them if not, and ends
    with the `hint`.
    """
    paths = [path for split in splits for path in split.paths]
    mine = range(distributed.rank(), len(paths), distributed.world())
    shares = [mine[start : start + SHARE] for start in range(0, len(mine), SHARE)]
    found: list[tuple[int, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, passing("checking images", len(shares)) as passed:
        for pairs in pool.map(partial(_problems, paths), shares):
            found += pairs
            passed()
    # By number: an image of a list may have the bytes of all with it, which processes are not to send each other.
    counts, everything = zip(*distributed.gathered((len(paths), found)), strict=True)
    if len(set(counts)) > 1:
        raise DataError(
            f"the processes of this run find {', '.join(map(str, counts))} images; "
            "copy the first one's to the same path on every machine"
        )
    problems = {paths[number]: problem for each in everything for number, problem in each}
    if problems and not any(isinstance(path, Item) or os.path.lexists(path) for path in paths):
        raise DataError(f"none of {len(paths)} files exists, such as {paths[0]}; a list's paths start at its folder")
    if problems and not skip_bad:
        listed = few([f"{path} ({problem})" for path, problem in problems.items()], limit=20)
        raise DataError(
            f"{len(problems)} of {len(paths)} files are not readable images: {listed}; remove or repair them{hint}"
        )
    return [split.where(lambda path: path not in problems) for split in splits]


def _problems(paths: list[Picture], numbers: Iterable[int]) -> list[tuple[int, str]]:
    """Which of these images cannot be used, and why."""
    return [(number, problem) for number in numbers if (problem := _problem(paths[number]))]


def _problem(picture: Picture) -> str | None:
    """Why it cannot be used as an image, if so."""
    try:
        with pictures.open_picture(picture) as image:
            image.draft(image.mode, (1, 1))  # a JPEG is then decoded at an eighth of its size
            pictures.convert(image, "RGB")
    except Exception as error:  # decoders of broken files raise nearly anything
        return pictures.problem(error)
    return None
