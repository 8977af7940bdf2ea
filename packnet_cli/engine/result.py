"""A trained task becomes an entry and weights in a new artifact, which replaces the file."""

import dataclasses
from collections import Counter
from pathlib import Path

from packnet_cli.artifact import atomic, edit, format
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.engine import network
from packnet_cli.engine.data.splits import TrainingImages
from packnet_cli.engine.distributed import check_equal, rank
from packnet_cli.engine.training.task import TaskInTraining
from packnet_cli.errors import ArtifactError, CapacityError, ConflictError
from packnet_cli.images import location
from packnet_cli.progress import Say


def with_trained(
    task: TaskInTraining, data: Path | None, prune: float, search: dict[str, float] | None = None
) -> Artifact:
    """The artifact with the trained task added. Raises ForgettingError or NetworkError if training changed the rest."""
    network.check_constants(task.model, task.constants)
    final = task.final
    entry = Task(
        index=task.index,
        name=task.name,
        classes=task.images.classes,
        prune=prune,
        accuracy=task.accuracy,
        top1=final.top1 if final else None,
        top5=final.top5 if final else None,
        images=final.images if final else 0,
        data=location(data) if data else "",
        recipe=dataclasses.asdict(task.recipe) | {"amp": task.amp},
        search=search or {},
        skipped=task.images.skipped,
        temperature=task.temperature(),
        held_out=task.images.held_out.digest if task.images.held_out else None,
    )
    return edit.with_task(task.artifact, entry, network.read(task.model), task.mask)


def write(artifact: Artifact, path: Path, task: TaskInTraining, unchanged_since: atomic.Stamp) -> None:
    """Write the artifact; if that fails, keep what was trained as the checkpoint."""
    try:
        save(artifact, path, unchanged_since)
    except (ArtifactError, CapacityError, ConflictError) as error:
        if not task.keep_result():
            raise
        fixed = "with the old file back" if isinstance(error, ConflictError) else "once that is fixed"
        raise type(error)(f"{error}. What was trained is kept: {fixed}, --resume writes it") from None


def save(artifact: Artifact, path: Path, unchanged_since: atomic.Stamp) -> None:
    """Write the artifact, in the first process, after checking that all processes of the run have the same."""
    check_equal("".join(task.digest for task in artifact.header.tasks))
    if not rank():
        format.save(artifact, path, unchanged_since=unchanged_since)


def warn_of_guesses(task: Task, images: TrainingImages, say: Say) -> None:
    """Warn if naming one class for every image would do as well: a network that dies of too high a rate does that."""
    labels = images.held_out.split.labels if images.held_out else []
    guessed = 100 * max(Counter(labels).values(), default=0) / max(1, len(labels))
    if task.top1 is not None and task.top1 <= guessed < 100:
        told = f"one class for all images has top-1 {guessed:.2f} %, no less: nothing was learnt; try another --lr"
        say(told, warning=True)
