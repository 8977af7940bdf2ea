"""Pictures of an artifact, drawn from its header alone. Needs the extra "plot"."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from packnet_cli.artifact import atomic
from packnet_cli.artifact.summary import Summary

PHASES = ("dense", "pruned", "retrained")
FREE = "0.9"  # a light grey


def draw(numbers: Summary, output: Path) -> None:
    """Write a .png or .svg file: above, who owns how much of each layer; below, accuracy by task and phase.

    Raises ArtifactError if it cannot be written.
    """
    height = max(2.0, 0.2 * len(numbers.layers))  # inches
    figure = Figure(figsize=(9, height + 3.5), layout="constrained")
    layers, tasks = figure.subplots(2, 1, height_ratios=[height, 2.5])
    shades = matplotlib.colormaps["viridis"].resampled(max(2, len(numbers.header.tasks)))
    _draw_layers(layers, numbers, shades)
    _draw_accuracy(tasks, numbers)
    # The same artifact gives the same bytes: no date, no random names of parts.
    with atomic.replacing(output) as temporary, warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "0"}):
        warnings.simplefilter("ignore")  # of a letter that the font has not
        figure.savefig(temporary, format=output.suffix[1:], dpi=150, metadata={"Date": None} if _is_svg(output) else {})


def _draw_layers(axes: Axes, numbers: Summary, shades: Any) -> None:
    """A bar for each layer, from the first at the top: the tasks' parts in order of index, then what is free."""
    names = [f"{_plain(layer)}  ({weights:,})" for layer, weights in numbers.layers.items()]
    shares = [numbers.shares(layer) for layer in numbers.layers]
    left = [0.0] * len(names)
    for place, task in enumerate(numbers.header.tasks):
        widths = [100 * of_layer[place] for of_layer in shares]
        axes.barh(names, widths, left=left, color=shades(place), label=f"{task.index} {_plain(task.name)}")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.barh(names, [100 - start for start in left], left=left, color=FREE, label="free")
    axes.set(xlim=(0, 100), xlabel="% of the layer's weights", title=f"{_plain(numbers.header.arch)}: who owns what")
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _draw_accuracy(axes: Axes, numbers: Summary) -> None:
    """For each task a group of bars, one for each phase that it went through."""
    tasks, width = numbers.header.tasks, 0.8 / len(PHASES)
    for place, phase in enumerate(PHASES):
        known = [(at, task.accuracy[phase]) for at, task in enumerate(tasks) if phase in task.accuracy]
        offset = (place - 1) * width
        axes.bar([at + offset for at, _ in known], [top1 for _, top1 in known], width, label=phase, color=f"C{place}")
    axes.set_xticks(range(len(tasks)), [_plain(task.name) for task in tasks])
    axes.set(
        xlim=(-0.5, max(1, len(tasks)) - 0.5), ylim=(0, 100), ylabel="top-1 %", title="accuracy on held-out images"
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _plain(name: str) -> str:
    """A name without what matplotlib would take for a formula."""
    return name.replace("$", r"\$")


def _is_svg(output: Path) -> bool:
    return output.suffix == ".svg"
