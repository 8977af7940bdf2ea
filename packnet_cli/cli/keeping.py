"""The commands that maintain a file: verify it, remove a task, rename one."""

import sys
from typing import Annotated

from packnet_cli import report
from packnet_cli.cli import KEEP, BatchSize, Device, Json, OneTask, Option, Packed, Workers, command
from packnet_cli.errors import ReportedError, UsageError, VerificationError, quoted


@command(KEEP, "packnet verify packed.st", "packnet verify packed.st --data")
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
    from packnet_cli.artifact import format
    from packnet_cli.artifact.verify import verify

    damage, changed, measured = verify(path), [], 0
    header = None if damage else format.load_header(path)
    compact = header and header.compact
    if data and header:
        if compact:
            raise UsageError(
                "a compact file remembers no images; measure its tasks with "
                f"`packnet eval {quoted(path)} --task NAME --data DIR`"
            )
        measured = sum(task.has_images for task in header.tasks)
        if measured:
            from packnet_cli.engine.using.evaluate import check_accuracies

            changed = check_accuracies(path, batch_size=batch_size, workers=workers, device=device)
        else:
            report.warning("no task has images on record: nothing was measured")
    rounded_to = compact.dtype if compact and compact.dtype != "float32" else None
    report.verified(path, damage, changed, measured=measured, rounded_to=rounded_to, as_json=json)
    if damage:
        raise VerificationError(f"{path} is damaged ({len(damage)} finding(s)); go back to a copy that is whole")
    if changed:
        raise ReportedError(
            f"{path} is whole, but {len(changed)} task(s) do not have the recorded accuracy, or cannot be "
            "measured: the images, the hardware or the software have changed; to measure a task on a copy of the "
            f"old ones: `packnet eval {quoted(path)} --task NAME --data DIR`"
        )


@command(KEEP, "packnet remove-task packed.st --task cubs")
def remove_task(
    path: Packed,
    task: OneTask,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Take a task out; the others stay the same to the bit. The newest one's weights become free again."""
    from packnet_cli.artifact import atomic, edit, format

    atomic.check_writable(path)
    unchanged_since = atomic.stamp(path)
    header = format.load_header(path)
    header.check_changeable(path)
    found = header.task(task)
    freed = edit.freed_by(header, found)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("remove-task asks before it removes, and there is no terminal to ask at; give --yes")
        report.explain_removal(header, found, freed)
        if not report.confirm(f"Remove task {found}?"):
            report.removed(path, None, 0, as_json=json)
            return
    edit.remove_task(path, found.index, unchanged_since=unchanged_since)
    report.removed(path, found, freed, as_json=json)


@command(KEEP, "packnet rename packed.st --task 2 --name warblers")
def rename(
    path: Packed,
    task: OneTask,
    name: Annotated[str, Option(help="Its new name: no whole number, not 'all' or 'auto', and not blank.")],
    json: Json = False,
) -> None:
    """Give a task another name; nothing else changes."""
    from packnet_cli.artifact import edit

    report.renamed(path, edit.rename(path, task, name), as_json=json)
