"""Options that all training commands share: the machine, resuming, logging and progress."""

import dataclasses
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from packnet_cli import report
from packnet_cli.cli import MACHINE, Device, Option, Workers, with_options
from packnet_cli.cli.streams import is_a_further_process
from packnet_cli.errors import UsageError
from packnet_cli.machine import CHECKPOINT_MINUTES, Cache, Machine

_OnMachine = partial(Option, rich_help_panel=MACHINE)
_OnResuming = partial(Option, rich_help_panel="Interrupted runs")
_OnMetrics = partial(Option, rich_help_panel="Metrics")


@dataclasses.dataclass(frozen=True)
class Run:
    """The options, by name."""

    device: Device = Machine.device
    workers: Workers = Machine.workers
    amp: Annotated[
        bool | None, _OnMachine(help="Train in bfloat16, with float32 weights; default: where that is fast.")
    ] = Machine.amp
    compile: Annotated[
        bool | None, _OnMachine(help="Compile the step with torch.compile; default: on a GPU CUDA graphs.")
    ] = Machine.compile
    deterministic: Annotated[
        bool, _OnMachine("--deterministic", help="The same bits each time on a GPU too, at some cost.")
    ] = Machine.deterministic
    cache: Annotated[
        Cache,
        _OnMachine(
            help="Where to keep decoded images: auto, on the GPU, then in RAM. The rest is read again in each epoch."
        ),
    ] = Machine.cache
    cache_gb: Annotated[
        float,
        _OnMachine(
            min=0, help="Gigabytes for images, on the GPU and in RAM each; at most a quarter of a GPU's free memory."
        ),
    ] = Machine.cache_gb
    resume: Annotated[bool, _OnResuming("--resume", help="Go on with an interrupted run of the same command.")] = False
    checkpoint_minutes: Annotated[
        float, _OnResuming(min=0, help="Every so many minutes, keep what is needed to resume.")
    ] = CHECKPOINT_MINUTES
    log: Annotated[
        Path | None,
        _OnMetrics(
            metavar="DIR",
            help="Add the metrics of each epoch and each measured accuracy to a log in this folder: metrics.jsonl, and "
            "events for TensorBoard if that is installed.",
        ),
    ] = None
    progress: Annotated[
        Literal["bar", "json"], _OnMetrics(help="Show progress as a bar, or as lines of JSON on stderr.")
    ] = "bar"

    @contextmanager
    def of(self, path: Path) -> Iterator[dict[str, Any]]:
        """The keyword arguments for a verb that trains the packed model `path`; progress is shown meanwhile."""
        if self.log is not None and os.path.realpath(self.log) == os.path.realpath(path):
            raise UsageError(f"--log {self.log} is the packed model itself; name a folder")
        chosen: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(Machine)}
        log = None if is_a_further_process() else self.log
        with report.training(log=log, as_json=self.progress == "json") as told:
            yield {
                "machine": Machine(**chosen),
                "resume": self.resume,
                "checkpoint_minutes": self.checkpoint_minutes,
                "progress": told,
                "say": report.say,
            }
        if is_a_further_process():  # the first alone has written the file, and tells of it
            raise typer.Exit()


# Gives a command these options, and their values as a Run in its parameter `run`.
with_run = with_options(
    "run",
    [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in dataclasses.fields(Run)
    ],
    lambda values: Run(**values),
)
