"""The weights that a task claims in an artifact, and the values that it starts from."""

from dataclasses import dataclass

from packnet_cli.artifact import edit, masks
from packnet_cli.artifact.format import Artifact, State
from packnet_cli.artifact.header import is_of_head
from packnet_cli.recipe import Recipe


@dataclass(frozen=True)
class Claim:
    """What a task starts from, in an artifact that does not hold it yet."""

    artifact: Artifact
    index: int
    mask: dict[str, masks.Mask]  # task-index masks, with the task's claim
    state: State  # every tensor it starts from; without those of the head, the head starts at random


def claim_free(artifact: Artifact, recipe: Recipe) -> Claim:
    """Every free weight for the next task, at its dormant value or 0; the rest is the starting point's or first task's.

    A file's only task starts from the dormant values whatever `restart` says: a network of zeros learns nothing.
    """
    tasks, index = artifact.header.tasks, artifact.header.last_index + 1
    mask = {layer: masks.claim_free(array, index) for layer, array in artifact.mask.items()}
    last_seen = index - 1 if recipe.restart == "zero" and tasks else index
    values = {layer: masks.keep_visible(artifact.shared[layer], mask[layer], last_seen) for layer in mask}
    own = artifact.own[0 if recipe.norm == "task" or not tasks else tasks[0].index]
    return Claim(artifact, index, mask, values | _without_head(artifact, own))


def claim_nothing(artifact: Artifact) -> Claim:
    """No weights, for a task that is only a head on the network exactly as the newest task runs it."""
    newest = artifact.header.last_index
    return Claim(artifact, newest + 1, artifact.mask, _without_head(artifact, artifact.state(newest)))


def claim_again(artifact: Artifact) -> Claim:
    """What the newest task owns, to train that task further from where it is, head included."""
    newest = artifact.header.tasks[-1]
    return Claim(edit.without_newest(artifact), newest.index, artifact.mask, artifact.state(newest.index))


def _without_head(artifact: Artifact, state: State) -> State:
    return {name: array for name, array in state.items() if not is_of_head(name, artifact.header.head)}
