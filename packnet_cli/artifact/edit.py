"""Change an artifact: add, remove or rename a task."""

import dataclasses
from pathlib import Path

from packnet_cli.artifact import atomic, format, masks, verify
from packnet_cli.artifact.format import Artifact, Header, State, Task
from packnet_cli.errors import ForgettingError


def with_task(before: Artifact, task: Task, trained: State, mask: dict[str, masks.Mask]) -> Artifact:
    """A new artifact with one more task, whose `owned` and `digest` are filled in here.

    `trained` is the network's state dict after training, `mask` the new task-index masks. Of the packed weights only
    those that the new task owns are taken over; what is not packed becomes its own.
    Raises ForgettingError unless training left every other weight as it must be, to the bit: an earlier task's
    unchanged, a released one 0. For earlier tasks this proves that every tensor is still the one that was loaded, that
    no weight changed its owner and, by the newest one's digest, which covers every owned weight, that no value changed.
    One digest is enough, however many tasks there are.
    """
    if format.tensor_digests(before.tensors()) != before.header.tensors:
        raise ForgettingError(
            "training changed what earlier tasks are made of; nothing was written. Please report this"
        )
    shared = {}
    for name, values in before.shared.items():
        shared[name] = masks.take_owned(values, trained[name], mask[name], task.index)
        expected = masks.keep_visible(shared[name], mask[name], task.index)
        if not masks.same_bits(trained[name], expected):
            raise ForgettingError(f"training changed frozen weights of {name}; nothing was written. Please report this")
        if not masks.owners_kept(mask[name], before.mask[name]):
            raise ForgettingError(f"weights of {name} changed hands; nothing was written. Please report this")
    own = {name: array for name, array in trained.items() if name not in mask}
    after = format.make(before.header, shared, mask, (*before.own, own))
    for changed in verify.altered_tasks(after, verify.NEWEST):
        raise ForgettingError(f"training changed task {changed}; nothing was written")
    task = dataclasses.replace(
        task,
        owned={name: masks.count_owned(array, task.index) for name, array in mask.items()},
        digest=after.digest(task.index),
    )
    return dataclasses.replace(after, header=dataclasses.replace(after.header, tasks=(*after.header.tasks, task)))


def without_task(before: Artifact, task: Task) -> Artifact:
    """A new artifact without one of its tasks; every other task keeps its index and every bit.

    If it is the newest, its weights become free, as do those of removed tasks that only it still used; they keep their
    values, now dormant. An older task's weights keep its index, since later tasks run on them; all else is deleted.
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
        raise ForgettingError(f"that would change task {changed}; nothing was written")
    return after


def without_newest(artifact: Artifact) -> Artifact:
    """The artifact for training the newest task again: that task's weights are free, its entry is gone."""
    newest = artifact.header.tasks[-1].index
    mask = {name: masks.free_unseen(array, newest - 1) for name, array in artifact.mask.items()}
    header = dataclasses.replace(artifact.header, tasks=artifact.header.tasks[:-1])
    return format.make(header, artifact.shared, mask, artifact.own[:-1])


def freed_by(header: Header, task: Task) -> int:
    """How many weights become free when `task` is removed."""
    last = max((other.index for other in header.tasks if other is not task), default=0)
    return sum(sum(counts.values()) for index, counts in header.owned.items() if index > last)


def remove_task(path: str | Path, wanted: str | int, *, unchanged_since: atomic.Stamp | None = None) -> Artifact:
    """Remove a task, by index or name, from the file; see `without_task`. Returns the new artifact.

    Raises TaskError, ArtifactError, ConflictError; whatever is raised, the file stays as it was.
    """
    path = Path(path)
    with atomic.locked(path):
        unchanged_since = unchanged_since or atomic.stamp(path)
        before = verify.load_verified(path)
        after = without_task(before, before.header.task(wanted))
        format.save(after, path, unchanged_since=unchanged_since)
    return after


def rename(path: str | Path, wanted: str | int, name: str) -> Task:
    """Rename a task, given by index or name. Raises as `remove_task` does. Returns the task."""
    path = Path(path)
    with atomic.locked(path):
        unchanged_since = atomic.stamp(path)
        before = verify.load_verified(path)
        old = before.header.task(wanted)
        before.header.check_new_name(name)
        new = dataclasses.replace(old, name=name)
        tasks = tuple(new if task is old else task for task in before.header.tasks)
        header = dataclasses.replace(before.header, tasks=tasks)
        format.save(dataclasses.replace(before, header=header), path, unchanged_since=unchanged_since)
    return new
