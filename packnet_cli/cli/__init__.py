"""The command-line application. Each command imports its verb inside its body, so that --help stays fast."""

import inspect
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from packnet_cli import __version__, report
from packnet_cli.cli import streams
from packnet_cli.cli.failing import in_one_line
from packnet_cli.cli.streams import is_a_further_process
from packnet_cli.errors import PackNetError, UsageError
from packnet_cli.progress import watched

PACK, USE, LOOK, KEEP = "Pack", "Use", "Look", "Keep"  # what commands are for, and so the panels of --help
JSON_WANTED = "packnet.json"
MAY_BE_EMPTY = ("--name", "--task", "--skip-layers")  # options whose text is no path, and told of where it is used

log = logging.getLogger("packnet")


class _Group(TyperGroup):
    """The commands, in order of their panels; expected errors end in one line, see `failing`."""

    def make_context(self, info_name: Any, args: list[str], *more: Any, **kwargs: Any) -> Any:
        # Before anything is parsed, which may fail; parsing also empties the list.
        named = next((arg for arg in args if arg in self.commands), "")
        variable = os.environ.get(f"PACKNET_{named.upper().replace('-', '_')}_JSON", "")
        json_wanted = "--json" in args or variable.strip().lower() in ("1", "true", "t", "yes", "y", "on")
        with in_one_line(lambda: "packnet", json_wanted):
            _check_not_empty(args)
            ctx = super().make_context(info_name, args, *more, **kwargs)
            ctx.meta[JSON_WANTED] = json_wanted
            return ctx

    def invoke(self, ctx: Any) -> Any:
        began = time.perf_counter()
        try:
            with in_one_line(lambda: f"packnet {ctx.invoked_subcommand or ''}".rstrip(), ctx.meta[JSON_WANTED]):
                return super().invoke(ctx)
        finally:
            log.info("%.1f s in all", time.perf_counter() - began)


def _check_not_empty(args: list[str]) -> None:
    """Raise UsageError for an empty argument: as a path Python would take it for the current folder."""
    parts = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    for before, part in pairwise(parts):
        if not part and before not in MAY_BE_EMPTY:
            raise UsageError(f"the argument after {before} is empty; if a variable of the shell stands there, set it")


app = typer.Typer(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "PACKNET"},
    pretty_exceptions_enable=False,
)


MACHINE = "Machine"

# Every option has its environment variable, PACKNET_<COMMAND>_<OPTION>: too many to name in each command's help. That a
# file cannot be read is found, and told of with its own exit code, where it is read.
Option: Any = partial(typer.Option, show_envvar=False, readable=False)
Argument: Any = partial(typer.Argument, readable=False)


Verb = Callable[..., None]
Decorator = Callable[[Verb], Verb]


def with_options(place: str, added: list[inspect.Parameter], gather: Callable[[dict[str, Any]], Any]) -> Decorator:
    """Give a command these options; it gets what `gather` makes of their values as its parameter `place`."""

    def decorate(verb: Verb) -> Verb:
        signature = inspect.signature(verb)
        kept = [parameter for name, parameter in signature.parameters.items() if name != place]

        @wraps(verb)
        def run(*args: Any, **kwargs: Any) -> None:
            values = {parameter.name: kwargs.pop(parameter.name) for parameter in added}
            verb(*args, **{place: gather(values)}, **kwargs)

        run.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *added]}
        return run

    return decorate


def command(panel: str, *examples: str, name: str | None = None) -> Decorator:
    """Register a command in this panel of `packnet --help`; its own --help ends with the examples."""
    return app.command(name, rich_help_panel=panel, epilog="\n\n".join(f"$ {example}" for example in examples))


def complete_task(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Shell completion: the tasks of the file on the command line, with a description."""
    from packnet_cli.artifact import format

    # A command line that ends in an option without a value is not parsed to the end, and leaves the file in args.
    path = ctx.params.get("path") or next(iter(ctx.args), "")
    try:
        tasks = format.load_header(Path(path)).tasks
    except PackNetError:  # not named yet, or no artifact
        return []
    # A file may come from anywhere, and a shell might run what is in a name.
    safe = [task for task in tasks if task.name.startswith(incomplete) and not set(task.name) & set("\\$`'\"")]
    return [(task.name, f"task {task.index}, {len(task.classes)} classes") for task in safe]


# Arguments that several commands share.
Packed = Annotated[Path, Argument(metavar="PACKED", help="The packed model, for example packed.st.")]
OneTask = Annotated[str, Option("--task", help="Index or name of the task.", autocompletion=complete_task)]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]
JsonLines = Annotated[bool, Option("--json", help="Print one JSON document a line for each image.")]
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
        help="Threads that read images, one batch ahead; default: one for each core, up to 8.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
Amp = Annotated[bool, Option(help="Compute in bfloat16.", rich_help_panel=MACHINE)]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"packnet {__version__}")
        raise typer.Exit()


@app.callback()
def packnet(
    ctx: typer.Context,
    version: Annotated[
        bool,
        # Not from the environment: PACKNET_VERSION is what a container may well be labelled with.
        Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            allow_from_autoenv=False,
            help="Show the version and exit.",
        ),
    ] = False,
    quiet: Annotated[
        bool, Option("--quiet", "-q", help="No messages and no progress; warnings and errors stay.")
    ] = False,
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Also what was chosen, how long it took, and where an error arose.")
    ] = False,
) -> None:
    """Pack many image-classification tasks into one pretrained network, with no forgetting (PackNet, CVPR 2018)."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), end="")
        raise typer.Exit(UsageError.exit_code)
    try:
        os.getcwd()
    except OSError as error:
        gone = "no longer exists" if isinstance(error, FileNotFoundError) else f"cannot be used ({error.strerror})"
        raise UsageError(f"the folder that this was started in {gone}; change to another one") from None
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata; what cannot be used is an error of ours
    report.talk.quiet = quiet or is_a_further_process()
    if report.talk.quiet or not report.talk.is_terminal:  # the bars of downloads, by packages not imported yet
        for switch in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(switch, "1")
    ctx.with_resource(watched(report.passing))
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")  # timm's and the hub's log, too


def main() -> None:
    """The `packnet` program."""
    from packnet_cli.cli import packing, capacity, using, keeping  # noqa: F401, I001  (adds their commands, in this order)

    streams.prepare()
    if not streams.by_torchrun():  # torchrun ends all processes when one has ended, which alone speaks
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is half written is removed
    with in_one_line(lambda: "packnet"):
        try:
            app()
        finally:
            streams.flush()
