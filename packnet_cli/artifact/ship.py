"""Write an artifact for others to use: as a compact file, or one task as safetensors."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from packnet_cli.artifact import atomic, codec, compact, format, verify
from packnet_cli.artifact.format import Artifact, Header, State, Task
from packnet_cli.errors import ForgettingError, TaskError, UsageError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The bytes of a file, by content."""

    weights: int
    owners: int  # the task-index masks
    tasks: int  # per-task tensors
    start: int  # the values that a first task starts from
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


def make_compact(path: str | Path, output: str | Path, *, dtype: str = "float32") -> tuple[Sizes, Sizes]:
    """Write the packed model at `path` as a compact file, format 2; returns the sizes of both.

    In "float32" each task stays the same to the bit. In "bfloat16" and "float16" all numbers are rounded, and the tasks
    get new digests beside the old ones. The paths of the images and of the pretrained weights are not copied.
    Raises UsageError, ArtifactError, TaskError if there is no task, ForgettingError.
    """
    if dtype not in codec.DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(codec.DTYPES)}, not {dtype!r}")
    path, output = Path(path), Path(output)
    atomic.check_writable(output)
    format.check_replaceable(output, by_compact=True)
    before = verify.load_verified(path)
    if not before.header.tasks:
        raise TaskError(f"{path} holds no task yet, and to a compact file none can be added")
    header, tensors = before.header, before.tensors()
    size = Sizes.of(path, tensors)
    try:
        how, stored = compact.shrink(header, tensors, dtype)
    except OverflowError as error:
        raise UsageError(
            f"--dtype {dtype} cannot hold this network: {error}; bfloat16 has the range of float32"
        ) from None
    del before, tensors  # what follows takes as much memory again
    about = dataclasses.replace(
        header,
        source=source(header),
        tasks=tuple(dataclasses.replace(task, data="", held_out=None) for task in header.tasks),
        tensors=format.tensor_digests(stored),
        compact=how,
    )
    after = format.assemble(output, about, stored)  # what a reader will have
    changed = verify.altered_tasks(after)
    if dtype == "float32" and changed:
        raise ForgettingError(f"that would change task {changed[0]}; nothing was written")
    if changed:
        tasks = (dataclasses.replace(task, digest=after.digest(task.index)) for task in about.tasks)
        about = dataclasses.replace(about, tasks=tuple(tasks))
    format.write_tensors(stored, format.metadata(about, output), output)
    return size, Sizes.of(output, stored)


def source(header: Header) -> str:
    """What the network started from; of a file only the name, since its path belongs to this machine."""
    return Path(header.source).name if Path(header.source).is_absolute() else header.source


def extract_safetensors(artifact: Artifact, task: Task, output: Path) -> None:
    """Write one task's state dict as safetensors."""
    format.write_tensors(artifact.state(task.index), metadata(artifact, task), output)


def metadata(artifact: Artifact, task: Task) -> dict[str, str]:
    """The metadata of a safetensors file of one task's weights: what its user needs to know, as JSON."""
    return {"packnet_task": json.dumps(about(artifact, task), sort_keys=True)}


def about(artifact: Artifact, task: Task) -> dict[str, Any]:
    """What a user of one task needs to know beside its weights, in types that JSON can hold."""
    return {
        "arch": artifact.header.arch,
        "model_kwargs": artifact.header.model_kwargs,
        "data_config": artifact.header.data_config,
        "task": task.name,
        "classes": task.classes,
    }
