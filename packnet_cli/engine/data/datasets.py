"""Datasets by timm's names: torch/NAME, hfds/NAME, tfds/NAME, and wds/FOLDER of web-dataset shards.

Each gives images by index, with their class names. timm reads the last two as streams; here each image has an index, so
that the same ones are held out again. No code that comes with a dataset is run, and nothing is unpickled except by
torchvision itself (CIFAR's files, whose MD5 sums it checks).
"""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset

from packnet_cli import extras
from packnet_cli.artifact.atomic import Stamp, stamp
from packnet_cli.engine.data import shards
from packnet_cli.engine.modes import without_retry_log
from packnet_cli.errors import DataError, PackNetError, reason
from packnet_cli.images import HELD_OUT, TRAIN, ClassFiles, Item, Subset, in_use, local, location

VAGUE = "SplitsNotFoundError", "DatasetGenerationError"  # of `datasets`, which say no more; their causes do


def read(data: Path) -> dict[str, ClassFiles]:
    """The images of each split, by class in order of label. Raises DataError, or UsageError if a package is missing."""
    kind, *rest = data.parts
    files = sorted(local(*rest).rglob("*")) if kind == "wds" else []
    return _read(data, tuple(map(stamp, files)))


@lru_cache(maxsize=2)  # asked for more than once, and slow to open
def _read(data: Path, versions: tuple[Stamp, ...]) -> dict[str, ClassFiles]:
    kind, *rest = data.parts
    try:
        with redirect_stdout(sys.stderr), without_retry_log():  # torchvision prints about downloads
            parts = _labelled(READERS[kind](*rest))
        found = {split: _by_class(f"{location(data)}, split {split!r}", part) for split, part in parts.items()}
    except PackNetError:
        raise
    except Exception as error:  # of any kind, from the libraries, the network or the disk
        why = error.__cause__ if type(error).__name__ in VAGUE and error.__cause__ else error
        raise DataError(
            f"cannot open the dataset {data}: {reason(why).rstrip(':.')}; check its name and, if it is to be "
            "downloaded, the connection"
        ) from None
    if not any(found.values()):
        raise DataError(f"the dataset {data} has no images in a split train, {', '.join(HELD_OUT)}")
    return found


def _by_class(where: str, part: Subset) -> ClassFiles:
    files: dict[Any, list[Any]] = {}
    for index, label in enumerate(part.labels):
        one = Item(where, index, part.images)
        if not isinstance(label, str | int | None):
            raise DataError(f"{one} has the label {label!r}, which is neither text nor a whole number")
        files.setdefault(label, []).append(one)
    names = part.names
    unknown = [label for label in files if label is None or (names and not 0 <= label < len(names))]
    if unknown:
        raise DataError(f"{files[unknown[0]][0]} has the label {unknown[0]}, which is no class")
    if nameless := [label for label in files if not (names[label] if names else str(label)).strip()]:
        raise DataError(f"{files[nameless[0]][0]} is of a class whose name is blank; name all classes")
    twice = {name for name, count in Counter(names).items() if count > 1}
    called = {k: str(k) if not names else f"{names[k]} {k}" if names[k] in twice else names[k] for k in files}
    if len(set(called.values())) < len(called):
        raise DataError(f"{where}: two of its classes cannot be told apart by name; give them other names")
    return {called[label]: files[label] for label in sorted(files)}


def _labelled(parts: Iterator[tuple[str, Subset]]) -> dict[str, Subset]:
    """The split to train on, and the first to hold out, of those that have labels; test sets may come without."""
    found = {}
    for split, part in parts:
        if not part.labels or any(label != -1 for label in part.labels):
            found[split] = part
        if found.keys() & HELD_OUT:
            break
    return found


# --- torch ----------------------------------------------------------------------------------------------------------


def _torch(name: str, *folder: str) -> Iterator[tuple[str, Subset]]:
    """torchvision's NAME, in FOLDER of torch/NAME/FOLDER, else in torch's own cache; downloaded if it is not there."""
    if name in ("folder", "image_folder"):
        raise DataError(f"torch/{name} is a folder of images; name the folder itself")
    root = local(*folder) if folder else Path(torch.hub.get_dir()).parent / "datasets"
    for split, timms in ((TRAIN, TRAIN), ("val", "validation")):
        opening = partial(create_dataset, f"torch/{name}", root=str(root), split=timms)
        try:
            dataset = opening()
        except RuntimeError:  # not there
            new = not root.exists()
            root.mkdir(parents=True, exist_ok=True)
            try:
                dataset = opening(download=True)
            except Exception:
                if new:
                    shutil.rmtree(root, ignore_errors=True)
                raise
        targets = getattr(dataset, "targets", None)
        labels = np.asarray([label for label, _ in dataset.index] if targets is None else targets)  # iNaturalist's
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST's other columns say who wrote the digit
        classes: Any = getattr(dataset, "classes", None) or getattr(dataset, "all_categories", ())
        names = [", ".join(name) if isinstance(name, tuple) else name for name in classes]
        yield split, Subset(partial(_first, dataset), labels.tolist(), names)


