"""The packed-model artifact and its specification: format 1, and the compact format 2.

The artifact is ONE safetensors file, readable by any safetensors reader. Its tensors:

* `shared.<param>`, float32: the packed weights, one array per packed parameter of the network. There MUST be some.
* `mask.<param>`, uint8, same shape: the task-index mask. 0 = free, k = owned by task k. A mask MUST NOT hold an
  index greater than that of the newest task. Every `shared.<param>` MUST have its `mask.<param>`, and the reverse.
* `task.<k>.<name>`, k >= 1: everything else that task k runs on: head, biases, normalisation weights and statistics,
  depthwise filters, tokens. `task.0.<name>` holds the values that a first task starts from (no head). A <name> MUST NOT
  be that of a packed parameter.

Task k's parameter `<param>` is `shared.<param>` where 0 < mask.<param> <= k, and exactly 0 elsewhere; with the
tensors `task.<k>.*` these make up task k's complete state dict under the network's own (timm) names.
At a free position `shared` holds a dormant value, from which the next task may start; no task sees it. A writer that
adds task k MUST NOT change a byte of `shared` outside the weights that task k owns, of `mask` outside the weights that
were free, or of `task.<j>.*` with j < k.

To remove task k, its entry in `tasks` and `task.<k>.*` are deleted. If it is the newest, its weights, and those of
removed tasks directly below it, become free and keep their values, now dormant. If not, its weights stay owned by
index k, as later tasks run on them, and `removed` says how many. Each index from 1 to the greatest in `tasks` is thus
either in `tasks` or in `removed`; a new task takes the next one.

The metadata has one key, `packnet`: a JSON object in ASCII, without spaces between tokens, its keys sorted except for
the first, so that equal content makes equal bytes. Its text without the seal has at most 2**25 characters, and at most
2**17 opening brackets (`[` and `{`, even in strings). Its members, and those of a task in it, are these and no others:

* `seal`: `sha256:` and the hexadecimal SHA-256 of the object's text without this member (a `{`, then what follows the
  seal's comma). A reader MUST refuse a file whose seal does not match: no bit of the metadata can change unnoticed.
* `format`: 1, or 2 as described below; a reader MUST refuse a greater one.
* `arch`, timm's name of the architecture, and `model_kwargs`: arguments of timm.create_model. As they could fetch or
  unpickle something, `arch` MUST be an identifier, and `model_kwargs` MUST NOT hold `pretrained`, `checkpoint_path`,
  `cache_dir`, `num_classes`, `scriptable`, `exportable`, `no_jit` or a name that begins with `pretrained_cfg`.
  `head`: name prefixes of the classifier's parameters. `source`: where the weights came from. `data_config`: input_size
  (C, H, W in pixels), mean, std, crop_pct, crop_mode, interpolation.
* `tasks`: a list, in order of index, of objects. A task's `digest` is that of its state dict: if it matches, the task
  is what it was when it was added. `index`, 1 to 255; `name`, which no other task has: printable, not blank, no decimal
  number, and neither "all" nor "auto"; `classes`, the names of the head's outputs, in order. `prune`: the fraction
  released, less than 1. `owned`: by packed parameter, how many weights it owns. `accuracy`: top-1 "dense", "pruned" and
  "retrained", each if it was measured; `top1` and `top5`, null if they are not known: all in percent, on so many
  held-out `images`; so many more were `skipped` as unreadable. `data`: the path or dataset that it was trained on, or
  "". `recipe`: the settings. `search`: by fraction tried, the top-1. Left out if they are not known: `temperature`,
  from 0.001 to 1000, by which logits are divided to be calibrated; `held_out`, `sha256:` and the SHA-256 of the
  held-out images' names (`<folder>/<file>`, or the number in a dataset), sorted, joined by newlines.
* `removed`: by index, for each removed task older than the newest, how many weights of each packed parameter it owns.
* `tensors`: by key, the digest of every tensor in the file, as a state dict of its own. They show any change to a bit
  of a tensor, free weights included, or to its name, type or shape; but only `packnet verify` and the commands that
  write a packed model compare them.

The digest of a state dict is `sha256:` and the hexadecimal SHA-256 over its tensors, sorted by name, each as
`<name> <dtype> <shape>\n` (numpy's dtype name, comma-separated shape) followed by its little-endian C-order bytes.

Format 2 holds only the tasks of a format 1 file: no task can be added. It differs from format 1 in this:

* `values.<param>`, one-dimensional, replaces `shared.<param>`: the owned weights, in C order. All others are 0.
  `bits.<param>`, uint8, one-dimensional, replaces `mask.<param>`: the mask, encoded by a tree.
* A tree is a task index (0 for free), if all the weights it encodes have that index, and takes no bits; or a pair of
  trees. A pair has a bit for each weight, in C order, which tells the tree that holds the weight's index (0: the
  first), eight to a byte, the least significant first, the last byte padded with 0; then come the bits of the first
  tree for its weights, then those of the second. An index occurs in a tree at most once; a whole tree is not just 0.
* There is no `task.0.*`. A tensor `task.<k>.<name>` is left out if it equals, to the bit, the `<name>` of the next
  lower task that is not removed.
* The metadata has one more field, `compact`: `dtype`, "float32", "bfloat16" or "float16"; `shapes` and `trees` by
  packed parameter; `originals`, by index, the tasks' digests in the file that this one was made from. With float32
  they equal the tasks' own. Otherwise what was float32 is rounded: to float16, or to bfloat16, stored as uint16, the
  upper half of the float32; in a state dict, and thus for its digest, it is float32 again.
"""

