"""A task in training claims weights, trains them, releases the smallest, retrains the rest (PackNet, section 3)."""

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import torch
from timm.utils import random_seed

from packnet_cli.artifact import masks
from packnet_cli.artifact.format import State
from packnet_cli.artifact.header import is_of_head
from packnet_cli.engine import compute, distributed, network
from packnet_cli.engine.calibrate import measure_temperature
from packnet_cli.engine.claim import Claim
from packnet_cli.engine.data import feed, splits
from packnet_cli.engine.data.augment import Augmentation
from packnet_cli.engine.device import choose_device
from packnet_cli.engine.measure import evaluate
from packnet_cli.engine.network import Kind
from packnet_cli.engine.training.checkpoint import Checkpointer
from packnet_cli.engine.training.freezer import Freezer
from packnet_cli.engine.training.optimize import Optimization
from packnet_cli.engine.training.parts import wants_copies
from packnet_cli.engine.training.rates import lr_scale, multiples
from packnet_cli.engine.training.release import Goals, release_goals, release_in_steps
from packnet_cli.engine.training.state import (
    Found,
    RunState,
    Snapshot,
    optimizer_state,
    random_state,
    set_optimizer_state,
    set_random_state,
)
from packnet_cli.engine.training.taps import taps_in_use
from packnet_cli.engine.training.train import Position, Resume, Teacher, train
from packnet_cli.machine import Machine
from packnet_cli.progress import Accuracy, Progress, Step
from packnet_cli.recipe import Recipe

TRAIN, RETRAIN, SEARCHED = "train", "retrain", "searched"

# What a checkpoint holds: a phase, how far it has come, and its optimizer, if there is one.
Reached = tuple[str, Position, Callable[[], torch.optim.Optimizer | None]]


def _no_optimizer() -> None:
    """Between two phases there is no optimizer."""


