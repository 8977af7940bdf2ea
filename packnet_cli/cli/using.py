"""The commands that use an artifact and leave it as it is."""

from pathlib import Path
from typing import Annotated

from typer import Option

from packnet_cli import report
from packnet_cli.cli import Amp, BatchSize, Device, Json, Packed, Workers, app
from packnet_cli.errors import UsageError

CHECKPOINTS = (".pt", ".pth")


@app.command("eval")
def evaluate(
    path: Packed,
    task: Annotated[str, Option(help="Index or name of the task, or 'all'.")] = "all",
    data: Annotated[
        Path | None, Option(metavar="DIR", help="Images to evaluate on; default, those it was added with.")
    ] = None,
    json: Json = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    workers: Workers = None,
    amp: Amp = False,
) -> None:
    """Measure the accuracy of a task, or of all, on held-out images."""
    from packnet_cli.engine import unpack

    results = unpack.evaluate_tasks(
        path, task, folder=data, batch_size=batch_size, workers=workers, device=device, amp=amp
    )
    report.evaluated(list(results), as_json=json)


@app.command()
def extract(
    path: Packed,
    task: Annotated[str, Option(help="Index or name of the task.")],
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="A .pt, .pth or .safetensors file.")],
) -> None:
    """Write one task as a plain checkpoint, which timm.create_model opens."""
    from packnet_cli.artifact import atomic, format

    if output.suffix not in (*CHECKPOINTS, ".safetensors"):
        raise UsageError(f"{output} must end in .pt, .pth or .safetensors, which says what to write")
    atomic.check_writable(output)
    found = format.load_header(path).task(task)
    artifact = format.load(path)
    if output.suffix in CHECKPOINTS:
        from packnet_cli.engine.unpack import extract_checkpoint as write
    else:
        from packnet_cli.artifact.edit import extract_safetensors as write
    write(artifact, found, output)
    report.extracted(output, artifact.header, found)


@app.command()
def info(path: Packed, json: Json = False) -> None:
    """Show what is packed: tasks, accuracy, shares of the weights, what is free, bytes."""
    from packnet_cli.artifact.summary import summarize

    report.summary(summarize(path), as_json=json)
