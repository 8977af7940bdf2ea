"""The expected errors, each with the exit code of the program.

A message says what is wrong, where, and what to try next. This module imports nothing from the package, so all of it
may import this.
"""

import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class PackNetError(Exception):
    """Base of every expected error; 1 is the code of a bug."""

    exit_code = 1
    in_results = False  # whether stdout reports it already, and --json needs no further document


class ForgettingError(PackNetError):
    """Weights or tasks changed that must stay as they are: a bug, caught before anything is written."""


class UsageError(PackNetError):
    """An argument has a value that cannot be used."""

    exit_code = 2


class ArtifactError(PackNetError):
    """The file is missing, not an artifact, damaged, newer than this program, or in the way."""

    exit_code = 3


class DamageError(ArtifactError):
    """The file exists, but its content is not, or is no longer, an artifact."""


class TaskError(PackNetError):
    """The task is unknown or not the newest, there is none yet, or its name is taken or cannot be one."""

    exit_code = 4


class CapacityError(PackNetError):
    """No free weights, none to release, or no task index is left."""

    exit_code = 5


class DataError(PackNetError):
    """Images or class names are missing, too few or unreadable, or do not match the task."""

    exit_code = 6


class ReportedError(DataError):
    """Some images could not be read or measured, or an accuracy has changed: the printed results say so, too."""

    in_results = True


class NetworkError(PackNetError):
    """The architecture is unknown, its weights do not fit or are unavailable, or the network cannot be used."""

    exit_code = 7


class ConflictError(PackNetError):
    """Another program is writing the file, or has changed it meanwhile."""

    exit_code = 8


class InterruptedRun(PackNetError):
    """The user or the system stopped a training run, or another of its processes ended."""

    exit_code = 130


class ToldElsewhere(PackNetError):
    """Another process of the same run has reported the error; there is nothing to add."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class VerificationError(PackNetError):
    """`verify` found damage."""

    exit_code = 9
    in_results = True


class DivergedError(PackNetError):
    """The loss is no longer a finite number."""

    exit_code = 10


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that no memory is left, which mostly only its text tells.

    The texts are CUDA's, torch's on a CPU (two), cuDNN's, oneDNN's, safetensors', whose error is not an Exception, and
    the loader's, where not even a library such as torch's finds room.
    """
    words = ["out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED"]
    words += ["could not create a primitive", "PyObject pointer is null", "failed to map segment"]
    said = "" if isinstance(error, OSError) else str(error)  # an OSError's text has a file's name in it
    return isinstance(error, MemoryError) or any(word in said for word in words)


def reason(error: BaseException) -> str:
    """The first sentence of an error's message, after the place in its source that torch may put before it."""
    said = re.sub(r"^\[enforce fail at \S+\] .*?\. ", "", str(error).strip().partition("\n")[0])
    return said.partition(". ")[0] or type(error).__name__


def quoted(path: Path) -> str:
    """A path for a command that a message suggests, quoted if a shell would not take it as one word."""
    return shlex.quote(str(path))


def few(things: list[str], limit: int = 5) -> str:
    """The first things of a list, and how many more there are."""
    more = f" and {len(things) - limit} more" if len(things) > limit else ""
    return ", ".join(things[:limit]) + more


def did_you_mean(word: str, known: Iterable[str], cutoff: float, folder: Path | None = None) -> str:
    """A question that suggests the known words most similar to an unknown one.

    Empty if no similarity, 0 to 1, reaches `cutoff`. File names are shown in their `folder`, if it is given.
    """
    import difflib  # here, as only a mistake needs it

    by_lower = {name.lower(): name for name in known}  # so that AdamW is nearest to adamw, not to adam
    near = [by_lower[name] for name in difflib.get_close_matches(word.lower(), list(by_lower), cutoff=cutoff)]
    if folder is not None:
        near = [str(folder / name) for name in near]
    return f"did you mean {', '.join(near)}?" if near else ""


def did_you_mean_path(path: Path) -> str:
    """The same for a path that does not exist, from the names beside it."""
    beside = []
    with suppress(OSError, ValueError):  # the folder is missing or unreadable
        beside = [name for name in os.listdir(path.parent) if not name.startswith(".") and name != path.name]
    return did_you_mean(path.name, beside, 0.75, folder=path.parent)
