"""What a command reports while it runs: training, passes over images, and lines for the user. Imports no torch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """Where training stands: numbers count from 1, loss and accuracy (percent) are means over the epoch so far.

    The accuracy is None for images without labels.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float | None
    images_per_second: float
    lr: float  # of this step; some parameters use a multiple of it


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in percent over a number of images."""

    top1: float
    top5: float
    images: int


# Called after each step with the task's name, the phase ("train", "retrain") and the step, and after each measurement
# on the held-out images with the name, what was measured ("dense", "pruned", "retrained") and the accuracy.
Progress = Callable[[str, str, Step | Accuracy], None]


def silent(task: str, phase: str, seen: Step | Accuracy) -> None:
    """The progress callback that shows nothing."""


# Given what is done with all images and in how many steps, a context, in which a function is called after each step.
Watch = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def _unwatched(what: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


# Not an argument, which a dozen functions would only hand on.
_watch: ContextVar[Watch] = ContextVar("watch", default=_unwatched)


def passing(what: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
    """The context of a pass over all images, which may take long; see `Watch`."""
    return _watch.get()(what, steps)


@contextmanager
def watched(watch: Watch = _unwatched) -> Iterator[None]:
    """Have passes over images shown by `watch` within, or not at all."""
    before = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(before)


class Say(Protocol):
    """A callback for a line on what is going on; a `warning` is shown even if other lines are not."""

    def __call__(self, line: str, /, *, warning: bool = False) -> None: ...


def unsaid(line: str, /, *, warning: bool = False) -> None:
    """The `Say` callback that shows nothing."""
