"""The algebra of the task-index mask: pure functions on one layer's uint8 array.

Every weight of a layer carries the index of the task that owns it; 0 means that it is free. Task k runs on the
weights whose index m satisfies 0 < m <= k (PackNet, section 3). All arrays of one call have the same shape.
"""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

FREE = 0
MAX_TASKS = 255  # what a uint8 can tell apart, 0 being taken
PIECE = 1 << 17  # weights that are looked at at once
SAMPLE = 1 << 16  # of a layer's weights, where their distribution is all that matters


def visible(mask: Mask, task: int) -> Bools:
    """The weights that `task` runs on: its own and those of every earlier task."""
    # One pass instead of three: 0 (free) wraps around to 255, which no task index less one reaches.
    return mask - np.uint8(1) < np.uint8(task)


def keep_visible(values: Floats, mask: Mask, task: int, out: Floats | None = None) -> Floats:
    """`values` with everything that `task` does not see set to exactly 0: a copy, or written into `out`."""
    out = np.empty_like(values) if out is None else out
    rows, kept, indices = np.atleast_1d(values), np.atleast_1d(out), np.atleast_1d(mask)  # there are lone numbers
    count = max(1, PIECE * len(rows) // max(1, rows.size))
    for start in range(0, len(rows), count):  # so that what is in between stays in the processor's cache
        piece = slice(start, start + count)
        # On the bits: a number and all ones is itself, and all zeros is +0. Six times as fast as numpy.where.
        ones = -visible(indices[piece], task).view(np.int8)  # -1 is all ones, also once it is widened to 32 bits
        np.bitwise_and(rows[piece].view(np.int32), ones, out=kept[piece].view(np.int32))
    return out


def claim_free(mask: Mask, task: int) -> Mask:
    """A new mask in which every free weight is owned by `task`."""
    return np.where(mask == FREE, np.uint8(task), mask)


def free_unseen(mask: Mask, task: int) -> Mask:
    """A new mask in which every weight that `task` does not see is free; with task 0, all."""
    return np.where(mask > task, np.uint8(FREE), mask)


def release_smallest(mask: Mask, values: Floats, task: int, count: int) -> Mask:
    """A new mask in which the `count` smallest-magnitude weights owned by `task` are free.

    Exactly `count` are released: ties at the cutoff go by position, first come first released.
    Raises ValueError if `task` owns fewer than `count` weights.
    """
    own = mask == task
    if not 0 <= count <= np.count_nonzero(own):
        raise ValueError(f"cannot release {count} of {np.count_nonzero(own)} weights")
    if count == 0:
        return mask.copy()
    # Whole arrays, in which others' weights are out of reach: to pick the task's own out and put them back costs more.
    magnitudes = np.where(own, np.abs(values), np.float32(np.inf))
    cutoff = np.partition(magnitudes, count - 1, axis=None)[count - 1]
    released = magnitudes < cutoff
    ties = np.flatnonzero((magnitudes == cutoff) & own)
    released.flat[ties[: count - np.count_nonzero(released)]] = True
    return np.where(released, np.uint8(FREE), mask)


def counts_across(magnitudes: dict[str, Floats], count: int, *, adaptive: bool) -> dict[str, int]:
    """How many of `count` weights to release lie in each layer, given the magnitudes there, if all compete.

    They compete by magnitude, or (`adaptive`) by LAMP: the square over the sum of the squares of all weights of the
    layer that are no smaller (Lee et al. 2021, arXiv 2010.07611), which no layer's last weight loses.
    Of a large layer a regular sample stands for all; the counts still add up to `count`.
    """
    scores, stands_for, layer = [], [], []
    for number, own in enumerate(magnitudes.values()):
        sample = np.sort(own[:: max(1, own.size // SAMPLE)]).astype(np.float64)
        each = own.size / max(1, sample.size)
        if adaptive:
            squares = sample**2
            rest = each * np.cumsum(squares[::-1])[::-1]
            sample = np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
        scores.append(sample)
        stands_for.append(np.full(sample.size, each))
        layer.append(np.full(sample.size, number))
    order = np.argsort(np.concatenate(scores), kind="stable")
    amounts = np.concatenate(stands_for)[order]
    smallest = np.cumsum(amounts) <= count + 0.5
    sums = np.bincount(np.concatenate(layer)[order][smallest], amounts[smallest], minlength=len(magnitudes))
    counts = dict(zip(magnitudes, np.floor(sums + 1e-6).astype(int).tolist(), strict=True))
    for name in sorted(counts, key=lambda name: magnitudes[name].size - counts[name], reverse=True):
        counts[name] += min(count - sum(counts.values()), magnitudes[name].size - counts[name])
    return counts


def count_owned(mask: Mask, task: int) -> int:
    """How many weights `task` owns; with task 0, how many are free."""
    return int(np.count_nonzero(mask == task))
