"""What can be done with an artifact without running its network."""

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from packnet_cli.artifact import atomic, codec, compact, format, masks, verify
from packnet_cli.artifact.format import Artifact, Header, State, Task
from packnet_cli.errors import ArtifactError, ForgettingError, TaskError, UsageError


def with_task(before: Artifact, task: Task, trained: State, mask: dict[str, masks.Mask], own: State) -> Artifact:
    """A new artifact with one more task, whose `owned` and `digest` are filled in here.

    `trained` holds the packed weights as they came out of training, `mask` the new task-index masks, `own` the new
    task's tensors that are not packed. Only the weights that the new task owns are taken from `trained`.
    Raises ForgettingError unless training left every other weight as it must be, to the bit: an earlier task's as it
    was, a released one at 0. Of earlier tasks it is proved that every tensor is still the one that was loaded, that no
    weight changed hands, and by the newest one's digest, which takes in every owned weight, that none moved: that takes
    no longer with many tasks.
    """
    if format.tensor_digests(before.tensors()) != before.header.tensors:
        raise ForgettingError(
            "training changed what earlier tasks are made of; nothing was written. Please report this"
        )
    shared = {}
    for name, values in before.shared.items():
        shared[name] = masks.take_owned(values, trained[name], mask[name], task.index)
        expected = masks.keep_visible(shared[name], mask[name], task.index)
        if not _same_bits(trained[name], expected):
            raise ForgettingError(f"training changed frozen weights of {name}; nothing was written. Please report this")
        if not masks.owners_kept(mask[name], before.mask[name]):
            raise ForgettingError(f"weights of {name} changed hands; nothing was written. Please report this")
    after = format.make(before.header, shared, mask, (*before.own, own))
    for changed in verify.altered_tasks(after, verify.NEWEST):
        raise ForgettingError(f"training changed task {changed.index} ({changed.name}); nothing was written")
    task = dataclasses.replace(
        task,
        owned={name: masks.count_owned(array, task.index) for name, array in mask.items()},
        digest=after.digest(task.index),
    )
    return dataclasses.replace(after, header=dataclasses.replace(after.header, tasks=(*after.header.tasks, task)))


def without_task(before: Artifact, task: Task) -> Artifact:
    """A new artifact without one of its tasks; every other one keeps its index and every bit.

    The newest one's weights become free, and with them those of removed tasks that only it still saw; they keep their
    values, as dormant ones. An older one's weights stay its own, since later tasks run on them; the rest of it goes.
    """
    header = before.header
    tasks = tuple(other for other in header.tasks if other is not task)
    last = tasks[-1].index if tasks else 0
    removed = header.removed | {task.index: task.owned}
    own = tuple({} if index == task.index else own for index, own in enumerate(before.own))
    header = dataclasses.replace(
        header, tasks=tasks, removed={index: owned for index, owned in removed.items() if index < last}
    )
    mask = {name: masks.free_unseen(array, last) for name, array in before.mask.items()}
    after = format.make(header, before.shared, mask, own[: last + 1])
    for changed in verify.altered_tasks(after):
        raise ForgettingError(f"that would change task {changed.index} ({changed.name}); nothing was written")
    return after


def without_newest(artifact: Artifact) -> Artifact:
    """The newest task's weights free, its entry gone: what the artifact is to that task, if it is trained again."""
    newest = artifact.header.tasks[-1].index
    mask = {name: masks.free_unseen(array, newest - 1) for name, array in artifact.mask.items()}
    header = dataclasses.replace(artifact.header, tasks=artifact.header.tasks[:-1])
    return format.make(header, artifact.shared, mask, artifact.own[:-1])


def freed_by(header: Header, task: Task) -> int:
    """How many weights become free when `task` is removed."""
    last = max((other.index for other in header.tasks if other is not task), default=0)
    owned = {other.index: other.owned for other in header.tasks} | header.removed
    return sum(sum(counts.values()) for index, counts in owned.items() if index > last)


@atomic.exclusive
def remove_task(path: Path, wanted: str | int, *, unchanged_since: atomic.Stamp | None = None) -> Artifact:
    """Take a task, by index or name, out of the file; see `without_task`. Returns the new artifact.

    Whatever is raised, the file stays as it was: TaskError, ArtifactError, ConflictError.
    """
    unchanged_since = unchanged_since or atomic.stamp(path)
    before = verify.load_verified(path)
    after = without_task(before, before.header.task(wanted))
    format.save(after, path, unchanged_since=unchanged_since)
    return after