import dataclasses
import hashlib
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from packnet_cli.artifact import atomic, compact, header, masks
from packnet_cli.artifact.header import Header as Header
from packnet_cli.artifact.header import Task as Task
from packnet_cli.artifact.threads import in_threads
from packnet_cli.errors import ArtifactError, DamageError, UsageError, did_you_mean_path, quoted

Array = NDArray[Any]
State = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A whole packed model: the header and every tensor. Nothing in it is ever changed in place."""

    header: Header
    shared: State  # packed parameter -> float32 values
    mask: dict[str, masks.Mask]  # packed parameter -> task indices, same shape
    own: tuple[State, ...]  # by task index (0: the starting point): the tensors that are not packed

    def state(self, task: int) -> State:
        """The complete state dict of task `task` (1-based), as the network needs it."""
        packed = {name: masks.keep_visible(self.shared[name], self.mask[name], task) for name in self.shared}
        return packed | self.own[task]

    def digest(self, task: int) -> str:
        """The digest of `state(task)`, computed without building it, in pieces that fit the processor's cache."""
        sha = hashlib.sha256()
        for name in sorted(self.shared.keys() | self.own[task].keys()):
            array = self.own[task].get(name)
            if array is not None:
                sha.update(_title(name, array))
                sha.update(_bytes(array))
                continue
            sha.update(_title(name, self.shared[name]))
            values, mask = self.shared[name].reshape(-1), self.mask[name].reshape(-1)
            for start in range(0, values.size, masks.PIECE):
                piece = slice(start, start + masks.PIECE)
                sha.update(_bytes(masks.keep_visible(values[piece], mask[piece], task)))
        return f"sha256:{sha.hexdigest()}"

    def free_counts(self) -> dict[str, int]:
        """How many weights of each layer are free."""
        return {layer: masks.count_owned(mask, masks.FREE) for layer, mask in self.mask.items()}

    def free_count(self) -> int:
        """How many weights are free in all."""
        return sum(self.free_counts().values())

    def tensors(self) -> State:
        """Every tensor under its key in the file."""
        keyed = {f"shared.{name}": array for name, array in self.shared.items()}
        keyed |= {f"mask.{name}": array for name, array in self.mask.items()}
        return keyed | {f"task.{k}.{name}": array for k, own in enumerate(self.own) for name, array in own.items()}


def make(about: Header, shared: State, mask: dict[str, masks.Mask], own: tuple[State, ...]) -> Artifact:
    """A new artifact, with the digest of every tensor in its header."""
    artifact = Artifact(about, shared, mask, own)
    digests = tensor_digests(artifact.tensors())
    return dataclasses.replace(artifact, header=dataclasses.replace(about, tensors=digests))


def digest(state: State) -> str:
    """The digest of a state dict, as the specification above defines it."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(_title(name, state[name]))
        sha.update(_bytes(state[name]))
    return f"sha256:{sha.hexdigest()}"


def _title(name: str, array: Array) -> bytes:
    return f"{name} {array.dtype.name} {','.join(map(str, array.shape))}\n".encode()


def _bytes(array: Array) -> memoryview:
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C").reshape(-1).data


def tensor_digests(tensors: State) -> dict[str, str]:
    """The digest of each tensor as a state dict of its own, by key."""
    return dict(zip(tensors, in_threads(lambda key: digest({key: tensors[key]}), tensors), strict=True))


# --- reading --------------------------------------------------------------------------------------------------------


def load_header(path: Path) -> Header:
    """Read the metadata alone; raises ArtifactError if the file is not a readable artifact."""
    with _open(path) as file:
        return _read_header(path, file)


def load_shapes(path: Path) -> tuple[Header, dict[str, tuple[str, list[int]]]]:
    """The metadata, and the type, in safetensors' notation, and shape of every tensor, without reading one."""
    with _open(path) as file:
        about = _read_header(path, file)
        slices = {key: file.get_slice(key) for key in file.keys()}
        return about, {key: (found.get_dtype(), found.get_shape()) for key, found in slices.items()}


def load(path: Path) -> Artifact:
    """Read a whole artifact and check all but the digests; raises ArtifactError that says what is wrong."""
    return assemble(path, *load_tensors(path))


