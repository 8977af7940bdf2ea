"""Work on many arrays at once: numpy and hashlib release the GIL."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `work` returns for each item, in order. Each thread takes the next item as soon as it has finished one.

    At most four threads, since each call of `work` holds copies of its own.
    """
    waiting = list(items)
    threads = min(4, os.cpu_count() or 1, len(waiting))
    if threads < 2:
        return [work(item) for item in waiting]
    found: dict[int, Result] = {}
    queue = enumerate(waiting)  # a future for each would cost more than the work on a small array

    def share(_: int) -> None:
        for number, item in queue:
            found[number] = work(item)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))  # raises what a thread raised
    return [found[number] for number in range(len(waiting))]
