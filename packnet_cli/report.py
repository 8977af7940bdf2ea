"""What is shown: results on stdout, progress and errors on stderr. Is handed results, never fetches them."""

import csv
import json
import string
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from packnet_cli.artifact.edit import Sizes
    from packnet_cli.artifact.format import Artifact, Header, Task
    from packnet_cli.artifact.plan import Plan
    from packnet_cli.artifact.summary import Summary
    from packnet_cli.artifact.verify import Finding
    from packnet_cli.engine.predict import Answer
    from packnet_cli.engine.train import Step
    from packnet_cli.engine.unpack import Evaluation

BAR = 14  # columns of a terminal
DIGITS = string.digits + string.ascii_lowercase

# Names and paths come from outside: nothing that they contain is taken for markup (nor acted on, see `visible`).
out = Console(markup=False, highlight=False, soft_wrap=True)
err = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)
talk = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)  # what --quiet does without


def error(message: str) -> None:
    err.print(Text("error: ", style="bold red") + Text(visible(message)))


def say(message: str) -> None:
    """Talk about what is going on, which is no result."""
    talk.print(visible(message))


def warning(message: str) -> None:
    err.print(Text("warning: ", style="bold yellow") + Text(visible(message)))


def started(path: Path, artifact: "Artifact") -> None:
    weights = sum(array.size for array in artifact.shared.values())
    free = artifact.free_count()
    channels, height, width = artifact.header.data_config["input_size"]
    _tell(
        f"{path}: {artifact.header.arch}, {_count(weights)} weights, {_count(free) if free < weights else 'all'} free; "
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
    for fraction, top1 in task.search.items():
        _add_row(table, f"top-1 if pruned by {fraction}*", f"{top1:.2f} %")
    _add_row(table, "held-out images", f"{task.images:,}" if task.images else "none: accuracy unmeasured")
    if task.skipped:
        _add_row(table, "unreadable images", f"{task.skipped:,}")
    if task.prune:
        _add_row(table, "pruned by", f"{task.prune:g}")
    _add_row(table, "weights owned", _share(sum(task.owned.values()), numbers.packed_weights))
    free = round(numbers.free_fraction * numbers.packed_weights)
    _add_row(table, "weights free", _share(free, numbers.packed_weights))
    out.print(table)
    if task.search:
        out.print("* on images set aside from the training ones")


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
        numbers = (
            (f"{accuracy.top1:.2f}", f"{accuracy.top5:.2f}", f"{accuracy.images:,}")
            if accuracy
            else ("unmeasured", "", "0")
        )
        _add_row(table, str(task.index), task.name, *numbers)
    out.print(table)


def _evaluation_dict(result: "Evaluation") -> dict[str, Any]:
    return {
        "index": result.task.index,
        "name": result.task.name,
        "top1": result.accuracy and result.accuracy.top1,
        "top5": result.accuracy and result.accuracy.top5,
        "images": result.accuracy.images if result.accuracy else 0,
        "missing_classes": list(result.missing),
    }


def predictions(form: str, top: int) -> "Callable[[Answer], None]":
    """What shows an answer at once, its `top` likeliest classes, in this form: "table", "json" or "csv"."""
    if form == "csv":
        _print_csv("image", "task", "rank", "class", "probability")
    return lambda answer: {"table": _answer_table, "json": _answer_json, "csv": _answer_csv}[form](answer, top)


def _answer_table(answer: "Answer", top: int) -> None:
    table = Table.grid(padding=(0, 2))
    for prediction in answer.predictions:
        for rank, (name, probability) in enumerate(prediction.top(top)):
            _add_row(table, "", "" if rank else prediction.task.name, f"{100 * probability:6.2f} %", name)
    out.print(Text(visible(str(answer.path)), style="bold"))
    out.print(table)


def _answer_json(answer: "Answer", top: int) -> None:
    tasks = [
        {
            "index": prediction.task.index,
            "name": prediction.task.name,
            "entropy": prediction.entropy,
            "top": [{"class": name, "probability": probability} for name, probability in prediction.top(top)],
        }
        for prediction in answer.predictions
    ]
    _print_json({"image": str(answer.path), "tasks": tasks})


def _answer_csv(answer: "Answer", top: int) -> None:
    for prediction in answer.predictions:
        for rank, (name, probability) in enumerate(prediction.top(top), start=1):
            _print_csv(answer.path, prediction.task.name, rank, name, probability)


def extracted(output: Path, form: str, header: "Header", task: "Task") -> None:
    """What was written, `form` being its suffix or empty for a folder, and how to open it."""
    arguments = [repr(header.arch), f"num_classes={len(task.classes)}", f"checkpoint_path={str(output)!r}"]
    arguments += [f"{key}={value!r}" for key, value in header.model_kwargs.items()]
    plain = f"timm.create_model({', '.join(arguments)})"
    opened = {
        "": f"timm.create_model({f'local-dir:{output}'!r}, pretrained=True)",
        ".onnx": f"onnxruntime.InferenceSession({str(output)!r}).run(None, {{'images': images}})",
        ".pt2": f"torch.export.load({str(output)!r}).module()",
    }
    _tell(f"{output}: task {task.index} ({task.name}), {len(task.classes)} classes. To open it:")
    _tell(f"  {opened.get(form, plain)}")


def summary(numbers: "Summary", *, layers: bool, as_json: bool) -> None:
    if as_json:
        _print_json(numbers.as_dict() | ({"layers": numbers.layer_dicts()} if layers else {}))
        return
    header = numbers.header
    _tell(f"{header.arch}, {_count(numbers.packed_weights)} packed weights; started from: {header.source}")
    out.print(_tasks_table(numbers))
    if layers:
        out.print(_layers_table(numbers))
    file, separate = numbers.file_bytes / 1e6, numbers.separate_bytes / 1e6
    networks = f"; {separate:,.1f} MB as a network for each task" if header.tasks else ""
    compact = f" (compact, {header.compact.dtype}: no task can be added)" if header.compact else ""
    _tell(f"{file:,.1f} MB in this file{networks}{compact}")


def task(numbers: "Summary", task: "Task", *, as_json: bool) -> None:
    """All that is known of one task."""
    if as_json:
        _print_json({"task": numbers.task_dict(task) | {"classes": list(task.classes)}})
        return

    def line(name: str, value: str) -> None:
        _tell(f"{name:20}{value}")  # no table: a digest or a path stays in one piece

    line("task", f"{task.index} ({task.name})")
    line("classes", f"{len(task.classes):,}: {task.classes[0]} to {task.classes[-1]}")
    for phase, top1 in task.accuracy.items():
        line(f"top-1 {phase}", f"{top1:.2f} %")
    for fraction, top1 in task.search.items():
        line(f"top-1 if pruned by {fraction}", f"{top1:.2f} %, on images set aside")
    if task.top5 is not None:
        line("top-5", f"{task.top5:.2f} %")
    line("held-out images", f"{task.images:,}" if task.images else "none: accuracy unmeasured")
    if task.skipped:
        line("unreadable images", f"{task.skipped:,}")
    line("pruned by", f"{task.prune:g}")
    line("weights owned", _share(sum(task.owned.values()), numbers.packed_weights))
    line("data", task.data or "not on record")
    line("digest", task.digest)
    compact = numbers.header.compact
    if compact and compact.originals.get(task.index, task.digest) != task.digest:
        line("original digest", compact.originals[task.index])
    _tell("recipe")
    for name, value in task.recipe.items():
        line(f"  {name}", json.dumps(value))


def compacted(
    output: Path,
    before: "Sizes",
    after: "Sizes",
    accuracies: "list[tuple[Evaluation, Evaluation]]",
    *,
    as_json: bool,
) -> None:
    """The bytes of both files by part, and each task's accuracy in both, as far as measured."""
    if as_json:
        tasks = [{"before": _evaluation_dict(one), "after": _evaluation_dict(other)} for one, other in accuracies]
        sizes = {"before": {**asdict(before), "total": before.total}, "after": {**asdict(after), "total": after.total}}
        _print_json({"bytes": sizes, **({"tasks": tasks} if accuracies else {})})
        return
    table = _table(None, "", "before, MB", "after, MB")
    names = {
        "weights": "weights (after: those that are owned)",
        "owners": "task-index masks",
        "tasks": "the tasks' own tensors",
        "start": "for a first task to start from",
        "metadata": "metadata",
        "total": "in all",
    }
    for part, name in names.items():
        _add_row(table, name, f"{getattr(before, part) / 1e6:,.3f}", f"{getattr(after, part) / 1e6:,.3f}")
    out.print(table)
    if accuracies:
        table = _table(None, "task", "name", "top-1 % before", "top-1 % after", "images")
        for one, other in accuracies:
            images = f"{one.accuracy.images:,}" if one.accuracy else "0"
            top1 = [_percent(result.accuracy.top1 if result.accuracy else None) for result in (one, other)]
            _add_row(table, str(one.task.index), one.task.name, *top1, images)
        out.print(table)
    _tell(f"{output}: compact, for use; keep the file that it was made of to add tasks to")


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


def _tasks_table(numbers: "Summary") -> Table:
    """The tasks, and as bars, one below the other, how they share the weights."""
    bars = not out.options.ascii_only
    table = _table(None, "task", "name", "classes", "top-1 %", "of the weights", *("",) * bars)
    taken = 0.0
    for task in numbers.header.tasks:
        share = numbers.owned_fraction(task)
        bar = (Bar(1, taken, taken + share, width=BAR),) * bars
        cells = (str(task.index), visible(task.name), f"{len(task.classes):,}", _percent(task.top1))
        table.add_row(*cells, f"{100 * share:.2f} %", *bar)
        taken += share
    if numbers.header.removed:
        share = numbers.removed_fraction
        bar = (Bar(1, taken, taken + share, width=BAR),) * bars
        table.add_row("", "(removed)", "", "", f"{100 * share:.2f} %", *bar)
        taken += share
    table.add_row("", "free", "", "", f"{100 * numbers.free_fraction:.2f} %", *(Bar(1, taken, 1, width=BAR),) * bars)
    return table


def _layers_table(numbers: "Summary") -> Table:
    """Who owns how much of each layer: a row of characters, each an equal part of it."""
    table = Table(safe_box=True)
    table.add_column("layer", overflow="fold")
    table.add_column("weights", justify="right")
    table.add_column("free", justify="right")
    table.add_column("owned by task", no_wrap=True)
    for layer, weights in numbers.layers.items():
        shares = numbers.shares(layer)
        _add_row(table, layer, _count(weights), f"{100 * abs(1 - sum(shares)):.1f} %", _owners(shares))
    return table


def _owners(shares: list[float], width: int = 20) -> str:
    """`11112233....`: what tasks 1, 2, ... have of a whole, by a digit or letter each, and . for what is free."""
    ends = list(accumulate(shares))
    owners = (bisect_right(ends, (place + 0.5) / width) for place in range(width))
    return "".join(DIGITS[(owner + 1) % len(DIGITS)] if owner < len(shares) else "." for owner in owners)


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
    bar = Progress(*columns, console=talk, disable=talk.quiet)
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


def plotted(output: Path, numbers: "Summary") -> None:
    _tell(f"{output}: {len(numbers.layers)} layers, {len(numbers.header.tasks)} tasks")


def _print_json(document: dict[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False)
    print(visible(text), flush=True)  # which escapes as JSON does, and inside strings only


def _print_csv(*cells: object) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerow(cells)
    sys.stdout.flush()


def plan(shares: "Plan", *, as_json: bool, layers: bool = False) -> None:
    if as_json:
        _print_json(shares.as_dict())
        return
    table = _table(None, "task", "name", "prune", "weights", "of all")
    for seat in shares.seats:
        _add_row(
            table,
            str(seat.index),
            seat.name,
            f"{seat.prune:.4g}",
            _count(seat.total),
            f"{100 * seat.total / shares.packed_weights:.2f} %",
        )
    free = sum(shares.free.values())
    _add_row(table, "", "free", "", _count(free), f"{100 * free / shares.packed_weights:.2f} %")
    out.print(table)
    if layers:
        by_layer = _table(None, "layer", *(str(seat.index) for seat in shares.seats), "free")
        for layer, left in shares.free.items():
            _add_row(by_layer, layer, *(f"{seat.owned[layer]:,}" for seat in shares.seats), f"{left:,}")
        out.print(by_layer)
    _tell(f"{shares.file_bytes / 1e6:,.1f} MB in one file, heads of tasks to come not counted")
    for seat in shares.planned:
        if seat.dry:
            warning(
                f"task {seat.index} owns nothing in {len(seat.dry)} of {len(seat.owned)} layers, {seat.dry[0]} first"
            )
        elif shares.is_thin(seat):
            warning(f"task {seat.index} owns little: {100 * seat.total / shares.packed_weights:.2f} % of the weights")


def _percent(value: float | None) -> str:
    return "unmeasured" if value is None else f"{value:.2f}"


def _share(part: int, whole: int) -> str:
    return f"{_count(part)} ({100 * part / whole:.2f} %)"


def _count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,}"