def load_tensors(path: Path) -> tuple[Header, State]:
    """The metadata and every tensor by its key, whether or not they fit together. Raises ArtifactError."""
    with _open(path) as file:
        about = _read_header(path, file)
        tensors = {}
        for key in file.keys():
            try:
                tensors[key] = file.get_tensor(key)
            except (SafetensorError, AttributeError, TypeError, ValueError, OverflowError, MemoryError) as error:
                # numpy does not support every type and shape of safetensors
                raise DamageError(f"{path} is damaged: cannot read the tensor {key!r} ({error})") from None
    return about, tensors


def assemble(path: Path, about: Header, tensors: State) -> Artifact:
    """Build an artifact from its parts. Raises DamageError that names `path` and the rule of the format they break."""

    def require(rule: bool, problem: str) -> None:
        if not rule:
            raise DamageError(f"{path} is damaged: {problem}")

    stored = tensors
    if about.compact:
        try:
            tensors = compact.expand(about, about.compact, stored)
        except ValueError as error:
            require(False, str(error))
    shared: State = {}
    mask: dict[str, masks.Mask] = {}
    own: tuple[State, ...] = tuple({} for _ in range(about.last_index + 1))
    indices = {str(task.index): task.index for task in about.tasks}
    if not about.compact:
        indices["0"] = 0  # the values to start from
    for key, array in tensors.items():
        prefix, _, name = key.partition(".")
        index, _, rest = name.partition(".")
        require(prefix in ("shared", "mask") or prefix == "task" and index in indices, f"unexpected tensor {key!r}")
        if prefix == "task":
            own[indices[index]][rest] = array
        else:
            (shared if prefix == "shared" else mask)[name] = array
    for name in shared.keys() ^ mask.keys():
        require(False, f"shared.{name} and mask.{name} must come together")
    for name, values in shared.items():
        fits = values.dtype == np.float32 and mask[name].dtype == np.uint8 and values.shape == mask[name].shape
        require(fits, f"shared.{name} or mask.{name} has a wrong type or shape")
        require(int(mask[name].max(initial=0)) <= about.last_index, f"mask.{name} names a task that does not exist")
        require(all(name not in state for state in own), f"{name} is both packed and a task's own")
    require(any(values.size for values in shared.values()), "it holds no packed weights")
    for key in stored.keys() ^ about.tensors.keys():
        require(False, f"its metadata and its tensors disagree about {key!r}")
    return Artifact(about, shared, mask, own)


def _open(path: Path) -> Any:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ArtifactError(f"{path} is a folder, not a packed model")
        if not stat.S_ISREG(kind):  # opening a pipe would block
            raise ArtifactError(f"{path} is a device or the like, not a packed model")
        with open(path, "rb"):  # of a file that may not be read safetensors says that there is none
            return safe_open(path, framework="np")
    except SafetensorError as error:
        raise DamageError(f"{path} is not a packed model: not a safetensors file, or damaged ({error})") from None
    except FileNotFoundError:
        hint = did_you_mean_path(path) or f"`packnet init --arch ARCH {quoted(path)}` makes one"
        raise ArtifactError(f"{path} does not exist; {hint}") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from None


def _read_header(path: Path, file: Any) -> Header:
    metadata = file.metadata()
    if not metadata or "packnet" not in metadata:
        raise DamageError(f"{path} is a safetensors file but not a packed model; `packnet init` makes one")
    return header.parse(path, metadata["packnet"])


# --- writing --------------------------------------------------------------------------------------------------------


def check_replaceable(output: Path, *, by_compact: bool = False) -> None:
    """Raise UsageError if `output` is a packed model, also a damaged or newer one; `by_compact` spares compact ones."""
    packed = compacted = False
    with suppress(ArtifactError), _open(output) as file:
        packed = "packnet" in (file.metadata() or {})
        compacted = packed and _read_header(output, file).compact is not None
    if packed and not (compacted and by_compact):
        raise UsageError(f"{output} is a packed model, whose tasks would be lost; name another file to write")


def save(artifact: Artifact, path: Path, *, unchanged_since: atomic.Stamp | None = None) -> None:
    """Write the artifact atomically.

    Raises ConflictError, and leaves the file alone, if it has changed since the stamp `unchanged_since`; ArtifactError
    if the artifact was read from a compact file.
    """
    artifact.header.check_changeable(path)
    write_tensors(artifact.tensors(), metadata(artifact.header, path), path, unchanged_since=unchanged_since)


def metadata(about: Header, path: Path) -> dict[str, str]:
    """The metadata to write to `path`. Raises ArtifactError if no reader would accept it."""
    text = header.write(about)
    try:
        header.parse(path, text)
    except DamageError as error:
        raise ArtifactError(f"cannot write {path}, as nobody could read it ({error}). Please report this") from None
    return {"packnet": text}


def write_tensors(
    tensors: State, metadata: dict[str, str], path: Path, *, unchanged_since: atomic.Stamp | None = None
) -> None:
    """Write one safetensors file atomically."""
    with atomic.replacing(path, unchanged_since=unchanged_since) as temporary:
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, temporary, metadata)
