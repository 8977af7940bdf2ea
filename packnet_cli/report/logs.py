"""The log of a training run: its metrics as lines of JSON and, if TensorBoard is installed, as its events."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from packnet_cli import extras, metrics
from packnet_cli.errors import ArtifactError
from packnet_cli.metrics import Line
from packnet_cli.report import console

Write = Callable[[Line], object]


@contextmanager
def log_to(folder: Path) -> Iterator[Write]:
    """Append lines to metrics.jsonl in a folder, and events to a subfolder for each task; yields the function to call.

    Raises ArtifactError if the log cannot be opened. If it cannot be written later, on a full disk for example, that is
    only a warning, as the training must not be lost.
    """
    with ExitStack() as files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writers = [_lines(files.enter_context(_open(folder / metrics.FILE)))]
        except OSError as error:
            raise ArtifactError(
                f"cannot write the log {folder}: {error.strerror or error}; name a folder, made if there is none"
            ) from None
        missing = extras.missing("tensorboard")
        if missing:
            console.say(f"the log {folder} gets {metrics.FILE} only: events for TensorBoard need {missing}")
        else:
            writers.append(_events(folder, files))

        def write(line: Line) -> None:
            try:
                for each in writers:
                    each(line)
            except OSError as error:
                writers.clear()
                console.warning(f"cannot write the log {folder} any more: {error.strerror or error}")

        yield write


def _open(path: Path) -> IO[bytes]:
    return open(path, "ab+", buffering=0)  # unbuffered, for whoever follows the file


def _lines(file: IO[bytes]) -> Write:
    if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.write(b"\n")  # the last line was torn, as on a full disk; the next is to be whole
    return lambda line: file.write(json.dumps(line).encode() + b"\n")


def _events(folder: Path, files: ExitStack) -> Write:
    """A function that writes each number as a scalar `<phase>/<name>` over the phase's epochs, to a run per task.

    Records are written here, at once, since TensorBoard's own writer writes them in a thread, with a delay.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    records: dict[str, RecordWriter] = {}

    def record(task: str) -> RecordWriter:
        if task not in records:
            run = folder / folder_name(task)
            run.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
            records[task] = RecordWriter(files.enter_context(_open(run / name)))
            records[task].write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return records[task]

    def write(line: Line) -> None:
        values = [
            Summary.Value(tag=f"{line['phase']}/{name}", simple_value=number)
            for name, number in line.items()
            if isinstance(number, int | float) and name not in ("epoch", "epochs")
        ]
        event = Event(wall_time=time.time(), step=line.get("epoch", 0), summary=Summary(value=values))
        record(line["task"]).write(event.SerializeToString())

    return write


def folder_name(task: str) -> str:
    """A task's name as a folder name for every system: letters, digits, - and _ are kept, the rest becomes %hex.

    A long one is cut, to at most 240 bytes, since most systems allow 255, and ends in a part of its digest.
    """
    escaped = "".join(c if c.isalnum() or c in "-_" else "".join(f"%{byte:02X}" for byte in c.encode()) for c in task)
    return escaped if len(escaped) <= 60 else f"{escaped[:51]}-{hashlib.sha256(escaped.encode()).hexdigest()[:8]}"