def _first(dataset: Any, index: int) -> Any:
    return dataset[index][0]


# --- Hugging Face and TensorFlow ------------------------------------------------------------------------------------


def _hfds(*name: str) -> Iterator[tuple[str, Subset]]:
    """A dataset on the Hub, or a local folder that `datasets` can load; its first columns of images and of labels."""
    extras.require("hfds")
    import datasets

    found = local(*name)
    if (found / "state.json").exists():
        raise DataError(f"{found} is a Dataset as save_to_disk writes it; write it to a folder with to_parquet")
    where = str(found.absolute() if found.exists() else found)  # as "csv" it would be a format, of all files here
    for split in in_use(datasets.get_dataset_split_names(where)):
        dataset = datasets.load_dataset(where, split=split)
        kinds = {column: type(feature) for column, feature in dataset.features.items()}
        data = Path("hfds", *name)
        image, label = _column(data, kinds, datasets.Image), _column(data, kinds, datasets.ClassLabel, "label")
        labels, names = list(dataset[label]), getattr(dataset.features[label], "names", [])
        column = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        yield split, Subset(partial(_encoded, column, image), labels, names)


def _encoded(dataset: Any, column: str, index: int) -> Any:
    found = dataset[index][column]
    if found is None:
        raise ValueError("there is no image")
    return BytesIO(found["bytes"]) if found["bytes"] else found["path"]


def _tfds(*name: str) -> Iterator[tuple[str, Subset]]:
    """A dataset of TensorFlow's catalogue, in its fixed order; the encoded images are kept in memory."""
    extras.require("tfds")
    wanted = "/".join(name)
    if not re.fullmatch(r"[\w/.-]+(:[\d.*]+)?", wanted):
        raise DataError(
            f"tfds/{wanted} is not a name in TensorFlow's catalogue; other datasets come with code of their own"
        )
    import tensorflow
    import tensorflow_datasets as tfds

    with suppress(RuntimeError):  # the caller has it in use already
        tensorflow.config.set_visible_devices([], "GPU")  # all of whose memory it would take from torch
    builder = tfds.builder(wanted)
    builder.download_and_prepare()
    # First what it is supervised by. Of a dataset read back from its files the order is another in each process.
    first, features = builder.info.supervised_keys or (), builder.info.features
    kinds = {column: type(features[column]) for column in sorted(features, key=lambda name: (name not in first, name))}
    data = Path("tfds", wanted)
    image, label = _column(data, kinds, tfds.features.Image), _column(data, kinds, tfds.features.ClassLabel)
    for split in in_use(builder.info.splits):
        stored = builder.as_dataset(split=split, shuffle_files=False, decoders={image: tfds.decode.SkipDecoding()})
        pairs = [(record[image], int(record[label])) for record in tfds.as_numpy(stored)]
        images, labels = [one for one, _ in pairs], [number for _, number in pairs]
        yield split, Subset(partial(_from_memory, images), labels, list(features[label].names))


def _from_memory(images: list[bytes], index: int) -> BytesIO:
    return BytesIO(images[index])


def _column(data: Path, kinds: dict[str, type], wanted: type, otherwise: str | None = None) -> str:
    found = next((column for column, kind in kinds.items() if issubclass(kind, wanted)), otherwise)
    if found not in kinds:
        there = ", ".join(f"{column} ({kind.__name__})" for column, kind in kinds.items())
        needed = f"of the kind {wanted.__name__}{f' or called {otherwise}' if otherwise else ''}"
        raise DataError(f"the dataset {data} needs a column {needed}; it has {there}")
    return found


READERS: dict[str, Callable[..., Iterator[tuple[str, Subset]]]] = {
    "torch": _torch,
    "hfds": _hfds,
    "tfds": _tfds,
    "wds": lambda *folder: shards.read(local(*folder)),
}
