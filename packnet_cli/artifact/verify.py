"""Verify that a file is undamaged and every task in it is what it was when added. Needs no images and no network."""

from dataclasses import dataclass
from pathlib import Path

from packnet_cli.artifact import format, masks
from packnet_cli.artifact.format import Artifact, Header, State, Task
from packnet_cli.artifact.threads import in_threads
from packnet_cli.errors import DamageError, quoted

ALL, NEWEST = slice(None), slice(-1, None)  # of the tasks


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `task` or `tensor` is None if it concerns no single one."""

    problem: str
    task: int | None = None
    tensor: str | None = None  # its key in the file


def verify(path: str | Path) -> list[Finding]:
    """All that is wrong with a packed model: a single flipped bit anywhere is found. Empty if nothing is.

    Raises ArtifactError if there is no file to read, or if its format is newer.
    """
    return _examine(Path(path))[1]


def load_verified(path: Path) -> Artifact:
    """Load an artifact to build upon, verified: new digests would hide damage in it.

    Each tensor is checked against its digest. Of the tasks' digests only the newest one's is compared, which covers
    every weight of the others, however many tasks there are.
    Raises ArtifactError, also for a compact file, which cannot be built upon.
    """
    format.load_header(path).check_changeable(path)
    artifact, findings = _examine(path, NEWEST)
    if artifact is None:
        raise DamageError(findings[-1].problem)
    for finding in findings:
        raise _damage(path, finding.problem)
    return artifact


def check_task(path: Path, artifact: Artifact, task: Task) -> None:
    """Raise DamageError unless the task is, to the bit, what it was when added."""
    if artifact.digest(task.index) != task.digest:
        raise _damage(path, f"task {task} is not what was added")


def _damage(path: Path, problem: str) -> DamageError:
    return DamageError(f"{path} is damaged: {problem}; `packnet verify {quoted(path)}` lists all that is wrong")


def altered_tasks(artifact: Artifact, which: slice = ALL) -> list[Task]:
    """The tasks whose weights, per-task tensors or head are not, to the bit, what they were when added."""
    tasks = artifact.header.tasks[which]
    digests = in_threads(lambda task: artifact.digest(task.index), tasks)
    return [task for task, digest in zip(tasks, digests, strict=True) if digest != task.digest]


def _examine(path: Path, which: slice = ALL) -> tuple[Artifact | None, list[Finding]]:
    findings: list[Finding] = []
    try:
        header, tensors = format.load_tensors(path)
        findings += _damaged_tensors(header, tensors)
        artifact = format.assemble(path, header, tensors)
    except DamageError as error:
        return None, [*findings, Finding(str(error))]
    findings += _wrong_counts(artifact)
    for task in altered_tasks(artifact, which):
        findings.append(Finding(f"task {task} is not what was added", task.index))
    return artifact, findings


def _damaged_tensors(header: Header, tensors: State) -> list[Finding]:
    """Tensors that were added, are missing, or are not to the bit what was written."""
    digests = format.tensor_digests(tensors)
    findings = []
    for key in sorted(digests.keys() | header.tensors.keys()):
        if digests.get(key) == header.tensors.get(key):
            continue
        task = next((task.index for task in header.tasks if key.startswith(f"task.{task.index}.")), None)
        if key not in digests:
            findings.append(Finding(f"{key} is missing", task, key))
        elif key not in header.tensors:
            findings.append(Finding(f"{key} was not written with the file", task, key))
        else:
            findings.append(Finding(f"{key} is not what was written", task, key))
    return findings


def _wrong_counts(artifact: Artifact) -> list[Finding]:
    """Tasks that own more or fewer weights of a layer than the metadata says."""
    header = artifact.header
    there = {name: masks.count_by_owner(mask) for name, mask in artifact.mask.items()}
    findings = []
    for index, counts in sorted(header.owned.items()):
        for name in sorted(counts.keys() | there.keys()):
            found = there[name][index] if name in there else 0
            if found != counts.get(name, 0):
                problem = f"task {index} owns {found:,} weights of {name}, not the recorded {counts.get(name, 0):,}"
                findings.append(Finding(problem, index, f"{'bits' if header.compact else 'mask'}.{name}"))
    return findings
