"""The metadata of an artifact: its fields, its text and its seal. It is specified in `format.py`."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from packnet_cli.artifact import codec, rules
from packnet_cli.errors import ArtifactError, CapacityError, DamageError, TaskError, quoted

Counts = dict[str, int]

PLAIN, COMPACT = 1, 2  # the formats
# Limits of the metadata, to bound the memory and time that a hostile file can cost: 255 tasks of a thousand tensors
# fit. An empty list takes fifty times the memory of its text, hence the second limit.
MAX_CHARACTERS, MAX_BRACKETS = 2**25, 2**17
SEALED = re.compile(r'\{"seal":"(sha256:[0-9a-f]{64})",')


@dataclass(frozen=True)
class Task:
    """The metadata of one task. Accuracies are in percent, and unknown without held-out images."""

    index: int
    name: str
    classes: tuple[str, ...]
    prune: float = 0.0  # the fraction released, 0 if the task kept everything
    owned: Counts = field(default_factory=dict)  # weights owned, by packed parameter
    accuracy: dict[str, float] = field(default_factory=dict)  # top-1 by phase: "dense", "pruned", "retrained"
    top1: float | None = None
    top5: float | None = None
    images: int = 0  # held-out images measured
    data: str = ""  # what it was trained on: a folder's or list's absolute path, a dataset's name; "" if not recorded
    recipe: dict[str, Any] = field(default_factory=dict)  # every setting of its training; "amp": in bfloat16
    search: dict[str, float] = field(default_factory=dict)  # fractions that were tried -> top-1 on images set aside
    digest: str = ""
    skipped: int = 0  # unreadable images, left out
    temperature: float | None = None  # logits divided by it are calibrated; unknown without held-out images
    held_out: str | None = None  # digest of the held-out images' names

    def __str__(self) -> str:
        return f"{self.index} ({self.name})"

    @property
    def has_images(self) -> bool:
        """Whether it can be measured again, on images that are on record."""
        return bool(self.data and self.images)


@dataclass(frozen=True)
class Compact:
    """How a compact file is encoded."""

    dtype: str  # of the numbers
    shapes: dict[str, list[int]]  # of the packed parameters
    trees: dict[str, codec.Tree]  # packed parameter -> the tree of its mask
    originals: dict[int, str]  # task index -> its digest in the file that this one was made from


@dataclass(frozen=True)
class Header:
    """The metadata of an artifact: all that is known without reading a tensor."""

    arch: str
    model_kwargs: dict[str, Any]
    head: tuple[str, ...]
    source: str
    data_config: dict[str, Any]
    tasks: tuple[Task, ...] = ()  # in order of index
    removed: dict[int, Counts] = field(default_factory=dict)  # index of a task -> its `owned`
    tensors: dict[str, str] = field(default_factory=dict)  # key of a tensor -> its digest
    compact: Compact | None = None  # in a compact file only

    @property
    def last_index(self) -> int:
        """The index of the newest task, 0 if there is none. No removed task has a greater one."""
        return self.tasks[-1].index if self.tasks else 0

    @property
    def owned(self) -> dict[int, Counts]:
        """The weights that each index owns, by packed parameter; removed tasks' too."""
        return {task.index: task.owned for task in self.tasks} | self.removed

    def task(self, wanted: str | int) -> Task:
        """The task with this index or name. Raises TaskError that lists the existing ones."""
        for task in self.tasks:
            if str(wanted) in (str(task.index), task.name):
                return task
        known = ", ".join(map(str, self.tasks)) or "none yet"
        raise TaskError(f"no task {str(wanted)!r} in this artifact; its tasks: {known}")

    def asked(self, wanted: str | int, path: Path) -> tuple[Task, ...]:
        """The task with this index or name, or every one of the file `path` ("all", or "auto", which chooses of them).

        Raises TaskError, also if there is none yet.
        """
        tasks = self.tasks if wanted in ("all", "auto") else (self.task(wanted),)
        if not tasks:
            raise TaskError(f"{path} holds no task yet; `packnet add-task {quoted(path)} --data DIR` adds one")
        return tasks

    def check_changeable(self, path: Path) -> None:
        """Raise ArtifactError if this is the header of a compact file, `path`."""
        if self.compact:
            raise ArtifactError(
                f"{path} is a compact file, which is for use and holds nothing to go on from; "
                "change the file that it was made of, and make another with `packnet compact`"
            )

    def check_new_name(self, name: str) -> None:
        """Raise TaskError if no new task of this artifact can have this name."""
        if not rules.is_name(name):
            why = "no number, 'all' or 'auto', nothing blank or unprintable"
            raise TaskError(f"{name!r} cannot be a task's name ({why}); give another with --name")
        if name in (task.name for task in self.tasks):
            raise TaskError(f"the artifact has a task {name!r} already; give another name with --name")


