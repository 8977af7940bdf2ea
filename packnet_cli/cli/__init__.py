"""The front door: each command parses its arguments, imports its verb inside the body, calls it and reports."""

import os
import sys
from enum import Enum
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from packnet_cli import __version__, report
from packnet_cli.errors import PackNetError, ToldElsewhere


class _Group(TyperGroup):
    """Turns every expected error into one line and its exit code, here and nowhere else."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PackNetError as error:
            if not isinstance(error, ToldElsewhere):
                report.error(str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            report.error("interrupted; nothing was written")
            sys.exit(130)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PACKNET"},
    pretty_exceptions_enable=False,
)


MACHINE = "Machine"
METRICS = "Metrics"

# Every option has its environment variable, PACKNET_<COMMAND>_<OPTION>: too many to name in each command's help.
Option: Any = partial(typer.Option, show_envvar=False)


def complete_task(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """For the shell: the names of the tasks in the file that the command line names, with what they are."""
    from packnet_cli.artifact import format

    # A command line that ends in an option without its value is not parsed to the end: the file is then left over.
    path = ctx.params.get("path") or next(iter(ctx.args), "")
    try:
        tasks = format.load_header(Path(path)).tasks
    except PackNetError:  # not named yet, or no artifact
        return []
    return [(t.name, f"task {t.index}, {len(t.classes)} classes") for t in tasks if t.name.startswith(incomplete)]


# Arguments that several commands share.
Packed = Annotated[Path, typer.Argument(metavar="PACKED", help="The packed model, for example packed.st.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]
BatchSize = Annotated[int, Option(min=1, help="Images in a batch.", rich_help_panel=MACHINE)]
Device = Annotated[
    str,
    Option(
        envvar="PACKNET_DEVICE",
        show_envvar=True,
        help="cpu, cuda, cuda:1, ...; auto takes a GPU.",
        rich_help_panel=MACHINE,
    ),
]
Workers = Annotated[
    int | None,
    Option(
        min=0,
        help="Threads that read images, the next batch while one is computed; default, up to 8.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
Resume = Annotated[
    bool, Option("--resume", help="Go on with an interrupted run of the same command.", rich_help_panel=MACHINE)
]
CheckpointMinutes = Annotated[
    float,
    Option(min=0, help="Keep what is needed to resume every so many minutes.", rich_help_panel=MACHINE),
]
Amp = Annotated[bool, Option(help="Compute in bfloat16.", rich_help_panel=MACHINE)]
TrainAmp = Annotated[
    bool | None,
    Option(
        help="Train in bfloat16, with float32 weights; default, on a GPU that is made for it.", rich_help_panel=MACHINE
    ),
]
Compile = Annotated[
    bool | None,
    Option(help="Compile the training step; default, on a GPU for a long run.", rich_help_panel=MACHINE),
]
Deterministic = Annotated[
    bool,
    Option("--deterministic", help="The same bits each time on a GPU too, at some cost.", rich_help_panel=MACHINE),
]


class Where(str, Enum):
    """Where decoded images are kept."""

    AUTO = "auto"
    RAM = "ram"
    DEVICE = "device"
    OFF = "off"


Cache = Annotated[
    Where,
    Option(
        help="Where decoded images are kept: auto, on the GPU and then in RAM; the rest is read in each epoch.",
        rich_help_panel=MACHINE,
    ),
]
CacheGb = Annotated[
    float,
    Option(
        min=0, help="Gigabytes for them, in each; of a GPU's free memory a quarter at most.", rich_help_panel=MACHINE
    ),
]


class Form(str, Enum):
    """How progress is shown."""

    BAR = "bar"
    JSON = "json"


Progress = Annotated[
    Form, Option(help="Show progress as a bar, or as lines of JSON on stderr.", rich_help_panel=METRICS)
]
Log = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        help="Add the metrics of each epoch and each measured accuracy to a log in this folder: metrics.jsonl, and "
        "events for TensorBoard if that is installed.",
        rich_help_panel=METRICS,
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"packnet {__version__}")
        raise typer.Exit()


@app.callback()
def packnet(
    version: Annotated[
        bool,
        # Not from the environment: PACKNET_VERSION is what a container may well be labelled with.
        Option("--version", callback=_show_version, is_eager=True, allow_from_autoenv=False, help="Show it."),
    ] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No talk and no progress; warnings and errors stay.")] = False,
) -> None:
    """Pack many image-classification tasks into one pretrained network, with no forgetting (PackNet, CVPR 2018)."""
    report.talk.quiet = quiet or _is_a_further_process()


def _is_a_further_process() -> bool:
    """Whether this is one of several processes of a run that torchrun has started, and not the first, which speaks."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0"


def main() -> None:
    """The `packnet` program."""
    from packnet_cli.cli import capacity, keeping, packing, using  # noqa: F401  (importing them adds their commands)

    if _is_a_further_process():
        sys.stdout = open(os.devnull, "w")
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # a path may hold any bytes; they pass through as they are
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    app()
