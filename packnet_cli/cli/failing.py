"""How every command fails: with one line on stderr and an exit code."""

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress

from packnet_cli import report
from packnet_cli.cli.streams import drop_unwritten
from packnet_cli.errors import ArtifactError, PackNetError, ToldElsewhere, UsageError, is_out_of_memory, reason

TALK = ("--quiet", "-q", "--verbose", "-v")  # the options that stand before the command

log = logging.getLogger("packnet")


@contextmanager
def in_one_line(command: Callable[[], str], json_wanted: bool = False) -> Iterator[None]:
    """Let every expected error of `command` end the program so; any other is a bug, and raised.

    With --json the error is also the document on stdout, unless the command has printed its own.
    """
    try:
        yield
    except ToldElsewhere as error:
        sys.exit(error.exit_code)
    except BaseException as error:
        found = explain(error, command())
        if found is None:
            raise
        message, exit_code = found
        if not hasattr(error, "format_message"):  # where an argument is wrong, the line says
            log.info("raised here:", exc_info=True)
        if json_wanted and not getattr(error, "in_results", False):
            # A further process of torchrun has no stdout, except to tell what the first one does not.
            stdout = sys.__stdout__ if getattr(error, "is_of_all", False) else sys.stdout
            with suppress(OSError), redirect_stdout(stdout):  # a full disk: the line on stderr can still tell
                report.failed(message, exit_code)
        drop_unwritten()
        report.error(message)
        sys.exit(exit_code)


def explain(error: BaseException, command: str) -> tuple[str, int] | None:
    """The message and the exit code of an error; None for a bug, and for a closed pipe."""
    if isinstance(error, PackNetError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the packed model is whole: as it was before, or already with the result", 130
    # In one line what Typer would say in a box; it keeps the class of these errors to itself.
    if (format_message := getattr(error, "format_message", None)) is not None:
        said, option = format_message().removesuffix("."), getattr(error, "option_name", None)
        misplaced = option in TALK and said.startswith("No such option")
        hint = f"it goes before the command: packnet {option} ..." if misplaced else f"see {command} --help"
        return f"{said.replace('Value error, ', '')} ({hint})", UsageError.exit_code
    if is_out_of_memory(error):
        why = reason(error) if str(error) else "out of memory"
        return f"this machine's memory is not enough ({why}); the packed model is as it was", UsageError.exit_code
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        why = error.strerror or str(error) or type(error).__name__
        if not error.filename:
            message = f"cannot write the output: {why}; send it elsewhere (files are written all the same)"
            return message, ArtifactError.exit_code
        return f"cannot use {error.filename}: {why}; check the path and its permissions", UsageError.exit_code
    return None
