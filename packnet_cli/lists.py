"""Lists of images: CSV files with the columns path, label and, if wanted, split. Imports no torch."""

import csv
from collections import defaultdict
from pathlib import Path

from packnet_cli.errors import DataError

TRAIN = "train"
HELD_OUT = ("val", "validation", "test")  # the first of them that there is

ClassFiles = dict[str, list[Path]]  # class name -> its image files


def is_list(data: Path) -> bool:
    """Whether a --data path is that of a list, and not of a folder."""
    return data.suffix.lower() == ".csv" and not data.is_dir()


def task_name(data: Path) -> str:
    """What a task that is trained on it is called if nobody says: as the folder, or the file without .csv."""
    return data.resolve().stem if is_list(data) else data.resolve().name


def read_list(path: Path) -> dict[str, ClassFiles]:
    """The images of each split, by class in order of name; paths in the file are relative to its folder.

    Without a column `split` all are of the split "train". Raises DataError that names the line.
    """
    splits: dict[str, ClassFiles] = defaultdict(lambda: defaultdict(list))
    seen: set[Path] = set()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or ()
            for column in ("path", "label"):
                if column not in columns:
                    raise DataError(f"{path} has no column {column!r}; its first line must name path and label")
            for row in rows:
                where, label, split = row["path"], row["label"], row["split"] if "split" in columns else TRAIN
                if not where or not label or split not in (TRAIN, *HELD_OUT):
                    known = ", ".join((TRAIN, *HELD_OUT))
                    raise DataError(f"{path}, line {rows.line_num}: needs a path, a label and a split of {known}")
                image = path.parent / where
                if image in seen:
                    raise DataError(f"{path}, line {rows.line_num}: {where} is listed twice")
                seen.add(image)
                splits[split][label].append(image)
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}") from None
    if not splits:
        raise DataError(f"{path} lists no images")
    return {split: {label: sorted(files[label]) for label in sorted(files)} for split, files in splits.items()}
