"""Pictures of an artifact, made of its header and of the log of its training. Needs the extra "plot"."""

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
MOST_PIXELS = 65_000  # that matplotlib draws in one direction


def draw(numbers: Summary, output: Path, log: Path | None = None) -> None:
    """Write a .png, .svg or .html file: who owns how much of each layer, accuracy by task and phase, and training
    curves if there is a `log`. The page holds everything that it shows, and fetches nothing.

    Raises ArtifactError if it cannot be written, UsageError if the log has nothing of these tasks.
    """
    shown, form = drawings_of(numbers, _curves(numbers, log)), output.suffix.lower()
    with atomic.replacing(output) as temporary:
        if form == ".html":
            pictures = [(drawing.title, _svg(drawing)) for drawing in shown]
            temporary.write_text(page.write(numbers, pictures), encoding="utf-8", errors="replace")
        else:
            with open(temporary, "wb") as file:
                _save(_stacked(shown), file, form[1:])


def _curves(numbers: Summary, log: Path | None) -> dict[str, list[metrics.Line]]:
    """What the log has of the tasks, in their order."""
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
    """The same artifact gives the same bytes: no date, no random names of parts."""
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "0"}):
        warnings.simplefilter("ignore")  # of a letter that the font has not
        dpi = min(DPI, MOST_PIXELS / figure.get_figheight())
        figure.savefig(file, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else {})
