"""Plots of an artifact, from its header and the log of its training. Needs the extra "plot"."""

import io
import warnings
from pathlib import Path
from typing import IO

import matplotlib
from matplotlib.figure import Figure

from packnet_cli import metrics
from packnet_cli.artifact import atomic
from packnet_cli.artifact.summary import Summary
from packnet_cli.errors import UsageError
from packnet_cli.plot import page
from packnet_cli.plot.drawings import Drawing, drawings_of, plain

WIDTH = 9.0  # inches
DPI = 150
MOST_PIXELS = 65_000  # matplotlib's limit in one direction


def draw(numbers: Summary, output: Path, log: Path | None = None) -> list[str]:
    """Write a .png, .svg or .html file: how the tasks share each layer, accuracy by task and phase, and training
    curves if there is a `log`. The page is self-contained.

    Returns the names of the tasks that the log has nothing on. Raises ArtifactError if the file cannot be written,
    UsageError if it has nothing on any.
    """
    curves = _curves(numbers, log)
    shown, form = drawings_of(numbers, curves), output.suffix.lower()
    with atomic.replacing(output) as temporary:
        if form == ".html":
            pictures = [(drawing.title, _svg(drawing)) for drawing in shown]
            temporary.write_text(page.write(numbers, pictures), encoding="utf-8", errors="replace")
        else:
            with open(temporary, "wb") as file:
                _save(_stacked(shown), file, form[1:])
    return [task.name for task in numbers.header.tasks if log and task.name not in curves]


def _curves(numbers: Summary, log: Path | None) -> dict[str, list[metrics.Line]]:
    """The log's lines on each task, in the tasks' order."""
    if log is None:
        return {}
    found = metrics.read(log)
    names = [task.name for task in numbers.header.tasks]
    if not found.keys() & set(names):
        raise UsageError(f"the log {log} has nothing of the tasks in this file; it has {', '.join(found) or 'none'}")
    return {name: found[name] for name in names if name in found}


def _stacked(shown: list[Drawing]) -> Figure:
    """All drawings in one figure, one below the other."""
    heights = [drawing.height for drawing in shown]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, drawing in zip(parts, shown, strict=True):
        part.suptitle(plain(drawing.title))
        drawing.draw(part)
    return figure


def _svg(drawing: Drawing) -> bytes:
    figure, file = Figure(figsize=(WIDTH, drawing.height), layout="constrained"), io.BytesIO()
    drawing.draw(figure)
    _save(figure, file, "svg")
    return file.getvalue()


def _save(figure: Figure, file: IO[bytes], form: str) -> None:
    """Save a figure reproducibly, to the byte: without a date or random ids."""
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "0"}):
        warnings.simplefilter("ignore")  # for letters that the font lacks
        dpi = min(DPI, MOST_PIXELS / figure.get_figheight())
        figure.savefig(file, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else {})
