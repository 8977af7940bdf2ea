"""What is shown: results on stdout, progress and errors on stderr. Is handed results, never fetches them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from packnet_cli.artifact.format import Artifact, Header, Task
    from packnet_cli.artifact.summary import Summary
    from packnet_cli.artifact.verify import Finding
    from packnet_cli.engine.train import Step
    from packnet_cli.engine.unpack import Evaluation

# Names and paths come from outside: nothing that they contain is taken for markup (nor acted on, see `visible`).
out = Console(markup=False, highlight=False, soft_wrap=True)
err = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)


def error(message: str) -> None:
    err.print(Text("error: ", style="bold red") + Text(visible(message)))


def say(message: str) -> None:
    """Talk about what is going on, which is no result."""
    err.print(visible(message))


def warning(message: str) -> None:
    err.print(Text("warning: ", style="bold yellow") + Text(visible(message)))


def started(path: Path, artifact: "Artifact") -> None:
    weights = sum(array.size for array in artifact.shared.values())
    channels, height, width = artifact.header.data_config["input_size"]
    _tell(
        f"{path}: {artifact.header.arch}, {_count(weights)} weights, all free; "
        f"{channels} x {height} x {width} pixels; started from: {artifact.header.source}"
    )


def added(numbers: "Summary", *, as_json: bool) -> None:
    task = numbers.header.tasks[-1]
    if as_json:
        _print_json({"task": numbers.task_dict(task), "free_fraction": numbers.free_fraction})
        return
    table = _table(f"task {task.index}: {task.name}", "", "")
    for phase, top1 in task.accuracy.items():
        _add_row(table, f"top-1 {phase}", f"{top1:.2f} %")
    _add_row(table, "held-out images", f"{task.images:,}")
    if task.skipped:
        _add_row(table, "unreadable images", f"{task.skipped:,}")
    _add_row(table, "weights owned", _share(sum(task.owned.values()), numbers.packed_weights))
    free = round(numbers.free_fraction * numbers.packed_weights)
    _add_row(table, "weights free", _share(free, numbers.packed_weights))
    out.print(table)


def evaluated(results: "list[Evaluation]", *, as_json: bool) -> None:
    for result in results:
        if result.missing:
            warning(
                f"task {result.task.index} ({result.task.name}): {len(result.missing)} of {len(result.task.classes)} "
                f"classes have no images here, {result.missing[0]!r} among them"
            )
    if as_json:
        _print_json({"tasks": [_evaluation_dict(result) for result in results]})
        return
    table = _table(None, "task", "name", "top-1 %", "top-5 %", "images")
    for result in results:
        task, accuracy = result.task, result.accuracy
        _add_row(
            table, str(task.index), task.name, f"{accuracy.top1:.2f}", f"{accuracy.top5:.2f}", f"{accuracy.images:,}"
        )
    out.print(table)


def _evaluation_dict(result: "Evaluation") -> dict[str, Any]:
    return {
        "index": result.task.index,
        "name": result.task.name,
        "top1": result.accuracy.top1,
        "top5": result.accuracy.top5,
        "images": result.accuracy.images,
        "missing_classes": list(result.missing),
    }


def extracted(output: Path, header: "Header", task: "Task") -> None:
    arguments = [repr(header.arch), f"num_classes={len(task.classes)}", f"checkpoint_path={str(output)!r}"]
    arguments += [f"{key}={value!r}" for key, value in header.model_kwargs.items()]
    _tell(f"{output}: task {task.index} ({task.name}), {len(task.classes)} classes. To open it:")
    _tell(f"  timm.create_model({', '.join(arguments)})")


def summary(numbers: "Summary", *, as_json: bool) -> None:
    if as_json:
        _print_json(numbers.as_dict())
        return
    header = numbers.header
    _tell(f"{header.arch}, {_count(numbers.packed_weights)} packed weights; started from: {header.source}")
    table = _table(None, "task", "name", "classes", "top-1 %", "of the weights")
    for task in header.tasks:
        share = f"{100 * numbers.owned_fraction(task):.2f} %"
        _add_row(table, str(task.index), task.name, f"{len(task.classes):,}", f"{task.top1:.2f}", share)
    if header.removed:
        _add_row(table, "", "(removed)", "", "", f"{100 * numbers.removed_fraction:.2f} %")
    _add_row(table, "", "free", "", "", f"{100 * numbers.free_fraction:.2f} %")
    out.print(table)
    file, separate = numbers.file_bytes / 1e6, numbers.separate_bytes / 1e6
    networks = f"; {separate:,.1f} MB as a network for each task" if header.tasks else ""
    _tell(f"{file:,.1f} MB in this file{networks}")


def verified(path: Path, findings: "list[Finding]", *, as_json: bool) -> None:
    if as_json:
        _print_json({"whole": not findings, "findings": [asdict(finding) for finding in findings]})
        return
    for finding in findings:
        _tell(finding.problem)
    if not findings:
        _tell(f"{path} is whole, and every task in it to the bit what was added")


def explain_removal(header: "Header", task: "Task", freed: int) -> None:
    """What removing a task would do, on stderr, before it is asked for."""
    later = ", ".join(f"{other.index} ({other.name})" for other in header.tasks if other.index > task.index)
    say(f"task {task.index} ({task.name}): its name, its head and its own tensors go for good.")
    if later:
        say(f"Its {_count(sum(task.owned.values()))} weights do not become free: later tasks run on them: {later}.")
    else:
        say(f"{_count(freed)} weights become free, and keep what it left there, from which the next task starts.")


def confirm(question: str) -> bool:
    """Ask at the terminal; anything but yes is no."""
    try:
        return err.input(f"{question} [y/N] ", markup=False, emoji=False).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def removed(path: Path, task: "Task", freed: int, *, as_json: bool) -> None:
    if as_json:
        _print_json({"removed": {"index": task.index, "name": task.name}, "freed_weights": freed})
        return
    weights = f"{_count(freed)} weights are free again" if freed else "later tasks keep running on its weights"
    _tell(f"{path}: task {task.index} ({task.name}) removed; {weights}")


def renamed(path: Path, task: "Task", *, as_json: bool) -> None:
    if as_json:
        _print_json({"task": {"index": task.index, "name": task.name}})
        return
    _tell(f"{path}: task {task.index} is now {task.name}")


@contextmanager
def training_bar() -> "Iterator[Callable[[str, Step], None]]":
    """A progress bar on stderr for the phases of add-task; yields the callback that moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=err)
    rows: dict[str, Any] = {}

    def move(phase: str, step: "Step") -> None:
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


def visible(text: str) -> str:
    """Text with every character that a terminal would act on, or hide, as its escape: names may come from anywhere."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _tell(text: str) -> None:
    out.print(visible(text))


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(visible, cells))


def _table(title: str | None, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns), safe_box=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if column in ("", "name") and number < 2 else "right")
    return table


def _print_json(document: dict[str, Any]) -> None:
    print(visible(json.dumps(document, ensure_ascii=False)))  # which escapes as JSON does, and inside strings only


def _share(part: int, whole: int) -> str:
    return f"{_count(part)} ({100 * part / whole:.2f} %)"


def _count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,}"
