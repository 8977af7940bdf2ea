"""Report the contents of a packed model: its tasks, how many weights each owns, how many are free."""

import json
import string
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.table import Table

from packnet_cli.errors import few
from packnet_cli.report import console, documents

if TYPE_CHECKING:
    from packnet_cli.artifact.format import Task
    from packnet_cli.artifact.plan import Plan, Share
    from packnet_cli.artifact.summary import Summary

BAR, OWNERS = 14, 20  # columns of the terminal
DIGITS = string.digits + string.ascii_letters


def started(path: Path, numbers: "Summary") -> None:
    header, weights, free = numbers.header, numbers.packed_weights, numbers.free_weights
    channels, height, width = header.data_config["input_size"]
    left = console.count(free) if free < weights else "all"
    console.tell(
        f"{path}: {header.arch}, {console.count(weights)} weights, {left} free; "
        f"{channels} x {height} x {width} pixels; started from: {header.source}"
    )


def added(numbers: "Summary", *, as_json: bool) -> None:
    task = numbers.header.tasks[-1]
    if as_json:
        console.print_json({"task": documents.task(numbers, task), "free_fraction": numbers.free_fraction})
        return
    table = console.new_table("", "", title=f"task {task.index}: {task.name}")
    for phase, top1 in task.accuracy.items():
        console.add_row(table, f"top-1 {phase}", f"{top1:.2f} %")
    for fraction, top1 in task.search.items():
        console.add_row(table, f"top-1 if pruned by {fraction}*", f"{top1:.2f} %")
    console.add_row(table, "held-out images", f"{task.images:,}" if task.images else "none: accuracy unmeasured")
    if task.skipped:
        console.add_row(table, "unreadable images", f"{task.skipped:,}")
    if task.prune:
        console.add_row(table, "pruned by", f"{task.prune:g}")
    console.add_row(table, "weights owned", console.share(sum(task.owned.values()), numbers.packed_weights))
    console.add_row(table, "weights free", console.share(numbers.free_weights, numbers.packed_weights))
    console.show(table)
    if task.search:
        console.out.print("* on images set aside from the training ones")


def plan(planned: "Plan", *, as_json: bool, layers: bool = False) -> None:
    if as_json:
        console.print_json(documents.plan(planned))
        return
    table = console.new_table("task", "name", "prune", "weights", "of all")
    for share in planned.shares:
        console.add_row(
            table,
            str(share.index),
            share.name,
            f"{share.prune:.4g}",
            console.count(share.total),
            f"{100 * share.total / planned.packed_weights:.2f} %",
        )
    for name, weights in (("(removed)", planned.removed), ("free", sum(planned.free.values()))):
        if weights or name == "free":
            of_all = f"{100 * weights / planned.packed_weights:.2f} %"
            console.add_row(table, "", name, "", console.count(weights), of_all)
    console.show(table)
    if layers:
        by_layer = console.new_table("layer", *(str(share.index) for share in planned.shares), "free")
        for layer, left in planned.free.items():
            console.add_row(by_layer, layer, *(f"{share.owned[layer]:,}" for share in planned.shares), f"{left:,}")
        console.show(by_layer)
    console.tell(f"{planned.file_bytes / 1e6:,.1f} MB in one file, without metadata and the heads of tasks to come")
    thin = [share for share in planned.planned if planned.is_thin(share)]
    if thin:
        least = min(share.total for share in thin) / planned.packed_weights
        console.warning(f"{_tasks(thin)} little, down to {100 * least:.2g} % of the weights")
    dry = [share for share in planned.planned if share.dry]
    if dry:
        most = max(dry, key=lambda share: len(share.dry))
        layers_dry = f"up to {len(most.dry)} of {len(most.owned)} layers, such as {most.dry[0]}"
        console.warning(f"{_tasks(dry)} nothing in {layers_dry}")


def _tasks(shares: "list[Share]") -> str:
    """`task 3 owns` or `tasks 3, 4 and 7 more own`."""
    one = len(shares) == 1
    return f"task{'' if one else 's'} {few([str(share.index) for share in shares])} own{'s' if one else ''}"


