"""The packed-model artifact, and its specification (format 1).

The artifact is ONE safetensors file, readable by any safetensors reader. Its tensors:

* `shared.<param>`, float32: the packed weights, one array per packed parameter of the network.
* `mask.<param>`, uint8, same shape: the task-index mask. 0 = free, k = owned by task k. A mask MUST NOT hold an
  index greater than the number of tasks. Every `shared.<param>` MUST have its `mask.<param>`, and the reverse.
* `task.<k>.<name>`, k >= 1: all else that task k runs on: head, biases, normalisation weights and statistics,
  depthwise filters, tokens. `task.0.<name>` holds the values that a first task starts from (no head).

Task k's parameter `<param>` is `shared.<param>` where 0 < mask.<param> <= k, and exactly 0 elsewhere; with the
tensors `task.<k>.*` these make up task k's complete state dict under the network's own (timm) names.
At a free position `shared` holds a dormant value, the one from which the next task may start; no task sees it. A
writer that adds task k MUST NOT change a byte of `shared` outside the weights that task k owns, of `mask` outside
the weights that were free, or of `task.<j>.*` with j < k.

The metadata has one key, `packnet`: a JSON object with sorted keys, so that equal content makes equal bytes:
`format` (1; a reader MUST refuse a greater one), `arch` and `model_kwargs` (arguments of timm.create_model),
`head` (name prefixes of the classifier's parameters), `source` (where the weights came from), `data_config`
(input_size C H W in pixels, mean, std, crop_pct, crop_mode, interpolation) and `tasks`, a list in order of index.
A task has the fields of `Task` below; its `digest` is `sha256:` and the hexadecimal SHA-256 over the tensors of its
state dict, sorted by name, each as `<name> <dtype> <shape>\n` (numpy's dtype name, comma-separated shape) followed by
its little-endian C-order bytes. A digest that still holds proves that the task is what it was when it was added.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from packnet_cli.artifact import atomic, masks
from packnet_cli.errors import ArtifactError, TaskError

FORMAT = 1
Array = NDArray[Any]
State = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """What the metadata says of one task. Accuracies are in percent; without held-out images they are not known."""

    index: int
    name: str
    classes: tuple[str, ...]
    prune: float  # the fraction released, 0 if the task kept everything
    owned: dict[str, int]  # weights owned, by packed parameter
    accuracy: dict[str, float]  # top-1 "dense" and, if pruned, "pruned" and "retrained"
    top1: float | None
    top5: float | None
    images: int  # on so many held-out images
    data: str  # the folder it was trained on, absolute; "" if there was none
    recipe: dict[str, Any]  # every setting that the training depends on
    digest: str
    search: dict[str, float] = dataclasses.field(default_factory=dict)  # `prune` fractions tried -> top-1 on images
    # set aside for that


@dataclasses.dataclass(frozen=True)
class Header:
    """The metadata of an artifact: all that is known without reading a tensor."""

    arch: str
    model_kwargs: dict[str, Any]
    head: tuple[str, ...]
    source: str
    data_config: dict[str, Any]
    tasks: tuple[Task, ...] = ()

    def task(self, wanted: str | int) -> Task:
        """The task with this index or name. Raises TaskError that lists those there are."""
        for task in self.tasks:
            if str(wanted) in (str(task.index), task.name):
                return task
        known = ", ".join(f"{task.index} ({task.name})" for task in self.tasks) or "none yet"
        raise TaskError(f"no task {str(wanted)!r} in this artifact; its tasks: {known}")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A whole packed model: the header and every tensor. Nothing in it is ever changed in place."""

    header: Header
    shared: State  # packed parameter -> float32 values
    mask: dict[str, masks.Mask]  # packed parameter -> task indices, same shape
    own: tuple[State, ...]  # by task index, 0 being the starting point: the tensors that are not packed

    def state(self, task: int) -> State:
        """The complete state dict of task `task` (1-based), as the network needs it."""
        packed = {name: masks.keep_visible(self.shared[name], self.mask[name], task) for name in self.shared}
        return packed | self.own[task]

    def free_count(self) -> int:
        return sum(masks.count_owned(mask, masks.FREE) for mask in self.mask.values())


