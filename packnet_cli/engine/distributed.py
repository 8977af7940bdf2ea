"""One training run as several processes, which torchrun starts: each computes its part of every batch.

Every process holds the whole network and draws the same random numbers; gradients are averaged after each backward
pass, batch norm's statistics after each epoch. So all end with networks that are equal to the bit. The first process
alone locks, writes and shows; whatever ends one ends all, and the first to fail says why. In a run of one process
nothing here does anything.
"""

import dataclasses
import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from timm.utils import distribute_bn
from timm.utils.distributed import init_distributed_device_so
from torch import distributed, nn

from packnet_cli.artifact import atomic
from packnet_cli.errors import InterruptedRun, PackNetError, ToldElsewhere, UsageError, reason
from packnet_cli.machine import THIS_MACHINE

_together = False  # whether the processes are at a verb that all of them run
_verbs = itertools.count()  # of this process, and alike of all others of its run

P = ParamSpec("P")
R = TypeVar("R")


def world() -> int:
    """How many processes this run has; between two verbs each process is one by itself."""
    return distributed.get_world_size() if _together else 1


def rank() -> int:
    """The number of this process among them; 0 is the first."""
    return distributed.get_rank() if world() > 1 else 0


def together(verb: Callable[Concatenate[Path, P], R]) -> Callable[Concatenate[str | Path, P], R]:
    """Let a verb that trains and writes its first argument run as one process, or in all that torchrun has started.

    It runs while no other program writes the file, see `atomic.locked`.
    """

    @functools.wraps(verb)
    def run(path: str | Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        path = Path(path)
        if not (distributed.is_available() and distributed.is_torchelastic_launched()):
            with atomic.locked(path):
                return verb(path, *args, **kwargs)
        machine: Any = kwargs.get("machine", THIS_MACHINE)
        kind = machine.device.partition(":")[0]
        kwargs["machine"] = dataclasses.replace(machine, device=kind)  # of several GPUs each process takes its own
        with _joined(kind), _one_message(), nullcontext() if rank() else atomic.locked(path):
            result = verb(path, *args, **kwargs)
            wait_for_all()
            return result

    return run


@contextmanager
def _joined(kind: str) -> Iterator[None]:
    """Be one of torchrun's processes, each of which has a GPU of its own or none has any. Raises UsageError."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and (local := int(os.environ["LOCAL_WORLD_SIZE"])) > torch.cuda.device_count():
        if os.environ["LOCAL_RANK"] != "0":
            raise ToldElsewhere(UsageError.exit_code)
        raise UsageError(f"{local} processes need as many GPUs, and {torch.cuda.device_count()} are here")
    # What is agreed on beside the training is on the CPU, so that no GPU need be waited for.
    if not distributed.is_initialized():
        init_distributed_device_so(kind, dist_backend="cpu:gloo,cuda:nccl" if kind == "cuda" else None)
    global _together
    _together = True
    try:
        yield
    finally:
        _together = False
        # On CPUs the group stays, for the next verb, too: torch 2.4 now and then waits for ever to have one destroyed.
        if kind == "cuda" and distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def _one_message() -> Iterator[None]:
    """Of all processes that fail, and one failure ends all, let only the first say why."""
    address, port, verb = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), next(_verbs)
    store = distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined, unused-ignore]
    try:
        yield
    except BaseException as error:
        with suppress(ValueError):  # torchrun ends the others at the first exit, which need not be that of who speaks
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(RuntimeError):  # the store may have gone with the process that ended
            if store.add(f"failed/{os.environ['TORCHELASTIC_RUN_ID']}/{verb}", 1) > 1:
                raise ToldElsewhere(getattr(error, "exit_code", 130)) from None
        raise


@contextmanager
def _others() -> Iterator[None]:
    """What is done together fails if another process has ended: an InterruptedRun."""
    try:
        yield
    except RuntimeError as error:
        why = reason(error).rpartition("] ")[2]  # without the place in gloo's source
        raise InterruptedRun(
            f"another process of this run has ended ({why}); the packed model is as it was before"
        ) from None


# --- what the processes do together ---------------------------------------------------------------------------------


def wait_for_all() -> None:
    """Return when every process is here."""
    total([0])


def total(numbers: list[int]) -> list[int]:
    """The sums of whole numbers over all processes."""
    if world() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.int64)
    with _others():
        distributed.all_reduce(sums)
    return [int(each) for each in sums]


def gathered(found: Any) -> list[Any]:
    """What each process has found, in order of their numbers."""
    if world() == 1:
        return [found]
    everything: list[Any] = [None] * world()
    with _others():
        distributed.all_gather_object(everything, found)
    return everything


def check_equal(what: str) -> None:
    """Raise PackNetError unless `what`, a digest of what was trained, is the same in all processes."""
    if len(set(gathered(what))) > 1:
        raise PackNetError(
            "the processes of this run have trained different networks; nothing was written. Try one process"
        )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], images: int) -> None:
    """Make of each process's gradients, means over so many `images`, the mean over the images of all."""
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [gradients[0].new_ones(1)]).mul_(images)
    with _others():
        distributed.all_reduce(flat)
    flat.div_(flat[-1].clone())
    parts = flat.split([gradient.numel() for gradient in gradients] + [1])
    for gradient, part in zip(gradients, parts, strict=False):
        gradient.copy_(part.view_as(gradient))


def average_statistics(model: nn.Module) -> None:
    """Make the running statistics of each batch norm the mean over all processes."""
    if world() > 1:
        with _others():
            distribute_bn(model, world(), reduce=True)
