"""Training as it goes on: a progress bar or lines of JSON on stderr, and a log of metrics."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packnet_cli.errors import ArtifactError
from packnet_cli.report import console

if TYPE_CHECKING:
    from packnet_cli.engine.train import Accuracy, Step

    Seen = Step | Accuracy
    Show = Callable[[str, Seen], None]


@contextmanager
def training(*, log: Path | None = None, as_json: bool = False) -> "Iterator[Show]":
    """Show training on stderr, as a bar or as JSON; yields the callback that is told of steps and accuracies.

    The metrics, a line of JSON for each epoch and each measured accuracy, are also added to the file `log`.
    Raises ArtifactError if it cannot be written.
    """
    with ExitStack() as stack:
        shows: list[Show] = []
        if log is not None:
            shows.append(stack.enter_context(_log(log)))
        if not as_json:
            shows.append(stack.enter_context(_bar()))
        elif not console.talk.quiet:
            shows.append(lambda phase, seen: _tell_metrics(phase, seen, console.print_json_on_stderr))

        def show(phase: str, seen: "Seen") -> None:
            for one in shows:
                one(phase, seen)

        yield show


def _tell_metrics(phase: str, seen: "Seen", write: Callable[[dict[str, Any]], None]) -> None:
    """Write the metrics of an epoch that is over, or of an accuracy; of the steps before nothing."""
    numbers = asdict(seen)
    if not _is_step(seen):
        write({"event": "accuracy", "phase": phase, **numbers})
    elif numbers.pop("step") == numbers.pop("steps"):
        write({"event": "epoch", "phase": phase, **numbers})


def _is_step(seen: "Seen") -> bool:
    """Whether it is no accuracy; told without the class, which stands where torch is."""
    return hasattr(seen, "epoch")


@contextmanager
def _log(log: Path) -> "Iterator[Show]":
    """Metrics to the end of a file; yields the callback that writes them. Raises ArtifactError if it cannot be opened.

    One that cannot be written later, on a full disk for example, is no reason to lose the training.
    """
    try:
        file = open(log, "ab", buffering=0)  # nothing is kept back from who watches it
    except OSError as error:
        raise ArtifactError(f"cannot write the log {log}: {error.strerror or error}") from None
    failed = False

    def write(document: dict[str, Any]) -> None:
        nonlocal failed
        try:
            file.write(json.dumps(document).encode() + b"\n")
        except OSError as error:
            failed = True
            console.warning(f"cannot write the log {log} any more: {error.strerror or error}")

    with file:
        yield lambda phase, seen: None if failed else _tell_metrics(phase, seen, write)


@contextmanager
def _bar() -> "Iterator[Show]":
    """A progress bar for the phases of training; yields the callback that moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console.talk, disable=console.talk.quiet)
    rows: dict[str, Any] = {}

    def move(phase: str, step: Any) -> None:
        if not _is_step(step):
            return
        bar.start()  # not before there is something to show
        if phase not in rows:
            rows[phase] = bar.add_task(phase, total=step.epochs * step.steps, numbers="")
        numbers = f"loss {step.loss:.3f}  acc {step.accuracy:.1f} %  {step.images_per_second:.0f} images/s"
        done = (step.epoch - 1) * step.steps + step.step
        title = f"{phase} epoch {step.epoch}/{step.epochs}"
        bar.update(rows[phase], completed=done, description=title, numbers=numbers)

    try:
        yield move
    finally:
        if rows:
            bar.stop()
