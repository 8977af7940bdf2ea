"""Report a pass over all images in progress: one that checks them, or measures on them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from packnet_cli.report import console

PATIENCE = 1.0  # seconds that a pass may take before there is a bar for it


@contextmanager
def passing(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show a pass over images by a bar that vanishes with its end, if it takes long and there is a terminal."""
    bar = row = None
    began, done = time.monotonic(), 0

    def passed() -> None:
        nonlocal bar, row, done
        done += 1
        if bar is not None:
            bar.update(row, completed=done)
        elif console.talk.is_terminal and time.monotonic() - began > PATIENCE:
            from rich.progress import Progress

            bar = Progress(console=console.talk, disable=console.talk.quiet, transient=True)
            row = bar.add_task(what, total=steps, completed=done)
            bar.start()

    try:
        yield passed
    finally:
        if bar is not None:
            bar.stop()
