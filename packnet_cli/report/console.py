"""The terminal: where lines, tables and documents go, and which characters may reach it."""

import csv
import io
import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if os.environ.get("COLUMNS") == "0":  # some programs set it for an unknown width; rich takes it literally
    del os.environ["COLUMNS"]

SCHEMA = 1  # version of the --json documents: it may gain fields, but none may be removed or change its meaning

# Names and paths come from outside: nothing in them is taken for markup (or acted on by the terminal: see `visible`).
PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}


out = Console(**PLAIN)
err = Console(**PLAIN, stderr=True)
talk = Console(**PLAIN, stderr=True)  # silenced by --quiet


def error(message: str) -> None:
    err.print(Text("error: ", style="bold red") + Text(visible(message)))


def failed(message: str, exit_code: int) -> None:
    """Print the error document, of a command that has no other to print."""
    print_json({"error": message, "exit_code": exit_code})


def say(message: str, *, warning: bool = False) -> None:
    """Print a line on stderr that is not a result; a warning is printed even if talk is silenced."""
    if warning:
        # If it may, by the console of the progress bar, which then makes room.
        (err if talk.quiet else talk).print(Text("warning: ", style="bold yellow") + Text(visible(message)))
    else:
        talk.print(visible(message))


def warning(message: str) -> None:
    say(message, warning=True)


def confirm(question: str) -> bool:
    """Ask at the terminal; any answer but yes means no."""
    try:
        return err.input(f"{question} [y/N] ", markup=False, emoji=False).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def tell(text: str) -> None:
    out.print(visible(text))


def print_json(document: dict[str, Any]) -> None:
    """Print a document with the schema version (README, "JSON")."""
    text = json.dumps({"packnet": SCHEMA} | document, ensure_ascii=False)
    print(visible(text), flush=True)  # its escapes are valid JSON: what it escapes occurs only in strings


def print_json_on_stderr(document: dict[str, Any]) -> None:
    """Print progress for programs, as a line."""
    print(visible(json.dumps(document, ensure_ascii=False)), file=sys.stderr, flush=True)


def print_csv(*cells: object) -> None:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # cells with a character of it are quoted
    print(line.getvalue().removesuffix("\r\n"), flush=True)


def new_table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns), safe_box=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if column in ("", "name", "layer") and number < 2 else "right")
    return table


def show(table: Table) -> None:
    """Print a table; if the terminal is too narrow, it goes past the edge rather than losing text."""
    wide = width_of(table)
    (out if wide <= out.width else Console(**PLAIN, width=wide)).print(table)


def width_of(table: Table) -> int:
    """The columns of the terminal that it takes, however wide that is."""
    return Measurement.get(out, out.options.update(max_width=10_000), table).maximum


def add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(visible, cells))


def visible(text: str) -> str:
    """Escape every character that a terminal would act on or hide: names may come from anywhere."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def percent(value: float | None) -> str:
    return "unmeasured" if value is None else f"{value:.2f}"


def share(part: int, whole: int) -> str:
    return f"{count(part)} ({100 * part / whole:.2f} %)"


def count(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,}"
