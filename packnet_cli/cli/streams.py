"""stdin, stdout and stderr: any name can be written, and nobody need hear what is only talk."""

import codecs
import json
import os
import sys
from contextlib import suppress
from io import TextIOWrapper

ERRORS = "packnet"  # the name of `_as_written` among the ways to handle encoding errors


def prepare() -> None:
    """Make the standard streams fit for all that commands read and write."""
    codecs.register_error(ERRORS, _as_written)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or (name == "stdout" and is_a_further_process()):
            setattr(sys, name, open(os.devnull, mode))
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
            if name == "stderr":
                sys.stderr = _Expendable(stream.buffer, stream.encoding, ERRORS, line_buffering=True)


def flush() -> None:
    """Write out stdout while errors can still be told; exits as typer does if its reader is gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_unwritten()
        sys.exit(1)


def drop_unwritten() -> None:
    """Forget what stdout cannot take: Python would try, and complain, once more as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # not of a file, as in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_a_further_process() -> bool:
    """Whether torchrun started this process, and it is not the first, which alone speaks."""
    return by_torchrun() and os.environ.get("RANK") != "0"


def _as_written(error: UnicodeError) -> tuple[str | bytes, int]:
    """How to write what a stream's encoding cannot: a byte of a path as it is, a character as a JSON escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError as unknown:
        return json.dumps(unknown.object[unknown.start : unknown.end])[1:-1], unknown.end


class _Expendable(TextIOWrapper):
    """stderr, of which nothing is a result: no command ends because its reader, or the room on its disk, is gone."""

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        """Nothing: the buffer is that of the stream that this one replaces."""
