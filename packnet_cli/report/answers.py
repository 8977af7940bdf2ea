"""Report accuracies and predictions of the tasks on images."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from packnet_cli.report import console, documents

if TYPE_CHECKING:
    from packnet_cli.engine.using.auto import Choice
    from packnet_cli.engine.using.evaluate import Evaluation
    from packnet_cli.engine.using.predict import Answer


def evaluated(results: "list[Evaluation]", *, as_json: bool) -> None:
    for result in results:
        if result.problem:
            console.error(result.problem)
        if result.missing:
            console.warning(
                f"task {result.task}: {len(result.missing)} of {len(result.task.classes)} "
                f"classes have no images here, {result.missing[0]!r} among them"
            )
        if result.unsplit:
            console.say(
                f"task {result.task}: no images are held out here, and this is not the very "
                "place that it was added with; all are measured, which says little of those that it was trained on"
            )
        if result.doubt:
            console.warning(result.doubt)
    if as_json:
        console.print_json({"tasks": [documents.accuracy(result) for result in results]})
        return
    table = console.new_table("task", "name", "top-1 %", "top-5 %", "images")
    for result in results:
        task, accuracy = result.task, result.accuracy
        numbers = (
            (f"{accuracy.top1:.2f}", f"{accuracy.top5:.2f}", f"{accuracy.images:,}")
            if accuracy
            else ("unmeasured", "", "0")
        )
        console.add_row(table, str(task.index), task.name, *numbers)
    console.show(table)


def chosen(choices: "list[Choice]", *, as_json: bool) -> None:
    """How often `auto` picks the right task."""
    images = sum(choice.images for choice in choices)
    right_task, top1 = (
        sum(getattr(choice, name) * choice.images for choice in choices) / images for name in ("right_task", "top1")
    )
    if as_json:
        tasks = [documents.choice(choice) for choice in choices]
        console.print_json({"right_task": right_task, "top1": top1, "images": images, "tasks": tasks})
        return
    table = console.new_table("task", "name", "right task %", "and class %", "images")
    for choice in choices:
        cells = (f"{choice.right_task:.2f}", f"{choice.top1:.2f}", f"{choice.images:,}")
        console.add_row(table, str(choice.task.index), choice.task.name, *cells)
    console.add_row(table, "", "all", f"{right_task:.2f}", f"{top1:.2f}", f"{images:,}")
    console.show(table)


def predictions(form: str, top: int) -> "Callable[[Answer], None]":
    """A function that shows one answer's `top` likeliest classes, in a form: "table", "json" or "csv"."""
    if form == "csv":
        console.print_csv("image", "task", "rank", "class", "probability")
    return partial({"table": _answer_table, "json": _answer_json, "csv": _answer_csv}[form], top=top)


def _answer_table(answer: "Answer", top: int) -> None:
    console.out.print(Text(console.visible(str(answer.path)), style="bold"))
    names = [console.visible(prediction.task.name) for prediction in answer.predictions]
    wide = max(map(cell_len, names), default=0)
    for task, prediction in zip(names, answer.predictions, strict=True):
        for name, probability in prediction.top(top):  # no table: it would cut off long names
            console.out.out(f"  {set_cell_size(task, wide)}  {100 * probability:6.2f} %  {console.visible(name)}")
            task = ""


def _answer_json(answer: "Answer", top: int) -> None:
    console.print_json(documents.predictions(answer, top))


def _answer_csv(answer: "Answer", top: int) -> None:
    for prediction in answer.predictions:
        for rank, (name, probability) in enumerate(prediction.top(top), start=1):
            console.print_csv(answer.path, prediction.task.name, rank, name, probability)
