"""The commands that use an artifact and leave it as it is."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from packnet_cli import extras, report
from packnet_cli.cli import (
    LOOK,
    USE,
    Amp,
    Argument,
    BatchSize,
    Device,
    Json,
    JsonLines,
    OneTask,
    Option,
    Packed,
    Workers,
    command,
    complete_task,
)
from packnet_cli.errors import ConflictError, DataError, ReportedError, UsageError, few

FOLDER = ""
FORMS = (".pt", ".pth", ".safetensors", ".onnx", ".pt2")


def check_first(path: Path, task: str) -> None:
    """Raise TaskError or ArtifactError now, for what the file's metadata tells: to import torch takes seconds."""
    from packnet_cli.artifact import format

    format.load_header(path).asked(task, path)


@command(
    USE,
    "packnet eval packed.st",
    "packnet eval packed.st --task cubs --data ./other-birds",
    "packnet eval packed.st --task auto",
    name="eval",
)
def evaluate(
    path: Packed,
    task: Annotated[
        str,
        Option(
            help="Index or name of the task; 'all'; or 'auto': how often predict --task auto picks the right task.",
            autocompletion=complete_task,
        ),
    ] = "all",
    data: Annotated[
        Path | None, Option(metavar="DATA", help="Images to evaluate on; default: those it was added with.")
    ] = None,
    json: Json = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    workers: Workers = None,
    amp: Amp = False,
) -> None:
    """Measure the accuracy of a task, or of all, on held-out images."""
    check_first(path, task)
    if task == "auto":
        if data is not None:
            raise UsageError("--task auto is measured on the images that the tasks remember; leave out --data")
        from packnet_cli.engine.using.auto import evaluate_auto

        choices = evaluate_auto(path, batch_size=batch_size, workers=workers, device=device, amp=amp)
        report.chosen(choices, as_json=json)
        return
    from packnet_cli.engine.using import evaluate

    evaluations = evaluate.evaluate_tasks(
        path, task, data=data, batch_size=batch_size, workers=workers, device=device, amp=amp
    )
    results = list(evaluations)
    report.evaluated(results, as_json=json)
    if lost := sum(result.problem is not None for result in results):
        raise ReportedError(f"{lost} of {len(results)} tasks could not be measured")


@command(
    USE,
    "packnet predict packed.st --task cubs bird.jpg photos/",
    "packnet predict packed.st --task all photos/ --json > labels.jsonl",
    "find /archive -name '*.jpg' | packnet predict packed.st --task cubs - --csv > labels.csv",
)
def predict(
    path: Packed,
    images: Annotated[
        list[str],
        Argument(metavar="IMAGE", help="Image files, folders of them, or - for paths from stdin."),
    ],
    task: Annotated[
        str,
        Option(
            help="Index or name of the task; 'all'; or 'auto' (experimental): of each image the task that is most "
            "certain; eval --task auto says how often that is right.",
            autocompletion=complete_task,
        ),
    ],
    top: Annotated[int, Option(min=1, help="Classes to show, the likeliest first.")] = 5,
    json: JsonLines = False,
    csv: Annotated[bool, Option("--csv", help="Print a line of CSV for each image, task and class shown.")] = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    amp: Amp = False,
) -> None:
    """Name the likeliest classes of images, with probabilities; results appear as they come."""
    if json and csv:
        raise UsageError("--json and --csv exclude each other")
    check_first(path, task)
    from packnet_cli.engine.using import predict as engine

    standard_input = "-" in images
    if standard_input and len(images) > 1:
        raise UsageError("- stands for the paths on stdin, and for them alone; leave out the other images")
    lines = (line.removeprefix("\ufeff").rstrip("\r\n") for line in sys.stdin or ())  # also as on Windows
    arguments = filter(str.strip, lines) if standard_input else images
    answers = engine.predict(
        path,
        engine.find_images(arguments),
        task,
        batch_size=batch_size,
        device=device,
        amp=amp,
        read_ahead=not standard_input,
    )
    if task == "auto":
        report.say("--task auto only guesses the task; eval --task auto says how often it is right")
    show = report.predictions("json" if json else "csv" if csv else "table", top)
    unreadable = total = 0
    for answer in answers:
        total += 1
        if answer.problem:
            unreadable += 1
            report.error(f"cannot read {answer.path}: {answer.problem}")
        if json or not answer.problem:  # a document for each image, whatever became of it
            show(answer)
    if unreadable:
        raise ReportedError(f"{unreadable} of {total} images could not be read and were left out")


