"""An interrupted training run goes on where it was: its whole state in a folder beside the artifact.

`packed.st.resume/` holds one file, `checkpoint.safetensors`: the network, the task-index masks, the optimizer's tensors
and the teacher, and as JSON in its metadata where the run stands and what it is a run of. On a CPU a run that goes on
ends in the same bytes as one that was never stopped. Nothing in it is ever unpickled.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from packnet_cli.artifact import atomic
from packnet_cli.engine import distributed
from packnet_cli.errors import ArtifactError, ConflictError, InterruptedRun

FILE = "checkpoint.safetensors"
CHECKPOINT_MINUTES = 5.0

DIGESTS = ("images", "weights")  # what a run is known by, that nobody can read

Tensors = dict[str, torch.Tensor]


class Say(Protocol):
    """Is told, in a line, what is going on; `warning`: what the user is to know in any case."""

    def __call__(self, line: str, /, *, warning: bool = False) -> None: ...


def unsaid(line: str, /, *, warning: bool = False) -> None:
    """The callback that shows nothing."""


@dataclass(frozen=True)
class Checkpoint:
    """A run's state: tensors by room ("model.", "mask.", "optimizer.", "teacher."), and the rest as JSON has it."""

    tensors: Tensors
    notes: dict[str, Any]

    def room(self, name: str) -> Tensors:
        """The tensors of one room, by their names in it."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


def interrupted_run(artifact: Path) -> dict[str, Any]:
    """What the checkpoint beside `artifact` is a run of; nothing if there is none, or none that can be read."""
    try:
        with safe_open(atomic.checkpoint_folder(artifact) / FILE, framework="pt") as file:
            return dict(json.loads(file.metadata()["packnet_resume"])["run"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return {}


class Keeper:
    """Writes a run's checkpoints: every so many seconds, and when the user or the system asks the run to stop.

    `run` says what it is a run of: a checkpoint of another is refused, by the name of what differs. `say` is told of
    one that cannot be written, which is no reason to end the run.
    """

    def __init__(self, artifact: Path, run: dict[str, Any], every: float, say: Say = unsaid) -> None:
        self.folder = atomic.checkpoint_folder(artifact)
        self.run, self.every, self.say = json.loads(json.dumps(run)), every, say
        self.written = time.monotonic()
        self.asked = self.stopping = False

    def load(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one. Raises ConflictError if it is of another run."""
        path = self.folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = json.loads(file.metadata()["packnet_resume"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                run = dict(notes["run"])
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); remove {self.folder} and start anew") from None
        different = sorted(key for key in self.run.keys() | run.keys() if self.run.get(key) != run.get(key))
        if different:
            raise ConflictError(
                f"{self.folder} is of another run: {_differences(run, self.run, different)}. Repeat that command, or "
                "remove the folder and start anew"
            )
        return Checkpoint(tensors, notes)

    def agree(self) -> None:
        """Have all processes of the run stop, after the same step, if one was asked to."""
        self.stopping = distributed.total([self.asked]) > [0]

    def is_due(self) -> bool:
        return self.stopping or time.monotonic() - self.written > self.every

    def save(self, tensors: Tensors, notes: dict[str, Any]) -> bool:
        """Write a checkpoint in place of the last one, which stays if that cannot be; whether it could.

        Of several processes the first writes it.
        """
        if distributed.rank():
            return True
        self.written = time.monotonic()
        whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        try:
            self.folder.mkdir(exist_ok=True)
            with atomic.replacing(self.folder / FILE) as temporary:
                save_file(whole, temporary, {"packnet_resume": json.dumps({"run": self.run, **notes})})
        except (OSError, ArtifactError) as error:
            self.say(f"no checkpoint could be kept: {error}", warning=True)
            return False
        return True

    def stop_if_asked(self) -> None:
        """Raise InterruptedRun if the user or the system has asked for it."""
        if self.stopping:
            distributed.wait_for_all()  # the first has written its checkpoint
            kept = "go on with --resume" if (self.folder / FILE).exists() else "nothing was written"
            raise InterruptedRun(f"interrupted; the packed model is as it was before; {kept}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM wait for the end of a step; a second Ctrl-C does not wait."""

        def ask(number: int, frame: Any) -> None:
            if self.asked and distributed.world() == 1:  # torchrun passes on what the terminal has sent
                raise KeyboardInterrupt
            self.asked = True

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, where signals do not arrive
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def remove(self) -> None:
        if not distributed.rank():
            shutil.rmtree(self.folder, ignore_errors=True)


def _differences(there: dict[str, Any], here: dict[str, Any], keys: list[str]) -> str:
    """`recipe: lr 0.1, not 0.2`, `task 'cars', not 'birds'` or `the images differ`, of the first that differs."""
    key = keys[0]
    old, new = there.get(key), here.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
        return f"{key}: " + _differences(
            old, new, sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        )
    return f"the {key} differ" if key in DIGESTS else f"{key} {old!r}, not {new!r}"


# --- what a checkpoint has to hold beside the network ---------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """The state of every random generator, as JSON can hold it."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [one.tolist() for one in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in state["cuda"]])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """An optimizer's tensors by `<parameter>.<name>`, and its numbers likewise."""
    tensors, numbers = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def set_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Tensors, numbers: dict[str, Any]) -> None:
    """Put it back into a new optimizer over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)  # laid out alike, as fused optimizers take for granted
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