def summary(numbers: "Summary", *, layers: bool, as_json: bool) -> None:
    if as_json:
        console.print_json(documents.info(numbers, layers=layers))
        return
    header = numbers.header
    console.tell(
        f"{header.arch}, {console.count(numbers.packed_weights)} packed weights; started from: {header.source}"
    )
    table = _tasks_table(numbers, bars=not console.out.options.ascii_only)
    console.show(table if console.width_of(table) <= console.out.width else _tasks_table(numbers, bars=False))
    if layers:
        console.show(_layers_table(numbers))
    file, separate, lora = (size / 1e6 for size in (numbers.file_bytes, numbers.separate_bytes, numbers.lora_bytes))
    compact = f" (compact, {header.compact.dtype}: no task can be added)" if header.compact else ""
    console.tell(f"{file:,.1f} MB in this file{compact}")
    if header.tasks:
        console.tell(f"{separate:,.1f} MB as a network for each task")
        console.tell(f"{lora:,.1f} MB as one network with a LoRA adapter of rank {numbers.LORA_RANK} for each task")


def _tasks_table(numbers: "Summary", *, bars: bool) -> Table:
    """The tasks, with `bars` one for each that shows its share of the weights."""
    table = console.new_table("task", "name", "classes", "top-1 %", "of the weights", *("",) * bars)
    taken = 0.0
    for task in numbers.header.tasks:
        share = numbers.owned_fraction(task)
        bar = (Bar(1, taken, taken + share, width=BAR),) * bars
        cells = (str(task.index), console.visible(task.name), f"{len(task.classes):,}", console.percent(task.top1))
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
    """The owners of each layer: a row of characters, each for an equal part of it."""
    table = Table(safe_box=True)
    table.add_column("layer", overflow="fold")
    table.add_column("weights", justify="right")
    table.add_column("free", justify="right")
    table.add_column("owned by task", no_wrap=True)
    for layer, weights in numbers.layers.items():
        free = f"{100 * numbers.free_share(layer):.1f} %"
        console.add_row(table, layer, console.count(weights), free, _owners(numbers.shares(layer)))
    return table


def _owners(shares: list[float]) -> str:
    """`11112233....`: the shares of tasks 1, 2, ..., each by a digit or letter, and . for the free part."""
    ends = list(accumulate(shares))
    owners = (bisect_right(ends, (place + 0.5) / OWNERS) for place in range(OWNERS))
    return "".join(DIGITS[(owner + 1) % len(DIGITS)] if owner < len(shares) else "." for owner in owners)


def task(numbers: "Summary", task: "Task", *, as_json: bool) -> None:
    """All that is known about one task."""
    if as_json:
        console.print_json({"task": documents.task(numbers, task) | {"classes": list(task.classes)}})
        return

    def line(name: str, value: str) -> None:
        console.tell(f"{name:20}{value}")  # no table: it would break digests and paths

    line("task", str(task))
    line("classes", f"{len(task.classes):,}: {task.classes[0]} to {task.classes[-1]}")
    for phase, top1 in task.accuracy.items():
        line(f"top-1 {phase}", f"{top1:.2f} %")
    for fraction, top1 in task.search.items():
        line(f"top-1 at {fraction}", f"{top1:.2f} %, if pruned by that; on images set aside")
    if task.top5 is not None:
        line("top-5", f"{task.top5:.2f} %")
    line("held-out images", f"{task.images:,}" if task.images else "none: accuracy unmeasured")
    if task.skipped:
        line("unreadable images", f"{task.skipped:,}")
    line("pruned by", f"{task.prune:g}")
    line("weights owned", console.share(sum(task.owned.values()), numbers.packed_weights))
    if task.temperature is not None:
        line("temperature", f"{task.temperature:g}")
    line("data", task.data or "not on record")
    line("digest", task.digest)
    compact = numbers.header.compact
    if compact and compact.originals.get(task.index, task.digest) != task.digest:
        line("original digest", compact.originals[task.index])
    console.tell("recipe")
    for name, value in task.recipe.items():
        line(f"  {name}", json.dumps(value))


def plotted(output: Path, numbers: "Summary", *, as_json: bool) -> None:
    if as_json:
        layers, tasks = len(numbers.layers), len(numbers.header.tasks)
        console.print_json({"output": str(output), "layers": layers, "tasks": tasks})
        return
    console.tell(f"{output}: layers: {len(numbers.layers)}, tasks: {len(numbers.header.tasks)}")