class TaskInTraining:
    """A task in training: its network, and the task-index masks, in which it owns fewer weights after each release."""

    def __init__(
        self,
        name: str,
        claim: Claim,
        images: splits.TrainingImages,
        recipe: Recipe,
        machine: Machine,
        progress: Progress,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.name, self.artifact, self.images = name, claim.artifact, images
        self.recipe, self.checkpointer = recipe, checkpointer
        self.retrain_epochs = recipe.retrain_epochs if images.train.paths else 0
        self.labelled = images.labelled  # computed once: it looks at every label
        self.distill_weight = recipe.distill_weight if self.labelled else 1.0
        if checkpointer is not None:
            checkpointer.rescue = self.keep_result
        self.progress = partial(progress, name)
        self.resumed: RunState | None = None  # of a stopped run, until the phase in which it was resumes
        self.going_on = False
        self.index, self.mask = claim.index, dict(claim.mask)
        self.accuracy: dict[str, float] = {}
        self.final: Accuracy | None = None
        self.found: Found | None = None
        self._teacher: Teacher | None = None
        self._reached: Reached | None = None
        self._goals: Goals = {}
        self._once = False  # whether one schedule runs over training and retraining
        random_seed(recipe.seed)
        header = claim.artifact.header
        self.model = network.build(header, len(images.classes))
        fresh = {name: value for name, value in self.model.state_dict().items() if is_of_head(name, header.head)}
        network.check_fits(self.model, header, fresh | claim.state, len(images.classes))
        self.device = device = choose_device(machine.device)
        owns = any((array == claim.index).any() for array in claim.mask.values())
        is_first = not (header.tasks or header.removed)
        # Unlabelled images may be of any kind: norms trained on them would not fit the task's own images.
        self.train_norm = owns and self.labelled and (recipe.norm == "task" or is_first)
        self.amp = compute.in_bfloat16(machine.amp, device, self.model)
        copied = wants_copies(device, amp=self.amp, compiled=machine.compile)
        self.freezer = self._set_starting_values(claim.state, copied)
        names = [name for name, _ in self.model.named_parameters()]
        self.lr_scale = lr_scale(claim, recipe, names)
        self.rates = multiples(self.model, recipe, header.head)
        network.try_out(self.model, header.data_config)
        self.taps = taps_in_use(self.model, header.data_config["input_size"]) if recipe.rank == "layer" else {}
        self.constants = network.constants(self.model)
        self.feed = self._feed(machine)
        self.train_batches = self.feed(images.train, augmentation=Augmentation.of(recipe))
        self.val_batches = self.feed(images.held_out.split) if images.held_out else None
        shape = (self.train_batches.most, *header.data_config["input_size"])
        self.forward_of = partial(compute.forward_of, wanted=machine.compile, device=device, shape=shape, amp=self.amp)
        self.ready = self.forward_of(self.freezer.network)

    def _feed(self, machine: Machine) -> Callable[..., feed.Batches]:
        """A function that makes batches of any split, for this network on this machine."""
        return partial(
            feed.batches,
            data_config=network.preprocessing(self.artifact.header),
            batch_size=self.recipe.batch_size,
            workers=machine.workers,
            device=self.device,
            budgets=feed.budgets(machine.cache, machine.cache_gb, self.device),
        )

    def _set_starting_values(self, state: State, copied: bool) -> Freezer:
        """Set every value that the task starts from, and hold what it does not own from now on."""
        kinds = network.kinds_of(self.model, self.artifact.header.head)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(kinds[name] is not Kind.PER_TASK or self.train_norm)
        network.write(self.model, {name: array for name, array in state.items() if name not in self.mask})
        network.place(self.model, self.device)
        freezer = Freezer(self.model, self.recipe.opt, copied=copied)
        with torch.no_grad():
            for layer in self.mask:  # by far the largest, so without another copy
                freezer.parameters[layer].copy_(torch.from_numpy(state[layer]))
        freezer.hold(self._trainable())
        return freezer

    def _trainable(self) -> dict[str, masks.Bools]:
        return {layer: array == self.index for layer, array in self.mask.items()}

    def train(self, *, retrained: bool = False) -> None:
        """Train all claimed weights; `retrained`: whether retraining follows, which one schedule may have to span."""
        self._once = retrained and self.recipe.anneal == "once"
        for _ in self._epochs(TRAIN, self.recipe.epochs, self.recipe.lr):
            pass
        self.measure("dense")

    def rehearse(self, *, retrain: bool) -> None:
        """Use all the memory that training will: the optimizer's moments exist from the second step on, and
        retraining, if any, has a teacher."""
        teacher = self._new_teacher() if retrain else None
        if self.labelled or teacher:  # else nothing will be trained
            for _ in self._epochs(TRAIN, 2, self.recipe.lr, teacher):
                pass

    def prune_and_retrain(self, prune: float, phase: str = RETRAIN) -> None:
        """Release the fraction `prune` of the task's own weights, in steps over the first epochs, and retrain."""
        trial = phase.removeprefix(RETRAIN)  # in a search, such as " at 0.5"
        steps = max(1, min(self.recipe.prune_steps, self.retrain_epochs))

        def release(step: int) -> None:
            release_in_steps(self.mask, self.freezer.parameters, self.index, self._goals, step / steps, self.taps)
            self.freezer.hold(self._trainable())
            if step == 1 and not self.resumed:
                self._reached = phase, Position(), _no_optimizer
            if step == steps:
                self.measure("pruned", trial)

        if not self.resumed:
            self._teacher = self._new_teacher()
            weights = partial(network.read, self.model, set(self.mask))
            self._goals = release_goals(self.mask, self.index, prune, self.recipe, weights)
        if not self.resumed or self.resumed.position.epoch == 0:
            release(1)  # in a resumed run only measures, and that only if it had not
        # Named, to keep the optimizer alive for the checkpoint if an error ends the loop.
        epochs = self._epochs(phase, self.retrain_epochs, self.recipe.retrain_lr, self._teacher)
        for epoch in epochs:
            if 0 < epoch < steps:
                release(epoch + 1)
        if self.retrain_epochs:
            self.measure("retrained", trial)

    def _new_teacher(self) -> Teacher | None:
        """The network as it is now, if retraining distils from it."""
        taught = self.retrain_epochs and self.distill_weight
        return Teacher(self.model, self.distill_weight, self.forward_of, self.amp) if taught else None

    def _epochs(self, phase: str, epochs: int, lr: float, teacher: Teacher | None = None) -> Iterator[int]:
        if self.resumed and self.resumed.phase != phase:
            return iter(())  # done before the run was stopped
        around = (0, self.retrain_epochs) if phase == TRAIN else (self.recipe.epochs, 0)
        sched = "none" if phase != TRAIN and self.recipe.anneal == "first" else self.recipe.sched
        return train(
            self.model,
            self.train_batches,
            self.freezer,
            Optimization(self.recipe.opt, lr, sched, self.recipe.weight_decay, self.lr_scale, self.rates),
            epochs=epochs,
            around=around if self._once else (0, 0),
            train_norm=self.train_norm,
            amp=self.amp,
            ready=self.ready,
            progress=partial(self._show, phase),
            teacher=teacher,
            seed=1000 * self.recipe.seed + (0 if phase == TRAIN else 500),
            resume=self._resume(),
            after_step=partial(self._keep, phase),
        )

    def _show(self, phase: str, step: Step) -> None:
        self.progress(phase, step if self.labelled else dataclasses.replace(step, accuracy=None))

    def measure(self, phase: str, trial: str = "") -> None:
        """Record the accuracy on the held-out images, if there are any, unless a stopped run has recorded it."""
        if self.val_batches is not None and not (self.resumed and phase in self.accuracy):
            self.final = evaluate(self.model, self.val_batches)  # in float32, as the file holds it
            self.accuracy[phase] = self.final.top1
            self.progress(phase + trial, self.final)

    def temperature(self) -> float | None:
        """The task's present temperature; None without held-out images."""
        return None if self.val_batches is None else measure_temperature(self.model, self.val_batches)

    def snapshot(self) -> Snapshot:
        """A copy of where the task stands, for `go_back_to`; in main memory, as a GPU may lack the room."""
        state = {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}
        return Snapshot(state, dict(self.mask), dict(self.accuracy), self.final)

    def go_back_to(self, snapshot: Snapshot) -> None:
        self.model.load_state_dict(snapshot.state)
        network.forget_computed(self.model)
        self.mask, self.accuracy, self.final = dict(snapshot.mask), dict(snapshot.accuracy), snapshot.final
        self.freezer.hold(self._trainable())

    def _keep(self, phase: str, position: Position, optimizer: torch.optim.Optimizer, looked: bool) -> None:
        """After a step: write a checkpoint if one is due, and stop if asked to."""
        if self.checkpointer is None:
            return
        # A weak reference: the optimizer's moments need not outlive the phase.
        self._reached = phase, position, weakref.ref(optimizer)
        if not looked:
            return
        self.checkpointer.agree()
        if self.checkpointer.due:
            losses, hits, images = map(sum, zip(*distributed.gathered(position.sums), strict=True))
            position = dataclasses.replace(position, sums=(losses, hits, images))
            self._reached = phase, position, weakref.ref(optimizer)
            self.keep_result()
        self.checkpointer.stop_if_asked()

    def end_search(self, found: Found) -> None:
        """Record the result of a search for a prune fraction, which checkpoints hold from now on."""
        self.found = found
        self._reached = SEARCHED, Position(), _no_optimizer

    def keep_result(self) -> bool:
        """Write a checkpoint of what was trained; returns whether there now is one.

        During a search the last one is that of the network before pruning, from which the search starts again.
        """
        if self.checkpointer is None:
            return False
        if self._reached is None:  # nothing yet beyond the checkpoint that this run may have resumed from
            return self.going_on
        phase, position, optimizer_now = self._reached
        if phase not in (TRAIN, RETRAIN, SEARCHED):
            return self.checkpointer.has_one()
        optimizer = optimizer_now()
        if optimizer:
            self.freezer.forget_released(optimizer)
        self.freezer.write_parameters()
        moments, numbers = optimizer_state(self.freezer.trained(), optimizer) if optimizer else ({}, {})
        state = RunState(
            phase,
            position,
            Snapshot(self.model.state_dict(), self.mask, self.accuracy, self.final),
            self._teacher.model.state_dict() if self._teacher else {},
            moments,
            numbers,
            random_state(self.device),
            self._goals,
            self.freezer.in_part,
            self.found,
        )
        return self.checkpointer.save(state)

    def go_on_from(self, state: RunState | None) -> None:
        """Restore a stopped run's state, if there is one; the phase that it was in then resumes there."""
        if state is None:
            return
        self.resumed = state
        self.going_on = True
        if state.teacher:
            self._teacher = Teacher(self.model, self.distill_weight, self.forward_of, self.amp)
            self._teacher.model.load_state_dict(state.teacher)
            network.forget_computed(self._teacher.model)
        self.freezer.in_part, self.found, self._goals = state.in_part, state.found, state.goals
        self.go_back_to(state.snapshot)

    def _resume(self) -> Resume | None:
        """Where the phase that starts now resumes, if a stopped run was in it."""
        state, self.resumed = self.resumed, None
        if state is None:
            return None
        return Resume(
            state.position,
            self.train_batches.skip,
            partial(set_optimizer_state, self.freezer.trained(), tensors=state.moments, numbers=state.numbers),
            partial(set_random_state, state.random, self.device),
        )
