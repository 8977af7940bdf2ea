"""The commands that keep a file: prove that it is whole, and take a task out of it or give one another name."""

from typing import Annotated

from typer import Option

from packnet_cli import report
from packnet_cli.cli import BatchSize, Device, Json, Packed, Workers, app
from packnet_cli.errors import VerificationError


@app.command()
def verify(
    path: Packed,
    data: Annotated[
        bool, Option("--data", help="Also measure every task again, on the images that it remembers.")
    ] = False,
    json: Json = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Prove that the file is whole, and each task to the bit what was added; needs no images."""
    from packnet_cli.artifact.verify import verify

    findings = verify(path)
    if data and not findings:
        from packnet_cli.engine.unpack import check_accuracies

        findings = check_accuracies(path, batch_size=batch_size, workers=workers, device=device)
    report.verified(path, findings, as_json=json)
    if findings:
        raise VerificationError(f"{path} is damaged ({len(findings)} finding(s)); go back to a copy that is whole")
