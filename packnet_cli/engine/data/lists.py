"""Lists of images: CSV or Parquet files with the columns path, label and, optionally, split.

A Parquet file may hold the images themselves, as Hugging Face's do, in a column image in place of path: encoded bytes,
or {bytes, path}. It is then kept in memory.
"""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from packnet_cli import extras
from packnet_cli.errors import DataError
from packnet_cli.images import HELD_OUT, TRAIN, ClassFiles, Item, Picture, location


class Row(NamedTuple):
    """One image's entry in a list, at `place`."""

    place: str
    image: Picture | None
    label: str | None
    split: str | None
    number: int = 0  # of its class, where the file numbers and names them


def read_list(path: Path) -> dict[str, ClassFiles]:
    """The images of each split, by class in order of name or, where the file numbers and names its classes, of number.

    Paths in the file are relative to its folder. Without a column `split` all belong to the split "train". Raises
    DataError, naming the line.
    """
    splits: dict[str, ClassFiles] = defaultdict(lambda: defaultdict(list))
    seen: set[Item | str] = set()
    numbers: dict[str, int] = {}
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    try:
        for place, image, label, split, number in rows:
            if not image or not label or not label.strip():
                lacking = "label" if image else "image"
                raise DataError(f"{path}, {place}: has no {lacking}; each needs a label, and an image or its path")
            if split not in (TRAIN, *HELD_OUT):
                known = ", ".join((TRAIN, *HELD_OUT))
                raise DataError(f"{path}, {place}: has the split {split or ''!r}, which must be one of {known}")
            one = image if isinstance(image, Item) else os.path.abspath(image)
            if one in seen:
                raise DataError(f"{path}, {place}: {image} is listed twice")
            seen.add(one)
            splits[split][label].append(image)
            numbers[label] = number
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror or error}") from None
    if not splits:
        raise DataError(f"{path} lists no images")
    ordered = sorted(numbers, key=lambda label: (numbers[label], label))
    return {
        split: {label: sorted(files[label], key=_order) for label in ordered if label in files}
        for split, files in splits.items()
    }


def _order(image: Picture) -> Any:
    return (0, image.index) if isinstance(image, Item) else (1, image)


def _check_split(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError if the column `split` goes by another spelling: its held-out images would be trained on."""
    if "split" not in columns and (found := [name for name in columns if name.strip().lower() == "split"]):
        raise DataError(f"{path} has a column {found[0]!r}; call it 'split'")


def _csv_rows(path: Path) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            columns = rows.fieldnames or ()
            for column in ("path", "label"):
                if column not in columns:
                    raise DataError(
                        f"{path} has no column {column!r}; its first line must name path and label, between commas"
                    )
            _check_split(path, columns)
            for row in rows:
                if None in row:
                    raise DataError(
                        f"{path}, line {rows.line_num}: has more cells than the first line; put what holds a comma in "
                        "double quotes"
                    )
                image = path.parent / row["path"] if row["path"] else None
                yield Row(f"line {rows.line_num}", image, row["label"], row["split"] if "split" in columns else TRAIN)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}; is a double quote left open?") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    extras.require("parquet")
    import pyarrow
    from pyarrow import parquet

    try:
        with open(path, "rb") as file:
            schema = parquet.read_schema(file)
            wanted = [name for name in ("path", "image", "label", "split") if name in schema.names]
            table = parquet.read_table(file, columns=wanted)
        names = _label_names(schema)
    except (pyarrow.ArrowException, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {str(error).partition(chr(10))[0]}") from None
    if "label" not in wanted or not {"path", "image"} & set(wanted):
        raise DataError(f"{path} has the columns {', '.join(schema.names)}; it needs label, and path or image")
    _check_split(path, schema.names)
    cells = table["image" if "image" in wanted else "path"]
    for number in range(table.num_rows):
        try:
            cell, label = cells[number].as_py(), table["label"][number].as_py()
            split = table["split"][number].as_py() if "split" in wanted else TRAIN
        except (ValueError, OverflowError) as error:  # a time in nanoseconds or of no year, for example
            raise DataError(f"{path}, row {number + 1}: {error}; give paths and labels as text") from None
        class_number = 0
        if names is not None and type(label) is int:
            class_number = label
            label = names[label] if 0 <= label < len(names) else None
        encoded, where = _encoded(cell), cell.get("path") if isinstance(cell, dict) else cell
        image: Picture | None = None
        if encoded:
            image = Item(location(path), number, partial(_open, cells))
        elif isinstance(where, str) and where:
            image = path.parent / where
        if isinstance(label, bytes):
            label = label.decode(errors="backslashreplace")
        if not isinstance(label, str | int | None):
            raise DataError(f"{path}, row {number + 1}: the label {label!r} is neither text nor a whole number")
        yield Row(f"row {number + 1}", image, None if label is None else str(label), split, class_number)


def _label_names(schema: Any) -> list[str] | None:
    """The names of the numbers in the column label, if Hugging Face's `datasets` wrote the file."""
    told = (schema.metadata or {}).get(b"huggingface")
    feature = json.loads(told)["info"]["features"].get("label", {}) if told else {}
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if names else None


def _encoded(cell: Any) -> bytes | None:
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    return found if isinstance(found, bytes) else None


def _open(cells: Any, index: int) -> io.BytesIO:
    return io.BytesIO(_encoded(cells[index].as_py()) or b"")
