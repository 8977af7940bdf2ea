"""The encoding of masks and numbers in a compact file: pure functions on arrays. It is specified in `format.py`."""

import heapq
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packnet_cli.artifact import masks

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Tree = int | list[Any]  # a task index, or two trees

DTYPES = ("float32", "bfloat16", "float16")


def leaves(tree: Tree) -> Iterator[int]:
    """The task indices in a tree."""
    if isinstance(tree, int):
        yield tree
    else:
        for branch in tree:
            yield from leaves(branch)


def shortest_tree(mask: masks.Mask) -> Tree:
    """The Huffman tree of a mask: the more weights an index has, the nearer it is to the root."""
    heap: list[tuple[int, int, Tree]] = [(count, k, k) for k, count in enumerate(masks.count_by_owner(mask)) if count]
    if {index for _, index, _ in heap} <= {masks.FREE}:  # 0 alone takes no bits: any size could be claimed
        heap = [(0, 1, 1), (mask.size, masks.FREE, masks.FREE)]
    heapq.heapify(heap)
    while len(heap) > 1:
        less, more = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (less[0] + more[0], min(less[1], more[1]), [more[2], less[2]]))
    return heap[0][2]


def write_mask(mask: masks.Mask, tree: Tree) -> Bytes:
    """Encode a task-index mask of any shape."""
    parts: list[Bytes] = []

    def write(indices: masks.Mask, tree: Tree) -> None:
        if isinstance(tree, int):
            return
        bits = np.zeros(indices.shape, np.bool_)
        for index in leaves(tree[1]):  # faster than a look-up, which would widen each index to 64 bits
            bits |= indices == index
        parts.append(np.packbits(bits, bitorder="little"))
        for branch, chosen in zip(tree, (~bits, bits), strict=True):
            if not isinstance(branch, int):
                write(indices[chosen], branch)

    write(mask.reshape(-1), tree)
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def read_mask(packed: Bytes, tree: Tree, size: int) -> masks.Mask:
    """Decode what `write_mask` returned to indices (size,). Raises ValueError if the bytes are too few or too many."""
    start = 0

    def read(tree: Tree, size: int) -> masks.Mask:
        nonlocal start
        if isinstance(tree, int):
            return np.full(size, tree, np.uint8)
        part = packed[start : start + math.ceil(size / 8)]
        start += math.ceil(size / 8)
        if start > packed.size:
            raise ValueError("has too few bits")
        bits = np.unpackbits(part, count=size, bitorder="little").view(np.bool_)
        ones = int(np.count_nonzero(bits))
        # A branch that is a single index is written by arithmetic, three times as fast as boolean indexing.
        first, second = (np.uint8(branch if isinstance(branch, int) else 0) for branch in tree)
        indices: masks.Mask = first ^ bits.view(np.uint8) * (second ^ first)
        if not isinstance(tree[0], int):
            indices[~bits] = read(tree[0], size - ones)
        if not isinstance(tree[1], int):
            indices[bits] = read(tree[1], ones)
        return indices

    indices = read(tree, size)
    if start != packed.size:
        raise ValueError("has too many bits")
    return indices


def narrow(values: Array, dtype: str) -> Array:
    """Round float32 numbers to `dtype`, to nearest with ties to even; other types are returned as they are.

    numpy has no bfloat16: it is the upper half of a float32, stored as uint16.
    Raises OverflowError if a number is beyond the range of `dtype`.
    """
    if dtype == "float32" or values.dtype != np.float32:
        return values
    if dtype == "float16":
        with np.errstate(over="ignore"):
            narrowed: Array = values.astype(np.float16)
    else:
        bits = values.view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
        narrowed = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    if not np.array_equal(np.isfinite(widen(narrowed)), np.isfinite(values)):
        raise OverflowError(f"a number is too large for {dtype}")
    return narrowed


def widen(values: Array) -> Array:
    """What `narrow` returned, as float32 again."""
    if values.dtype == np.uint16:
        return np.left_shift(values, 16, dtype=np.uint32).view(np.float32)
    return values.astype(np.float32) if values.dtype == np.float16 else values
