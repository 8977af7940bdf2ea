"""What can be done with an artifact without running its network."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from packnet_cli.artifact import format, masks
from packnet_cli.artifact.format import Artifact, State, Task
from packnet_cli.errors import ForgettingError


def with_task(before: Artifact, task: Task, trained: State, mask: dict[str, masks.Mask], own: State) -> Artifact:
    """A new artifact with one more task, whose `owned` and `digest` are filled in here.

    `trained` holds the packed weights as they came out of training, `mask` the new task-index masks, `own` the new
    task's tensors that are not packed. Only the weights that the new task owns are taken from `trained`.
    Raises ForgettingError unless training left every other weight as it must be, to the bit (an earlier task's as it
    was, a released one at 0), and every earlier task still has the digest that it was added with.
    """
    shared = {}
    for name, values in before.shared.items():
        shared[name] = np.where(mask[name] == task.index, trained[name], values)
        expected = masks.keep_visible(shared[name], mask[name], task.index)
        if not _same_bits(trained[name], expected):
            raise ForgettingError(f"training changed frozen weights of {name}; nothing was written. Please report this")
        taken = before.mask[name] != masks.FREE
        if not np.array_equal(mask[name][taken], before.mask[name][taken]):
            raise ForgettingError(f"weights of {name} changed hands; nothing was written. Please report this")
    after = Artifact(before.header, shared, mask, (*before.own, own))
    for changed in altered_tasks(after):
        raise ForgettingError(f"training changed task {changed.index} ({changed.name}); nothing was written")
    task = dataclasses.replace(
        task,
        owned={name: masks.count_owned(array, task.index) for name, array in mask.items()},
        digest=format.digest(after.state(task.index)),
    )
    return dataclasses.replace(after, header=dataclasses.replace(before.header, tasks=(*before.header.tasks, task)))


def altered_tasks(artifact: Artifact) -> list[Task]:
    """The tasks that are not, to the bit, what they were when they were added."""
    return [task for task in artifact.header.tasks if format.digest(artifact.state(task.index)) != task.digest]


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
