"""A run's state, to go back to or to save: where its task stands, random generators, the optimizer's moments."""

import copy
import random
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from packnet_cli.artifact import masks
from packnet_cli.engine.training.release import Goals
from packnet_cli.engine.training.train import Position
from packnet_cli.progress import Accuracy

Tensors = dict[str, torch.Tensor]

# A search's result: the prune fraction, and top-1 in percent by fraction tried, "0" being the unpruned network.
Found = tuple[float, dict[str, float]]


@dataclass
class Snapshot:
    """Where a task stands: its network's values, the task-index masks, and the accuracies measured so far."""

    state: Tensors
    mask: dict[str, masks.Mask]
    accuracy: dict[str, float]
    final: Accuracy | None


@dataclass
class RunState:
    """All that a run resumes from: the phase that it was in, how far that had come, and what had changed by then."""

    phase: str
    position: Position
    snapshot: Snapshot
    teacher: Tensors  # its values; none without a teacher
    moments: Tensors  # the optimizer's tensors and numbers, see `optimizer_state`
    numbers: dict[str, Any]
    random: dict[str, Any]  # see `random_state`
    goals: Goals
    in_part: dict[str, bool]  # see `Freezer`
    found: Found | None

    def tensors(self) -> Tensors:
        """What a checkpoint holds as tensors, named "model.*", "mask.*", "optimizer.*" or "teacher.*"."""
        mask = {layer: torch.from_numpy(array) for layer, array in self.snapshot.mask.items()}
        parts = {"model": self.snapshot.state, "mask": mask, "optimizer": self.moments, "teacher": self.teacher}
        return {f"{prefix}.{name}": value for prefix, held in parts.items() for name, value in held.items()}

    def notes(self) -> dict[str, Any]:
        """The rest, in JSON types."""
        return {
            "phase": self.phase,
            "position": astuple(self.position),
            "optimizer": self.numbers,
            "random": self.random,
            "goals": self.goals,
            "in part": self.in_part,
            "accuracy": self.snapshot.accuracy,
            "final": asdict(self.snapshot.final) if self.snapshot.final else None,
            "found": self.found,
        }

    @classmethod
    def of(cls, tensors: Tensors, notes: dict[str, Any]) -> "RunState":
        """The state that a checkpoint holds."""

        def part(prefix: str) -> Tensors:
            return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

        # Copies: the tensors map the checkpoint's file, which the next one replaces.
        mask = {layer: value.numpy().copy() for layer, value in part("mask.").items()}
        final = Accuracy(**notes["final"]) if notes["final"] else None
        return cls(
            notes["phase"],
            Position(*notes["position"]),
            Snapshot(part("model."), mask, notes["accuracy"], final),
            part("teacher."),
            part("optimizer."),
            notes["optimizer"],
            notes["random"],
            {layer: (claimed, count) for layer, (claimed, count) in notes["goals"].items()},
            notes["in part"],
            notes["found"],
        )


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator that a run on `device` draws from, in JSON types."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
    }
    if device.type == "cuda":
        state["gpu"] = torch.cuda.get_rng_state(device).tolist()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "gpu" in state and device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(state["gpu"], dtype=torch.uint8), device)


GROUP = "group"  # in place of a parameter's name
SCHEDULED = "params", "lr", "initial_lr", "lr_scale", "weight_decay"  # of a group; a new optimizer has these anyway


def optimizer_state(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[Tensors, dict[str, Any]]:
    """An optimizer's tensors and numbers, by `<what>/<parameter>`; or `<what>/group`, as some count steps by group."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in trained.items()}
    tensors: Tensors = {}
    numbers: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        if parameter not in names:
            continue  # all of its weights were released since the last step
        for what, value in entries.items():
            (tensors if isinstance(value, torch.Tensor) else numbers)[f"{what}/{names[parameter]}"] = value
    for what, value in optimizer.param_groups[0].items():
        if isinstance(value, torch.Tensor):
            tensors[f"{what}/{GROUP}"] = value
        elif what not in SCHEDULED and type(value) in (int, float):
            numbers[f"{what}/{GROUP}"] = value
    return tensors, numbers


def set_optimizer_state(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: Tensors, numbers: dict[str, Any]
) -> None:
    """Restore that in a new optimizer, which may lack parameters: a layer that was released whole is not trained."""
    numbered = {
        parameter: number
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    parameters = {name: parameter for name, parameter in trained.items() if parameter in numbered}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        what, _, name = key.partition("/")
        if name == GROUP:
            for group in optimizer.param_groups:
                group[what] = copy.deepcopy(value)  # the optimizer counts in place
        elif name in parameters:
            parameter = parameters[name]
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value = torch.empty_like(parameter).copy_(value)  # in the same layout, as fused optimizers expect
            state.setdefault(numbered[parameter], {})[what] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
