"""A training run from start to end: its description, its machine, its checkpoints, and resuming from one."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packnet_cli.artifact import format
from packnet_cli.engine.claim import Claim
from packnet_cli.engine.data import splits
from packnet_cli.engine.device import workable_batches
from packnet_cli.engine.fit import fit_batch_size
from packnet_cli.engine.modes import training_on
from packnet_cli.engine.training.checkpoint import Checkpointer, interrupted_run
from packnet_cli.engine.training.rates import settle_rates
from packnet_cli.engine.training.task import TaskInTraining
from packnet_cli.machine import Machine
from packnet_cli.progress import Progress, Say
from packnet_cli.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Session:
    """How a verb trains the packed model at `path`: the settings that all such verbs share."""

    path: Path
    machine: Machine
    resume: bool
    checkpoint_minutes: float
    progress: Progress
    say: Say

    @contextmanager
    def training(
        self,
        name: str,
        claim: Claim,
        images: splits.TrainingImages,
        recipe: Recipe,
        *,
        prune: float,
        max_drop: float | None = None,
        retrain: bool = True,
    ) -> Iterator[TaskInTraining]:
        """The task called `name`, to be trained and written within; with `resume`, from where a stopped run was.

        Within, Ctrl-C takes effect at the end of a step; the checkpoint is removed on success. Raises UsageError if
        memory is too small, ConflictError if the checkpoint is of another run, and InterruptedRun.
        """
        recipe = settle_rates(claim.artifact, recipe, self.say)
        recipe = fit_batch_size(
            self.path, claim, images, recipe, self.machine, retrain=retrain, resume=self.resume, say=self.say
        )
        run = describe_run(claim, name, images, recipe, prune=prune, max_drop=max_drop, amp=self.machine.amp)
        checkpointer = Checkpointer(self.path, run, 60 * self.checkpoint_minutes, self.say)
        checkpointer.check_shared(self.resume)
        where = checkpointer.file.parent
        if self.resume and not checkpointer.has_one():
            self.say(f"there is no interrupted run in {where}; starting from the beginning")
        elif checkpointer.has_one() and not self.resume:
            there = interrupted_run(self.path)
            held = f"an interrupted run of task {there.get('task')!r}" if there else "an interrupted run"
            if there == checkpointer.run:
                held = "this run, interrupted, which --resume would go on with"
            self.say(f"{where} holds {held}; it will be replaced: to keep it, move the folder away now", warning=True)
        with checkpointer.listening(), workable_batches(recipe.batch_size), training_on(self.machine):
            task = TaskInTraining(name, claim, images, recipe, self.machine, self.progress, checkpointer)
            if self.resume:
                task.go_on_from(checkpointer.load())
            yield task
            checkpointer.remove()


def describe_run(
    claim: Claim, name: str, images: splits.TrainingImages, recipe: Recipe, **how: float | bool | None
) -> dict[str, Any]:
    """What a training run depends on, by name, to recognise a checkpoint of another run by what differs."""
    state = claim.state | {f"mask.{layer}": array for layer, array in claim.mask.items()}
    header = claim.artifact.header
    return {
        "task": name,
        **how,
        "network": {"arch": header.arch, **header.model_kwargs},  # the same weights may serve others, too
        "preprocessing": header.data_config,
        "recipe": dataclasses.asdict(recipe),
        "images": images.fingerprint,
        "weights": format.digest(state),
    }
