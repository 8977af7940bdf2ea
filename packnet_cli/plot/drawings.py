"""The drawings of an artifact, each on its own figure or subfigure."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from rich.cells import cell_len

from packnet_cli.artifact.format import Task
from packnet_cli.artifact.summary import Summary
from packnet_cli.metrics import Line

PHASES = ("dense", "pruned", "retrained")
FREE, REMOVED = "0.9", "0.7"  # greys
ROWS = 50  # of a legend
NAMES_IN_A_ROW = 80  # columns of all names below an axis; if there are more, names are rotated
COLUMN = 0.09  # inches, of a character; a wide one, as a Chinese, has two
MOST_NAMES, LONGEST = 60, 30  # names below an axis, and characters of each name of a task
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}  # the axes


@dataclass(frozen=True)
class Drawing:
    """One drawing: its height in inches, and the function that draws it."""

    title: str
    height: float
    draw: Callable[[FigureBase], None]


def drawings_of(numbers: Summary, curves: dict[str, list[Line]]) -> list[Drawing]:
    """Who owns what, accuracies, and the curves of each task in the log."""
    tasks = numbers.header.tasks
    below = max(cell_len(task.name[:LONGEST]) for task in tasks) if _rotated(tasks) else 0
    rows = max(10, len(numbers.layers), 1 + min(numbers.header.last_index, ROWS))  # the longer of layers and legend
    found = [
        Drawing(f"{numbers.header.arch}: who owns what", 1.0 + 0.22 * rows, partial(_draw_layers, numbers)),
        Drawing("accuracy on held-out images", 2.5 + COLUMN * below, partial(_draw_accuracy, tasks)),
    ]
    for name, lines in curves.items():
        found.append(Drawing(f"training of {name[:LONGEST]}", 2.5, partial(_draw_curves, lines)))
    return found


def shades(tasks: tuple[Task, ...]) -> dict[int, Any]:
    """The colour of each task, by index."""
    scale = matplotlib.colormaps["viridis"].resampled(max(2, len(tasks)))
    return {task.index: scale(place) for place, task in enumerate(tasks)}


def plain(name: str) -> str:
    """Escape what matplotlib would take for a formula."""
    return name.replace("$", r"\$")


def _draw_layers(numbers: Summary, figure: FigureBase) -> None:
    """A bar for each layer, the first at the top: the tasks' shares in order of index, then the free weights."""
    axes: Axes = figure.subplots()
    header, colours = numbers.header, shades(numbers.header.tasks)
    labels = {task.index: f"{task.index} {plain(task.name[:LONGEST])}" for task in header.tasks}
    names = [f"{plain(layer)}  ({weights:,})" for layer, weights in numbers.layers.items()]
    shares = [numbers.shares(layer) for layer in numbers.layers]
    left = [0.0] * len(names)
    for index in range(1, header.last_index + 1):
        widths = [100 * of_layer[index - 1] for of_layer in shares]
        label = labels.get(index, f"{index} (removed)")
        axes.barh(names, widths, left=left, color=colours.get(index, REMOVED), label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.barh(names, [100 - start for start in left], left=left, color=FREE, label="free")
    axes.set(xlim=(0, 100), xlabel="% of the layer's weights")
    axes.margins(y=0.01)
    axes.invert_yaxis()
    handles, labels_shown = axes.get_legend_handles_labels()
    shown = [*range(0, len(handles) - 1, math.ceil(header.last_index / ROWS) or 1), -1]  # every n-th task and "free"
    axes.legend([handles[at] for at in shown], [labels_shown[at] for at in shown], **BESIDE)


def _rotated(tasks: tuple[Task, ...]) -> bool:
    """Whether the tasks' names are rotated: side by side they would not fit."""
    return sum(cell_len(task.name) for task in tasks) > NAMES_IN_A_ROW


def _draw_accuracy(tasks: tuple[Task, ...], figure: FigureBase) -> None:
    """A group of bars for each task, with one bar for each phase that it went through."""
    axes: Axes = figure.subplots()
    width = 0.8 / len(PHASES)
    for place, phase in enumerate(PHASES):
        known = [(at, task.accuracy[phase]) for at, task in enumerate(tasks) if phase in task.accuracy]
        offset = (place - 1) * width
        axes.bar([at + offset for at, _ in known], [top1 for _, top1 in known], width, label=phase, color=f"C{place}")
    shown = range(0, len(tasks), math.ceil(len(tasks) / MOST_NAMES) or 1)
    axes.set_xticks(shown, [plain(tasks[at].name[:LONGEST]) for at in shown], rotation=90 if _rotated(tasks) else 0)
    axes.set(xlim=(-0.5, max(1, len(tasks)) - 0.5), ylim=(0, 100), ylabel="top-1 %")
    axes.legend(**BESIDE)


def _draw_curves(lines: list[Line], figure: FigureBase) -> None:
    """Loss, accuracy and learning rate by epoch, one phase after another; held-out accuracies as dots between them."""
    panels = dict(zip(("loss", "accuracy", "lr"), figure.subplots(1, 3), strict=True))
    epochs = [line for line in lines if line["event"] == "epoch"]
    phases = list(dict.fromkeys(line["phase"] for line in epochs))
    for name, axes in panels.items():
        for place, phase in enumerate(phases):
            at = [number for number, line in enumerate(epochs, start=1) if line["phase"] == phase]
            values = np.array([epochs[number - 1][name] for number in at], float)  # None (no accuracy) becomes nan
            axes.plot(at, values, marker=".", color=f"C{place}", label=plain(phase))
        axes.set(xlabel="epoch", title={"loss": "loss", "accuracy": "accuracy, %", "lr": "learning rate"}[name])
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    seen = 0
    for line in lines:
        seen += line["event"] == "epoch"
        if line["event"] == "accuracy":
            panels["accuracy"].plot(seen, line["top1"], "kD", markersize=4, label="held out")
    for name, axes in panels.items():
        axes.set_ylim(0, 105 if name == "accuracy" else None)
    handles, labels = panels["accuracy"].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))  # each once
    panels["lr"].legend(by_label.values(), by_label.keys(), **BESIDE)