@atomic.exclusive
def rename(path: Path, wanted: str | int, name: str) -> Task:
    """Give a task, by index or name, another name. Raises as `remove_task` does. Returns the task."""
    unchanged_since = atomic.stamp(path)
    before = verify.load_verified(path)
    old = before.header.task(wanted)
    before.header.check_new_name(name)
    new = dataclasses.replace(old, name=name)
    header = dataclasses.replace(
        before.header, tasks=tuple(new if task is old else task for task in before.header.tasks)
    )
    format.save(dataclasses.replace(before, header=header), path, unchanged_since=unchanged_since)
    return new


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The bytes of a file, by what they hold."""

    weights: int
    owners: int  # the task-index masks
    tasks: int  # what each task has of its own
    start: int  # from which a first task starts
    metadata: int

    @classmethod
    def of(cls, path: Path, tensors: State) -> "Sizes":
        def count(*starts: str) -> int:
            return sum(array.nbytes for key, array in tensors.items() if key.startswith(starts))

        start, numbers = count("task.0."), count("")
        metadata = path.stat().st_size - numbers
        return cls(count("shared.", "values."), count("mask.", "bits."), count("task.") - start, start, metadata)

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def make_compact(path: Path, output: Path, *, dtype: str = "float32") -> tuple[Sizes, Sizes]:
    """Write a compact file, format 2, of the one at `path`; returns the sizes of both.

    In float32 each task is to the bit the same. In "bfloat16" and "float16" all numbers are rounded, and the tasks get
    new digests beside the old ones. Where images lie, and the path of the weights, do not go along.
    Raises UsageError, ArtifactError, TaskError if there is no task, ForgettingError.
    """
    if dtype not in codec.DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(codec.DTYPES)}, not {dtype!r}")
    atomic.check_writable(output)
    with suppress(ArtifactError):  # it is nothing of the kind
        if format.load_header(output).compact is None:
            raise UsageError(
                f"{output} is a packed model that can take tasks, as no compact file can; name another file"
            )
    before = verify.load_verified(path)
    if not before.header.tasks:
        raise TaskError(f"{path} holds no task yet, and to a compact file none can be added")
    tensors = before.tensors()
    try:
        how, stored = compact.shrink(before.header, tensors, dtype)
    except OverflowError as error:
        raise UsageError(
            f"--dtype {dtype} cannot hold this network: {error}; bfloat16 has the range of float32"
        ) from None
    about = dataclasses.replace(
        before.header,
        source=Path(before.header.source).name if Path(before.header.source).is_absolute() else before.header.source,
        tasks=tuple(dataclasses.replace(task, data="") for task in before.header.tasks),
        tensors=format.tensor_digests(stored),
        compact=how,
    )
    after = format.assemble(output, about, stored)  # what a reader will have
    changed = verify.altered_tasks(after)
    if dtype == "float32" and changed:
        raise ForgettingError(f"that would change task {changed[0].index} ({changed[0].name}); nothing was written")
    digests = [after.digest(task.index) if task in changed else task.digest for task in about.tasks]
    tasks = (dataclasses.replace(task, digest=d) for task, d in zip(about.tasks, digests, strict=True))
    about = dataclasses.replace(about, tasks=tuple(tasks))
    format.write_tensors(stored, format.metadata(about, output), output)
    return Sizes.of(path, tensors), Sizes.of(output, stored)


def extract_safetensors(artifact: Artifact, task: Task, output: Path) -> None:
    """Write one task's state dict as safetensors, what a user of it needs to know as JSON in the metadata."""
    metadata = {"packnet_task": json.dumps(about(artifact, task), sort_keys=True)}
    format.write_tensors(artifact.state(task.index), metadata, output)


def about(artifact: Artifact, task: Task) -> dict[str, Any]:
    """What a user of one task needs to know beside its weights, as JSON can hold it."""
    return {
        "arch": artifact.header.arch,
        "model_kwargs": artifact.header.model_kwargs,
        "data_config": artifact.header.data_config,
        "task": task.name,
        "classes": task.classes,
    }


def _same_bits(one: format.Array, other: format.Array) -> bool:
    """Whether two float32 arrays are equal to the bit, which tells -0 from 0 and a NaN from another."""
    return bool(np.array_equal(np.asarray(one).view(np.uint32), np.asarray(other).view(np.uint32)))