def is_of_head(name: str, head: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to the classifier; `head` holds its name prefixes."""
    return name.startswith(tuple(f"{prefix}." for prefix in head))


# --- text -----------------------------------------------------------------------------------------------------------


def write(header: Header) -> str:
    """The metadata as text: equal content, equal text. Raises CapacityError if it is too long, ValueError for NaN."""
    fields = json.loads(json.dumps(dataclasses.asdict(header), allow_nan=False))  # with indices as the text they become
    if header.compact is None:
        del fields["compact"]
    for task in fields["tasks"]:
        for name in rules.OF_MEASURED:
            if task[name] is None:
                del task[name]
    fields["format"] = COMPACT if header.compact else PLAIN
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if _is_oversized(text):
        raise CapacityError("the metadata of so many tasks and classes is more than the format allows")
    return f'{{"seal":"{_digest(text)}",{text[1:]}'


def parse(path: Path, text: str) -> Header:
    """The metadata of the file `path`. Raises DamageError, ArtifactError if its format is newer."""

    def damaged(what: str) -> NoReturn:
        raise DamageError(f"{path} is damaged: {what}") from None

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    sealed = SEALED.match(text)
    if sealed is None or sealed[1] != _digest("{" + text[sealed.end() :]):
        damaged("its metadata is not what was written, as the seal shows")
    if _is_oversized(text[sealed.end() :]):
        damaged("its metadata is longer than the format allows")
    try:
        fields = json.loads(text, parse_constant=no_number)
        version = fields.pop("format")
        if rules.is_count(version) and version > COMPACT:
            raise ArtifactError(f"{path} has format {version}, newer than format {COMPACT} of this packnet; upgrade it")
        if version not in (PLAIN, COMPACT) or type(version) is not int:
            raise ValueError(f"there is no format {version!r}")
        return _header(fields, version)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        damaged(f"its metadata cannot be read ({type(error).__name__}: {error})")


def _is_oversized(text: str) -> bool:
    return len(text) > MAX_CHARACTERS or text.count("[") + text.count("{") > MAX_BRACKETS


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def _header(fields: dict[str, Any], version: int) -> Header:
    """Raises ValueError if the fields break a rule."""
    del fields["seal"]
    rules.check("the artifact", fields, rules.HEADER_RULES | (rules.OF_COMPACT if version == COMPACT else {}))
    for task in fields["tasks"]:
        rules.check("a task", task, rules.TASK_RULES, optional=rules.OF_MEASURED)
    tasks = tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in fields["tasks"])
    removed = {int(index): owned for index, owned in fields["removed"].items()}
    compact = fields.get("compact")
    if compact:
        compact = Compact(**{**compact, "originals": {int(k): found for k, found in compact["originals"].items()}})
    head = tuple(fields["head"])
    header = Header(**{**fields, "head": head, "tasks": tasks, "removed": removed, "compact": compact})
    indices = [task.index for task in tasks]
    if sorted(indices) != indices or sorted([*indices, *removed]) != list(range(1, header.last_index + 1)):
        raise ValueError("its tasks are not numbered from 1")
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError("two of its tasks have one name")
    return header
