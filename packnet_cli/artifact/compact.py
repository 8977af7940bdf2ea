"""Convert an artifact's tensors to those of a compact file and back. The format is specified in `format.py`."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from packnet_cli.artifact import codec, masks
from packnet_cli.artifact.header import Compact, Header

State = dict[str, NDArray[Any]]
T = TypeVar("T")


def shrink(header: Header, tensors: State, dtype: str) -> tuple[Compact, State]:
    """An artifact's tensors as a compact file holds them, and how to decode them. Raises as `codec.narrow` does."""
    stored, shapes, trees = {}, {}, {}
    for key, mask in tensors.items():
        prefix, _, name = key.partition(".")
        if prefix != "mask":
            continue
        shapes[name], trees[name] = list(mask.shape), codec.shortest_tree(mask)
        stored[f"bits.{name}"] = codec.write_mask(mask, trees[name])
        stored[f"values.{name}"] = codec.narrow(tensors[f"shared.{name}"][mask != masks.FREE], dtype)
    before: State = {}
    given = by_task(tensors)
    for task in header.tasks:
        own = {name: codec.narrow(array, dtype) for name, array in given[str(task.index)].items()}
        same = {name for name in own.keys() & before.keys() if masks.same_bits(own[name], before[name])}
        stored |= {f"task.{task.index}.{name}": array for name, array in own.items() if name not in same}
        before = own
    return Compact(dtype, shapes, trees, {task.index: task.digest for task in header.tasks}), stored


def by_task(tensors: Mapping[str, T]) -> defaultdict[str, dict[str, T]]:
    """Per-task tensors: task index (a string, from the key) -> name -> value."""
    found: defaultdict[str, dict[str, T]] = defaultdict(dict)
    for key, value in tensors.items():
        prefix, _, rest = key.partition(".")
        index, _, name = rest.partition(".")
        if prefix == "task":
            found[index][name] = value
    return found


def expand(header: Header, how: Compact, stored: State) -> State:
    """The tensors of a compact file converted to format 1. Raises ValueError if they break a rule."""
    tensors = {key: codec.widen(array) for key, array in stored.items() if key.startswith("task.")}
    given = by_task(tensors)
    rest = stored.keys() - tensors.keys() - {f"{prefix}.{name}" for name in how.shapes for prefix in ("values", "bits")}
    if rest:
        raise ValueError(f"unexpected tensor {min(rest)!r}")
    own: State = {}
    for task in header.tasks:
        own = own | given[str(task.index)]
        tensors |= {f"task.{task.index}.{name}": array for name, array in own.items()}
    for name, shape in how.shapes.items():
        if not {f"values.{name}", f"bits.{name}"} <= stored.keys():
            raise ValueError(f"values.{name} or bits.{name} is missing")
        values, bits = codec.widen(stored[f"values.{name}"]), stored[f"bits.{name}"]
        if values.dtype != np.float32 or bits.dtype != np.uint8 or not values.ndim == bits.ndim == 1:
            raise ValueError(f"values.{name} or bits.{name} has a wrong type or shape")
        try:
            shared, mask = _expand_layer(values, bits, how.trees[name], math.prod(shape))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        tensors[f"shared.{name}"], tensors[f"mask.{name}"] = shared.reshape(shape), mask.reshape(shape)
    return tensors


def _expand_layer(
    values: masks.Floats, bits: codec.Bytes, tree: codec.Tree, size: int
) -> tuple[masks.Floats, masks.Mask]:
    """The weights and the task-index mask of one layer, both (size,); free weights are 0. Raises ValueError."""
    if not values.size <= size <= values.size + 8 * bits.size:  # or a small file could ask for much memory
        raise ValueError("is larger than what the file holds of it")
    mask = codec.read_mask(bits, tree, size)
    owned = mask != masks.FREE
    if np.count_nonzero(owned) != values.size:
        raise ValueError("has not as many values as owned weights")
    shared = np.zeros(size, np.float32)
    shared[owned] = values
    return shared, mask
