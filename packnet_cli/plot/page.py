"""An artifact as an HTML page: pictures and tables, in one file that runs no script."""

import base64
from collections.abc import Iterable
from html import escape

from matplotlib.colors import to_hex

from packnet_cli.artifact.summary import Summary
from packnet_cli.plot.drawings import PHASES, shades

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.5rem 0 .5rem; }
img { width: 100%; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
th { font-weight: 600; }
.name { text-align: left; }
i { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 2px; }
summary { cursor: pointer; margin: 2.5rem 0 .5rem; }
"""


def write(numbers: Summary, pictures: list[tuple[str, bytes]]) -> str:
    """The page: totals, tasks, pictures (title and SVG) and layers. All names are escaped."""
    header = numbers.header
    sections = "\n".join(
        f'<h2>{escape(title)}</h2>\n<img alt="{escape(title)}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
        for title, svg in pictures
    )
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(header.arch)}: packed tasks</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(header.arch)}: packed tasks</h1>
<p>{numbers.packed_weights:,} packed weights, {_percent(numbers.free_fraction)} of them free;
started from {escape(header.source)}. {numbers.file_bytes / 1e6:,.1f} MB in this file,
{numbers.separate_bytes / 1e6:,.1f} MB as a network for each task.</p>
{_tasks(numbers)}
{sections}
<details><summary>The layers in numbers</summary>
{_layers(numbers)}
</details>
</body>
</html>
"""


def _tasks(numbers: Summary) -> str:
    colours = shades(numbers.header.tasks)
    rows = []
    for task in numbers.header.tasks:
        name = f'<i style="background: {to_hex(colours[task.index])}"></i>{escape(task.name)}'
        accuracies = [f"{task.accuracy[phase]:.2f}" if phase in task.accuracy else "" for phase in PHASES]
        share = _percent(numbers.owned_fraction(task))
        rows.append([name, str(task.index), f"{len(task.classes):,}", *accuracies, f"{task.images:,}", share])
    phases = [f"top-1 % {phase}" for phase in PHASES]
    return _table(["task", "index", "classes", *phases, "held-out images", "of the weights"], rows)


def _layers(numbers: Summary) -> str:
    indices = [str(index) for index in range(1, numbers.header.last_index + 1)]
    rows = []
    for layer, weights in numbers.layers.items():
        shares = [*numbers.shares(layer), numbers.free_share(layer)]
        rows.append([escape(layer), f"{weights:,}", *map(_percent, shares)])
    return _table(["layer", "weights", *(f"task {index}" for index in indices), "free"], rows)


def _table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """A table of HTML cells; the first of each row is a name."""

    def row(cells: list[str], tag: str) -> str:
        first, *rest = cells
        return f'<tr><{tag} class="name">{first}</{tag}>' + "".join(f"<{tag}>{c}</{tag}>" for c in rest) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f"<div><table>\n<thead>{row(columns, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
