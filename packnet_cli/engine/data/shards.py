"""Web-dataset shards: tar files of samples, a sample being the files whose names agree up to the first dot.

Shards are meant to be read as streams; here each image is read at its offset, so that the same ones can be held out
again, and a damaged shard is found before anything is trained.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from packnet_cli.engine.data.pictures import ENDINGS
from packnet_cli.errors import DataError
from packnet_cli.images import HELD_OUT, TRAIN, Subset, in_use

SPLITS = {split: split for split in (TRAIN, *HELD_OUT)} | {"training": TRAIN, "valid": "val", "testing": "test"}


@dataclass(frozen=True)
class Member:
    """A file in a shard: its bytes begin at `start`."""

    shard: Path
    start: int
    size: int

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def read(root: Path) -> Iterator[tuple[str, Subset]]:
    """The splits of the shards in a folder and below: each sample has an image, and its label in `.cls`.

    The first word of SPLITS in a shard's path says which split it belongs to; without one it is train. A file
    `classnames.txt`, one name a line, names the labels if they are numbers. Raises DataError.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root} of web-dataset shards; name the folder that holds them")
    shards: dict[str, list[Path]] = {}
    for shard in sorted(root.rglob("*.tar")):
        words = re.split("[^a-z]+", str(shard.relative_to(root)).lower())
        shards.setdefault(next((SPLITS[word] for word in words if word in SPLITS), TRAIN), []).append(shard)
    if not shards:
        raise DataError(f"{root} holds no web-dataset shards (.tar); if they are compressed, as .tar.gz, unpack them")
    listed = root / "classnames.txt"
    try:
        names = listed.read_text(encoding="utf-8-sig").splitlines() if listed.is_file() else []
    except UnicodeDecodeError as error:
        raise DataError(f"{listed} is not in UTF-8: {error}") from None
    for split in in_use(shards):
        samples = [sample for shard in shards[split] for sample in _samples(shard)]
        labels: list[Any] = [label for _, label in samples]
        numbered = all(label.removeprefix("-").isdecimal() for label in labels)
        labels = list(map(int, labels)) if numbered else labels
        yield split, Subset(partial(_member, [image for image, _ in samples]), labels, names if numbered else [])


def _samples(shard: Path) -> Iterator[tuple[Member, str]]:
    """The image and label of each sample: the files whose names agree up to the first dot."""
    images: dict[tuple[str, str], Member] = {}
    labels: dict[tuple[str, str], str] = {}
    dotted: dict[tuple[str, str], str] = {}  # names such as n01.7.cls: to readers of shards, 7.cls of a sample n01
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                stem, _, ending = info.name.rpartition("/")[2].partition(".")
                key, member = (info.name.rpartition("/")[0], stem), Member(shard, info.offset_data, info.size)
                is_label = ending.lower() == "cls"
                if stem and ending.lower().endswith(".cls"):
                    dotted[key] = info.name
                if not info.isreg() or not (is_label or f".{ending.lower()}" in ENDINGS):
                    continue
                if key in (labels if is_label else images):
                    raise DataError(f"{shard}: the sample {stem!r} is there twice; give each a name of its own")
                if is_label:
                    labels[key] = member.read().decode("utf-8-sig").strip()
                else:
                    images[key] = member
            if not _is_end(shard, tar.offset):  # tarfile stops at what is no header, as if nothing followed
                raise tarfile.ReadError(f"after {len(images)} images comes neither another file nor the end of a tar")
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise DataError(f"{shard} is damaged: {error}; copy it again") from None
    if lost := [name for key, name in dotted.items() if key not in images and key not in labels]:
        raise DataError(f"{shard}: {lost[0]!r} is no label, as a sample's name ends at the first dot; rename the files")
    for key in {**images, **labels}:  # in order, as a set's is another in each process
        if key not in images:
            raise DataError(f"{shard}: the sample {key[1]!r} has a label but no image of a kind that can be read")
        if not labels.get(key):
            raise DataError(f"{shard}: the sample {key[1]!r} has no label; it needs a file {key[1]}.cls beside it")
    yield from ((image, labels[key]) for key, image in images.items())


def _is_end(shard: Path, offset: int) -> bool:
    """Whether a tar file ends at `offset`: with at least two blocks of zeros, and nothing else."""
    with open(shard, "rb") as file:
        file.seek(offset)
        rest = file.read(2 * tarfile.BLOCKSIZE)
        return (
            len(rest) == 2 * tarfile.BLOCKSIZE
            and not any(rest)
            and not any(map(any, iter(partial(file.read, 2**20), b"")))
        )


def _member(members: list[Member], index: int) -> BytesIO:
    return BytesIO(members[index].read())
