"""An interrupted training run resumes where it was: its whole state is kept in a folder beside the artifact.

`packed.st.resume/` holds one file, `checkpoint.safetensors`: the network, the task-index masks, the optimizer's tensors
and the teacher, and as JSON in its metadata how far the run has come and what identifies it. On a CPU a resumed run of
one process ends in the same bytes as one that was never stopped; several processes all resume with the first one's
batch norm statistics. Nothing in it is ever unpickled.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from packnet_cli.artifact import atomic
from packnet_cli.engine import distributed
from packnet_cli.engine.training.state import RunState
from packnet_cli.errors import ArtifactError, ConflictError, DataError, InterruptedRun
from packnet_cli.progress import Say, unsaid

ANY_NOTES = "packnet_resume."
NOTES = f"{ANY_NOTES}6"  # the version of the format

DIGESTS = ("images", "weights")  # of a run; that they differ can be said, but not how


def interrupted_run(artifact: Path) -> dict[str, Any]:
    """What identifies the run of the checkpoint beside `artifact`; empty if there is none, or none that can be read."""
    try:
        with safe_open(atomic.checkpoint(artifact), framework="pt") as file:
            return dict(json.loads(file.metadata()[NOTES])["run"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return {}


class Checkpointer:
    """Writes a run's checkpoints: at intervals of `every` seconds, and when the user or the system asks it to stop.

    `run` identifies the run: a checkpoint of another is refused, naming what differs. If one cannot be written, `say`
    is told, and the run goes on.
    """

    def __init__(self, artifact: Path, run: dict[str, Any], every: float, say: Say = unsaid) -> None:
        self.artifact, self.file = artifact, atomic.checkpoint(artifact)
        self.run, self.every, self.say = json.loads(json.dumps(run)), every, say
        self.written = time.monotonic()
        self.asked = self.stopping = self.due = False
        self.rescue: Callable[[], bool] = lambda: False  # writes a checkpoint; returns whether there is one

    def check_shared(self, resume: bool) -> None:
        """Raise ConflictError unless all processes, each with the files of its machine, have described the same run.

        Whether to `resume` is part of it: those that do would exchange a checkpoint's position with others' gradients.
        """
        run = self.run | {"resume": resume}
        for other in distributed.gathered(run):
            if different := difference(other, run):
                raise ConflictError(
                    f"the processes of this run would not train the same: {different}. "
                    "Repeat one command on every machine, with the first one's packed model and images at the same path"
                )

    def has_one(self) -> bool:
        """Whether there is a checkpoint."""
        return self.file.exists()

    def load(self) -> RunState | None:
        """The state to resume from, if any, the same in all processes.

        Raises ArtifactError, or ConflictError if it is of another run or not everywhere the same.
        """
        state = self._read() if self.has_one() else None
        if len(set(distributed.gathered(state and (state.phase, state.position.epoch, state.position.step)))) > 1:
            raise ConflictError(
                f"{self.file.parent} is not the same on every machine; copy the first one's to the others"
            )
        return state

    def _read(self) -> RunState:
        try:
            with safe_open(self.file, framework="pt") as file:
                found = file.metadata()
                if NOTES not in found and any(key.startswith(ANY_NOTES) for key in found):
                    raise ConflictError(
                        f"{self.file.parent} was written by another version of packnet; go on with that one, or remove "
                        "the folder and start anew"
                    )
                notes = json.loads(found[NOTES])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                run, state = dict(notes["run"]), RunState.of(tensors, notes)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{self.file} is damaged ({error}); remove {self.file.parent} and start anew") from None
        if different := difference(run, self.run):
            raise ConflictError(
                f"{self.file.parent} is of another run: {different}. "
                "Repeat that command, or remove the folder and start anew"
            )
        return state

    def agree(self) -> None:
        """Have all processes of the run stop after the same step, if one was asked to, or keep a checkpoint."""
        is_late = not distributed.rank() and time.monotonic() - self.written > self.every
        asked, late = distributed.total([self.asked, is_late])
        self.stopping = asked > 0
        self.due = self.stopping or late > 0

    def save(self, state: RunState) -> bool:
        """Write a checkpoint in place of the last one, which stays if that fails; returns whether it succeeded.

        Of several processes only the first writes.
        """
        self.written = time.monotonic()
        if distributed.rank():
            return True
        whole = {
            key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for key, value in state.tensors().items()
        }
        try:
            atomic.make_checkpoint_folder(self.artifact)
            with atomic.replacing(self.file) as temporary:
                save_file(whole, temporary, {NOTES: json.dumps({"run": self.run, **state.notes()})})
        except (OSError, ArtifactError, TypeError) as error:  # JSON cannot hold the state of some optimizers
            self.say(f"no checkpoint could be kept: {error}", warning=True)
            return False
        finally:  # also when a second Ctrl-C has ended it
            with suppress(OSError):
                self.file.parent.rmdir()  # unless it holds one
        return True

    def stop_if_asked(self) -> None:
        """Raise InterruptedRun if the user or the system has asked for it."""
        if self.stopping:
            # Asked of all, which waits until the first has written its checkpoint, perhaps on another machine's disk.
            kept = "go on with --resume" if any(distributed.gathered(self.has_one())) else "nothing was written"
            raise InterruptedRun(f"interrupted; the packed model is as it was before; {kept}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM take effect at the end of a step; a second Ctrl-C does so at once.

        An image that can no longer be read ends the run like them, with a checkpoint.
        """

        def ask(number: int, frame: Any) -> None:
            if self.asked and not distributed.by_torchrun():  # which forwards what the terminal has sent already
                raise KeyboardInterrupt
            self.asked = True

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # only the main thread receives signals
            before = {}
        try:
            yield
        except DataError as error:
            # An error in another process ends the first, too, and leaves the last checkpoint that it wrote.
            if not (self.has_one() if distributed.rank() else self.rescue()):
                raise
            raise DataError(f"{error}; put it back and go on with --resume") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def remove(self) -> None:
        if not distributed.rank():
            atomic.remove_checkpoint(self.file)


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first difference: `recipe: lr 0.1, not 0.2`, `task 'cars', not 'birds'`, `the images differ`; or empty."""
    key = min((key for key in there.keys() | here.keys() if there.get(key) != here.get(key)), default=None)
    if key is None:
        return ""
    old, new = there.get(key), here.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
        return f"{key}: {difference(old, new)}"
    return f"the {key} differ" if key in DIGESTS else f"{key} {old!r}, not {new!r}"
