"""Plan capacity before anything runs: how many weights a prune fraction releases in each layer, and what is left.

Equal shares for T tasks are p_k = (T - k) / (T - k + 1) for k = 1..T: what a task releases is split evenly among the
tasks to come.
"""

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from packnet_cli.artifact import masks
from packnet_cli.artifact.format import Artifact
from packnet_cli.errors import CapacityError, UsageError, few, quoted
from packnet_cli.recipe import Recipe

THIN_SHARE = 0.02  # of the packed weights: a task that owns less can learn little more than its head


def check_fraction(prune: float) -> None:
    """Raise UsageError unless `prune` is in [0, 1)."""
    if not 0 <= prune < 1:
        hint = f"; {prune:g} % are {prune / 100:g}" if 1 < prune < 100 else ""
        raise UsageError(f"--prune must be at least 0 and less than 1, not {prune:g}{hint}")


def fraction_of(text: str, word: str) -> float:
    """A prune fraction that was given as text, in place of which `word` could stand. Raises UsageError."""
    try:
        fraction = float(text) + 0.0  # which of -0 makes 0
    except ValueError:
        raise UsageError(f"--prune takes a fraction from 0 to 1, or {word}, not {text!r}") from None
    check_fraction(fraction)
    return fraction


def equal_share(tasks_left: int) -> float:
    """The prune fraction that leaves this task as much as each of the n = `tasks_left` later ones gets: n / (n + 1)."""
    return tasks_left / (tasks_left + 1)


def release_counts(owned: dict[str, int], prune: float, recipe: Recipe) -> dict[str, int]:
    """How many weights of each layer the prune fraction in [0, 1] releases: round(prune * owned), if not spared.

    The recipe leaves at least `keep_at_least` weights in each layer that has as many, and spares the layers that match
    one of the comma-separated patterns in `skip_layers`.
    """
    spared = layers_spared(owned, recipe.skip_layers)
    return {
        layer: 0 if layer in spared else max(0, min(round(prune * count), count - recipe.keep_at_least))
        for layer, count in owned.items()
    }


def check_release(owned: dict[str, int], prune: float, recipe: Recipe) -> None:
    """Raise UsageError if a fraction above 0 releases nothing, or if no layer matches a pattern."""
    if not any(release_counts(owned, prune, recipe).values()) and prune:
        spares = recipe.keep_at_least or recipe.skip_layers
        why = "--skip-layers and --keep-at-least spare all" if spares else "it is less than one weight of each layer"
        raise UsageError(f"this fraction would release nothing: {why}; give another value")


def layers_spared(layers: Collection[str], skip_layers: str) -> set[str]:
    """The layers that match one of the comma-separated patterns. Raises UsageError if none matches a pattern."""
    spared = set[str]()
    for pattern in filter(None, map(str.strip, skip_layers.split(","))):
        found = {layer for layer in layers if fnmatchcase(layer, pattern)}
        if not found:
            raise UsageError(f"--skip-layers {pattern!r} matches no packed layer; there are {few([*layers], 3)}")
        spared |= found
    return spared


@dataclass(frozen=True)
class Share:
    """The share of a task, existing or planned; `prune` is the fraction of the free weights that it releases."""

    index: int
    name: str
    prune: float
    owned: dict[str, int]  # weights, by layer

    @property
    def total(self) -> int:
        return sum(self.owned.values())

    @property
    def dry(self) -> list[str]:
        """The layers in which the task owns nothing."""
        return [layer for layer, count in self.owned.items() if count == 0]


@dataclass(frozen=True)
class Plan:
    """How the weights of an artifact are shared out. Counts are of weights, sizes are bytes."""

    shares: tuple[Share, ...]
    planned: tuple[Share, ...]  # the shares of tasks to come
    removed: int  # weights that removed tasks left to later ones
    free: dict[str, int]  # weights left after the last share, by layer
    packed_weights: int
    file_bytes: int  # without the heads of planned tasks, whose classes are not known

    def is_thin(self, share: Share) -> bool:
        return share.total < THIN_SHARE * self.packed_weights


def share_out(artifact: Artifact, prunes: dict[str, float], recipe: Recipe) -> Plan:
    """Plan an artifact's tasks, and those to come, which `prunes` gives: name -> prune fraction. Raises UsageError."""
    shares = [Share(task.index, task.name, task.prune, task.owned) for task in artifact.header.tasks]
    free = artifact.free_counts()
    for index, (name, prune) in enumerate(prunes.items(), start=artifact.header.last_index + 1):
        released = release_counts(free, prune, recipe)
        shares.append(Share(index, name, prune, {layer: free[layer] - released[layer] for layer in free}))
        free = released
    planned = shares[len(artifact.header.tasks) :]
    weights = sum(mask.size for mask in artifact.mask.values())
    own = [sum(array.nbytes for array in state.values()) for state in artifact.own]
    file_bytes = 5 * weights + sum(own) + len(prunes) * own[0]  # per weight 4 bytes, and 1 for its owner
    removed = sum(sum(owned.values()) for owned in artifact.header.removed.values())
    return Plan(tuple(shares), tuple(planned), removed, free, weights, file_bytes)


def check_capacity(path: Path, artifact: Artifact, *, more: int = 1, head_only: bool = False) -> None:
    """Raise CapacityError if `more` tasks do not fit, UsageError if `head_only` has no task to build on."""
    tasks = artifact.header.tasks
    if artifact.header.last_index + more > masks.MAX_TASKS:
        raise CapacityError(
            f"{path} has used {artifact.header.last_index} of its {masks.MAX_TASKS} task indices; "
            "remove the newest, or start another file"
        )
    if head_only and not tasks:
        raise UsageError("--head-only needs a task whose weights it can use; add one, or keep the base: init --prune")
    if not head_only and artifact.free_count() == 0:
        hint = f"make room with `packnet prune {quoted(path)} --task {tasks[-1].index} --prune 0.5`, or "
        if not any(tasks[-1].owned.values()):
            hint = ""
        raise CapacityError(f"no free weights are left in {path}; {hint}train a classifier alone with --head-only")


def equal_shares(artifact: Artifact, tasks: int) -> dict[str, float]:
    """Equal shares of the free weights for the tasks still missing from `tasks` in all: name -> prune fraction."""
    last = artifact.header.last_index
    to_come = tasks - len(artifact.header.tasks)
    return {f"task {last + k}": equal_share(to_come - k) for k in range(1, to_come + 1)}