@command(
    USE,
    "packnet extract packed.st --task cubs -o cubs-timm/",
    "packnet extract packed.st --task cubs -o cubs.onnx",
)
def extract(
    path: Packed,
    task: OneTask,
    output: Annotated[
        str,
        Option("--output", "-o", metavar="PATH", help="A folder, or a .safetensors, .pt, .onnx or .pt2 file to write."),
    ],
    json: Json = False,
) -> None:
    """Write one task so that others open it: a folder as on the hub, a plain checkpoint, ONNX, an exported program.

    A path without a suffix, or with / at its end, is a folder, for timm.create_model("local-dir:DIR", pretrained=True).
    """
    from packnet_cli.artifact import atomic, format, verify

    target, form = Path(output), _form(output)
    format.check_replaceable(target)
    if form == ".onnx":
        extras.require("onnx")
    if form != FOLDER:
        atomic.check_writable(target)
    format.load_header(path).task(task)  # an error, if any, before all is read
    artifact = format.load(path)
    found = artifact.header.task(task)  # the file may have been replaced since
    verify.check_task(path, artifact, found)
    if form == ".safetensors":
        from packnet_cli.artifact.ship import extract_safetensors as write
    else:
        from packnet_cli.engine.using import export

        write = export.WRITERS[form]
    write(artifact, found, target)
    report.extracted(target, form, artifact.header, found, as_json=json)


def _form(output: str) -> str:
    """What to write at this path: its suffix, or FOLDER."""
    path = Path(output)
    form = path.suffix.lower()
    if output.endswith("/") or not form or (form not in FORMS and os.path.isdir(path)):
        return FOLDER
    if form == ".safetensors":
        form = path.suffix  # by this one timm goes as it is written
    if form not in FORMS:
        raise UsageError(f"{path} must end in {', '.join(FORMS)} or, for a folder, in /, which says what to write")
    return form


@command(LOOK, "packnet info packed.st --layers", "packnet info packed.st --task cubs --json")
def info(
    path: Packed,
    layers: Annotated[bool, Option("--layers", help="Show for each layer which task owns how much.")] = False,
    task: Annotated[
        str | None,
        Option(
            help="Show one task, by index or name: its recipe, accuracies, digest, ...", autocompletion=complete_task
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what is packed: tasks, accuracy, shares of the weights, what is free, bytes.

    The bytes are set beside those of a network for each task, and of one network with a head and an adapter for each.

    An adapter is LoRA's, on each packed matrix and filter: r * (outputs + inputs * taps) float32 numbers, r at most 8.
    """
    from packnet_cli.artifact.summary import summarize

    if task is not None:
        if layers:
            raise UsageError("--layers shows all tasks; leave out --task")
        numbers = summarize(path)
        report.task(numbers, numbers.header.task(task), as_json=json)
        return
    report.summary(summarize(path), layers=layers, as_json=json)


@command(
    USE,
    "packnet compact packed.st -o ship.st",
    "packnet compact packed.st -o ship.st --dtype bfloat16 --check",
)
def compact(
    path: Packed,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="The compact file to write.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], Option(help="Number format; all but float32 round.")
    ] = "float32",
    check: Annotated[
        bool, Option("--check", help="Also measure every task in both, on the images that it remembers.")
    ] = False,
    json: Json = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Write the smallest file that runs the tasks, to which none can be added. eval, predict, extract, ... read it."""
    from packnet_cli.artifact import atomic
    from packnet_cli.artifact.ship import make_compact

    accuracies = []
    if check:
        from packnet_cli.engine.using.evaluate import evaluate_tasks

        unchanged_since = atomic.stamp(path)
        measure = partial(evaluate_tasks, as_in=path, batch_size=batch_size, device=device, workers=workers)
        accuracies.append(list(measure(path)))  # before anything is written: it may fail
        if problem := next(filter(None, (result.problem for result in accuracies[0])), None):
            raise DataError(problem)
        if atomic.stamp(path) != unchanged_since:  # measuring takes long
            raise ConflictError(f"{path} was changed by another program meanwhile; nothing was written")
    sizes = make_compact(path, output, dtype=dtype)
    if check:
        accuracies.append(list(measure(output)))
    report.compacted(output, *sizes, list(zip(*accuracies, strict=True)), as_json=json)


@command(LOOK, "packnet plot packed.st -o packed.png")
def plot(
    path: Packed,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="A .png, .svg or .html file to write.")],
    log: Annotated[
        Path | None,
        Option(metavar="DIR", help="Also draw the training curves in this log, which training wrote with --log."),
    ] = None,
    json: Json = False,
) -> None:
    """Draw who owns how much of each layer, each task's accuracy before and after pruning, and training curves."""
    if output.suffix.lower() not in (".png", ".svg", ".html"):
        raise UsageError(f"{output} must end in .png, .svg or .html, which says what to write")
    from packnet_cli.artifact import format
    from packnet_cli.artifact.summary import summarize

    format.check_replaceable(output)
    extras.require("plot")
    from packnet_cli import plot

    numbers = summarize(path)
    if missing := plot.draw(numbers, output, log):
        report.say(f"the log {log} has nothing under the present names of these tasks: {few(missing)}")
    report.plotted(output, numbers, as_json=json)
