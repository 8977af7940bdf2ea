"""The metrics of training as lines of JSON: their fields, and how a log is read back. Imports no torch."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packnet_cli.errors import UsageError
from packnet_cli.progress import Accuracy, Step

FILE = "metrics.jsonl"  # in the folder of a log
Line = dict[str, Any]


def line(task: str, phase: str, seen: Step | Accuracy) -> Line | None:
    """The line for the last step of an epoch, or for an accuracy; None for other steps."""
    numbers = asdict(seen)
    if isinstance(seen, Accuracy):
        return {"event": "accuracy", "task": task, "phase": phase, **numbers}
    over = numbers.pop("step") == numbers.pop("steps")
    return {"event": "epoch", "task": task, "phase": phase, **numbers} if over else None


def read(folder: Path) -> dict[str, list[Line]]:
    """The lines of each task in a log, in order; other lines, and those torn by a crash, are skipped.

    A resumed or repeated run logs an epoch or accuracy again: that replaces the old line and all of the earlier run's
    after it. Raises UsageError if there is no log.
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot read the log {folder / FILE}: {reason}; training writes one with --log DIR") from None
    tasks: dict[str, tuple[dict[Any, Line], dict[Any, Line]]] = defaultdict(lambda: ({}, {}))
    for found in filter(None, map(_parse, text.splitlines())):
        earlier, latest = tasks[found["task"]]  # what is left of the runs before, and the lines of the latest
        place = found["phase"], found["epoch"] if found["event"] == "epoch" else None
        if place in latest:
            earlier |= latest
            latest.clear()
        if place in earlier:
            places = list(earlier)
            for later in places[places.index(place) :]:
                del earlier[later]
        latest[place] = found
    return {task: [*earlier.values(), *latest.values()] for task, (earlier, latest) in tasks.items()}


NUMBERS = {"epoch": ("epoch", "loss", "lr"), "accuracy": ("top1",)}  # the fields that are plotted
MOST = 1e300  # more than any measured number, but still drawable


def _parse(text: str) -> Line | None:
    try:
        found = json.loads(text)
        whole = all(isinstance(found[key], str) for key in ("event", "task", "phase"))
        numbers = [found[key] for key in NUMBERS[found["event"]]]
        if found["event"] == "epoch" and found["accuracy"] is not None:  # None for images without labels
            numbers.append(found["accuracy"])
        return found if whole and all(abs(number) < MOST for number in numbers) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
