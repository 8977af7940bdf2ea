"""One training run in several processes, started by torchrun: each computes its part of every batch.

Every process holds the whole network and draws the same random numbers, dropout's too; gradients are averaged after
each backward pass, batch norm statistics after each epoch. So all processes end with bit-identical networks. Only the
first locks, writes and prints; if one ends, all end, and the first to fail says why. With a single process nothing here
has any effect.
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
from timm.utils.distributed import init_distributed_device_so, is_distributed_env
from torch import distributed, nn

from packnet_cli.artifact import atomic
from packnet_cli.engine.modes import own_modes
from packnet_cli.errors import InterruptedRun, PackNetError, ToldElsewhere, UsageError, quoted, reason
from packnet_cli.machine import THIS_MACHINE
from packnet_cli.progress import silent, unsaid

_together = False  # whether the processes are running a verb together
_verbs = itertools.count()  # numbers this process's verbs, as in every other process of the run

P = ParamSpec("P")
R = TypeVar("R")


def world() -> int:
    """The number of processes of this run; 1 outside a verb that they run together."""
    return distributed.get_world_size() if _together else 1


def rank() -> int:
    """This process's rank among them; 0 is the first."""
    return distributed.get_rank() if world() > 1 else 0


def by_torchrun() -> bool:
    """Whether torchrun started this process, alone or with others."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def together(verb: Callable[Concatenate[Path, P], R]) -> Callable[Concatenate[str | Path, P], R]:
    """Make a verb that trains and writes its first argument run in one process, or in all that torchrun started.

    The file is locked meanwhile, see `atomic.locked`, and torch's modes are its own, not the caller's.
    """
    verb = own_modes()(verb)

    @functools.wraps(verb)
    def run(path: str | Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        path = Path(path)
        if not (by_torchrun() and is_distributed_env()):  # alone, as on a machine with one GPU
            with atomic.locked(path):
                return verb(path, *args, **kwargs)
        machine: Any = kwargs.get("machine", THIS_MACHINE)
        kind = machine.device.partition(":")[0]
        kwargs["machine"] = dataclasses.replace(machine, device=kind)  # each process takes a GPU of its own
        with _joined(kind), _one_message(), nullcontext() if rank() else atomic.locked(path):
            if rank():
                kwargs["progress"], kwargs["say"] = silent, unsaid
            result = verb(path, *args, **kwargs)
            try:
                wait_for_all()
            except InterruptedRun:
                if rank():  # the first has written the result, and knows
                    raise InterruptedRun(
                        "another process was lost as this run ended; "
                        f"`packnet info {quoted(path)}` shows what was written"
                    ) from None
            return result

    return run


@contextmanager
def _joined(kind: str) -> Iterator[None]:
    """Join torchrun's process group, with a GPU for each process or all on CPUs. Raises UsageError."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and (local := int(os.environ["LOCAL_WORLD_SIZE"])) > torch.cuda.device_count():
        if os.environ["LOCAL_RANK"] != "0":
            raise ToldElsewhere(UsageError.exit_code)
        raise UsageError(f"{local} processes need as many GPUs, and {torch.cuda.device_count()} are here")
    # gloo too: what is agreed on beside the training stays on the CPU, and waits for no GPU.
    if not distributed.is_initialized():
        try:
            init_distributed_device_so(kind, dist_backend="cpu:gloo,cuda:nccl" if kind == "cuda" else None)
        except RuntimeError as error:
            raise UsageError(
                f"this process cannot join the others ({_why(error)}); if none of them has failed, name in "
                "GLOO_SOCKET_IFNAME the network interface at which they reach this machine, such as eth0"
            ) from None
    global _together
    _together = True
    try:
        yield
    finally:
        _together = False
        # On CPUs the group is kept for the next verb: torch 2.4 occasionally hangs when destroying one.
        if kind == "cuda" and distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def _one_message() -> Iterator[None]:
    """Let only the first process that fails say why, as one failure ends all."""
    address, port, verb = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), next(_verbs)
    store = distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined, unused-ignore]
    attempt = f"{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ['TORCHELASTIC_RESTART_COUNT']}"  # --max-restarts
    try:
        yield
    except BaseException as error:
        with suppress(ValueError):  # torchrun ends all at the first exit, perhaps before the first to fail has spoken
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(RuntimeError):  # the store may have ended with its process
            if store.add(f"failed/{attempt}/{verb}", 1) > 1:
                raise ToldElsewhere(getattr(error, "exit_code", 130)) from None
        error.is_of_all = True  # type: ignore[attr-defined]  # whichever process it is, it speaks for the run
        raise


@contextmanager
def _others() -> Iterator[None]:
    """Turn the failure of a collective operation, as when another process has ended, into InterruptedRun."""
    try:
        yield
    except RuntimeError as error:
        raise InterruptedRun(
            f"another process of this run has ended ({_why(error)}); the packed model is as it was before; "
            "--resume goes on from the last checkpoint, if there is one"
        ) from None


def _why(error: RuntimeError) -> str:
    """What torch says, without gloo's source location."""
    return reason(error).rpartition("] ")[2]


# --- collective operations ------------------------------------------------------------------------------------------


def wait_for_all() -> None:
    """Return once every process has called this."""
    total([0])


def total(numbers: list[int]) -> list[int]:
    """The sums of integers over all processes."""
    if world() == 1:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.int64)
    with _others():
        distributed.all_reduce(sums)
    return [int(each) for each in sums]


def gathered(found: Any) -> list[Any]:
    """What each process has `found`, in order of rank."""
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
    """Turn each process's gradients, means over its `images`, into means over the images of all processes."""
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
    """Average each batch norm's running statistics over all processes."""
    if world() > 1:
        with _others():
            distribute_bn(model, world(), reduce=True)
