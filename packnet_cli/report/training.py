"""Report training in progress: a bar or lines of JSON on stderr, and a log of metrics."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from packnet_cli import metrics
from packnet_cli.progress import Accuracy, Progress, Step, watched
from packnet_cli.report import console
from packnet_cli.report.logs import Write, log_to


@contextmanager
def training(*, log: Path | None = None, as_json: bool = False) -> Iterator[Progress]:
    """Show training on stderr, as a bar or as JSON; yields the callback that takes steps and accuracies.

    The metrics, a line of JSON for each epoch and each measured accuracy, are also appended to the log in the folder
    `log`. Raises ArtifactError if that cannot be opened.
    """
    with ExitStack() as stack:
        writers: list[Write] = []
        if log is not None:
            writers.append(stack.enter_context(log_to(log)))
        move: Callable[[str, Step], None] | None = None
        if as_json:
            stack.enter_context(watched())  # lines alone, and no bar among them
            if not console.talk.quiet:
                writers.append(console.print_json_on_stderr)
        else:
            move = stack.enter_context(_bar() if console.talk.is_terminal else nullcontext(_epoch_line))

        def show(task: str, phase: str, seen: Step | Accuracy) -> None:
            line = metrics.line(task, phase, seen)
            if line is not None:
                for write in writers:
                    write(line)
            if move is not None and isinstance(seen, Step):
                move(phase, seen)

        yield show


def _epoch_line(phase: str, step: Step) -> None:
    """A line at the end of each epoch, in place of a bar where there is no terminal."""
    if step.step == step.steps:
        console.say("  ".join(_described(phase, step)))


def _described(phase: str, step: Step) -> tuple[str, str]:
    accuracy = "" if step.accuracy is None else f"acc {step.accuracy:.1f} %  "
    numbers = f"loss {step.loss:.3f}  {accuracy}{step.images_per_second:.0f} images/s"
    return f"{phase} epoch {step.epoch}/{step.epochs}", numbers


@contextmanager
def _bar() -> Iterator[Callable[[str, Step], None]]:
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

    def move(phase: str, step: Step) -> None:
        bar.start()  # only once there is something to show
        if phase not in rows:
            rows[phase] = bar.add_task(phase, total=step.epochs * step.steps, numbers="")
        done = (step.epoch - 1) * step.steps + step.step
        title, numbers = _described(phase, step)
        bar.update(rows[phase], completed=done, description=title, numbers=numbers)

    try:
        yield move
    finally:
        if rows:
            bar.stop()
