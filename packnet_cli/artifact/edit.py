"""What changes an artifact: a task comes, goes, or gets another name."""

import dataclasses
from pathlib import Path

from packnet_cli.artifact import atomic, format, masks, verify
from packnet_cli.artifact.format import Artifact, Header, State, Task
from packnet_cli.errors import ForgettingError


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
        if not masks.same_bits(trained[name], expected):
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


def remove_task(path: Path, wanted: str | int, *, unchanged_since: atomic.Stamp | None = None) -> Artifact:
    """Take a task, by index or name, out of the file; see `without_task`. Returns the new artifact.

    Whatever is raised, the file stays as it was: TaskError, ArtifactError, ConflictError.
    """
    with atomic.locked(path):
        unchanged_since = unchanged_since or atomic.stamp(path)
        before = verify.load_verified(path)
        after = without_task(before, before.header.task(wanted))
        format.save(after, path, unchanged_since=unchanged_since)
    return after


def rename(path: Path, wanted: str | int, name: str) -> Task:
    """Give a task, by index or name, another name. Raises as `remove_task` does. Returns the task."""
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