def digest(state: State) -> str:
    """The digest of a task's state dict, as the specification above defines it."""
    sha = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        sha.update(f"{name} {array.dtype.name} {','.join(map(str, array.shape))}\n".encode())
        sha.update(np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C").reshape(-1).data)
    return f"sha256:{sha.hexdigest()}"


# --- reading --------------------------------------------------------------------------------------------------------


def load_header(path: Path) -> Header:
    """Read the metadata alone; raises ArtifactError if the file is not a readable artifact."""
    with _open(path) as file:
        return _parse_header(path, file.metadata())


def load_shapes(path: Path) -> dict[str, tuple[str, list[int]]]:
    """The type, in safetensors' notation, and shape of every tensor, without reading one."""
    with _open(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}
        return {key: (found.get_dtype(), found.get_shape()) for key, found in slices.items()}


def load(path: Path) -> Artifact:
    """Read and check a whole artifact; raises ArtifactError that names what is wrong."""
    with _open(path) as file:
        header = _parse_header(path, file.metadata())
        shared: State = {}
        mask: dict[str, masks.Mask] = {}
        own: tuple[State, ...] = tuple({} for _ in range(len(header.tasks) + 1))
        for key in file.keys():
            room, _, name = key.partition(".")
            array = file.get_tensor(key)
            if room == "shared":
                shared[name] = array
            elif room == "mask":
                mask[name] = array
            else:
                index, _, name = name.partition(".")
                if room != "task" or not index.isdecimal() or int(index) >= len(own):
                    raise ArtifactError(f"{path} is damaged: it holds an unexpected tensor {key!r}")
                own[int(index)][name] = array
    _check_tensors(path, shared, mask, len(header.tasks))
    return Artifact(header, shared, mask, own)


def _open(path: Path) -> Any:
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; `packnet init --arch ARCH {path}` makes one")
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not a packed model")
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a packed model: not a safetensors file, or damaged ({error})") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from None


def _parse_header(path: Path, metadata: dict[str, str] | None) -> Header:
    if not metadata or "packnet" not in metadata:
        raise ArtifactError(f"{path} is a safetensors file but not a packed model; `packnet init` makes one")
    try:
        fields = json.loads(metadata["packnet"])
        version = fields.pop("format")
        if version > FORMAT:
            raise ArtifactError(f"{path} has format {version}, newer than format {FORMAT} of this packnet; upgrade it")
        tasks = tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in fields.pop("tasks"))
        header = Header(**{**fields, "head": tuple(fields["head"]), "tasks": tasks})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: its metadata cannot be read ({error!r})") from None
    if [task.index for task in tasks] != list(range(1, len(tasks) + 1)):
        raise ArtifactError(f"{path} is damaged: its tasks are not numbered from 1")
    return header


def _check_tensors(path: Path, shared: State, mask: dict[str, masks.Mask], tasks: int) -> None:
    for name in shared.keys() ^ mask.keys():
        raise ArtifactError(f"{path} is damaged: shared.{name} and mask.{name} must come together")
    for name, values in shared.items():
        if values.dtype != np.float32 or mask[name].dtype != np.uint8 or values.shape != mask[name].shape:
            raise ArtifactError(f"{path} is damaged: shared.{name} or mask.{name} has a wrong type or shape")
        if mask[name].size and mask[name].max() > tasks:
            raise ArtifactError(f"{path} is damaged: mask.{name} names a task that does not exist")


# --- writing --------------------------------------------------------------------------------------------------------


def save(artifact: Artifact, path: Path, *, unchanged_since: atomic.Stamp | None = None) -> None:
    """Write the artifact atomically.

    Raises ConflictError, and leaves the file alone, if it is no longer the one that `unchanged_since` was taken of.
    """
    fields = dataclasses.asdict(artifact.header) | {"format": FORMAT}
    metadata = {"packnet": json.dumps(fields, sort_keys=True, separators=(",", ":"))}
    tensors = {f"shared.{name}": array for name, array in artifact.shared.items()}
    tensors |= {f"mask.{name}": array for name, array in artifact.mask.items()}
    tensors |= {f"task.{k}.{name}": array for k, own in enumerate(artifact.own) for name, array in own.items()}
    write_tensors(tensors, metadata, path, unchanged_since=unchanged_since)


def write_tensors(
    tensors: State, metadata: dict[str, str], path: Path, *, unchanged_since: atomic.Stamp | None = None
) -> None:
    """Write one safetensors file atomically."""
    with atomic.replacing(path, unchanged_since=unchanged_since) as temporary:
        try:
            save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None  # the way in which it reports a full disk
