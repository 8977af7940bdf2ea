"""How training computes: number formats, compilation, kernels and memory, by what the device is good at.

What is left to be chosen (None) follows from the device and the network, never from the clock, so that the same run
makes the same bytes. On a CPU compilation is chosen by hand only.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import get_optimizer_class
from torch import nn

from packnet_cli.engine.network import choose_device, is_depthwise, reason
from packnet_cli.errors import UsageError

Forward = Callable[[torch.Tensor], torch.Tensor]

log = logging.getLogger("packnet")

COMPILE_STEPS = 10_000  # from so many on, the minute that compiling takes is thought to be won back
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@dataclass(frozen=True)
class Machine:
    """What to train on, and how it computes there; nothing of it is meant to change the result."""

    device: str = "auto"
    workers: int | None = None  # threads that read images; None: as many as there are cores, up to 8
    amp: bool | None = None  # train in bfloat16; None: as it suits device and network
    compile: bool | None = None  # None: where it pays
    deterministic: bool = False
    cache: str = "auto"  # where decoded images are kept, see `feed.rooms`
    cache_gb: float = 4.0  # gigabytes (1e9 bytes) for them: the 6,000 photographs of CUBS take 3.4

    def training(self) -> AbstractContextManager[None]:
        """Where training is at home: see `training_on`."""
        return training_on(choose_device(self.device), deterministic=self.deterministic)


AUTO = Machine()


def in_bfloat16(wanted: bool | None, device: torch.device, model: nn.Module) -> bool:
    """Whether to compute in bfloat16, the weights staying float32: by default where the device is made for it.

    On such a CPU most networks are faster in it, but those with depthwise convolutions slower (README, "Measured").
    """
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    made_for_it = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # not in every torch
    return device.type == "cpu" and made_for_it() and not any(map(is_depthwise, model.modules()))


def in_precision(device: torch.device, amp: bool) -> AbstractContextManager[Any]:
    """Where a network computes in bfloat16, or (not `amp`) as it is."""
    # Not autocast's own switch: of a device that it does not know it raises even if it is off.
    return torch.autocast(device.type, torch.bfloat16) if amp else nullcontext()


def forward_of(model: nn.Module, wanted: bool | None, device: torch.device, steps: int) -> Forward:
    """The network as a function, compiled if that is wanted or, on a GPU, likely to pay within so many steps.

    The network itself stays what it is, with the names of its tensors, its evaluation and its copies.
    """
    if not (wanted or wanted is None and device.type == "cuda" and steps >= COMPILE_STEPS):
        return model
    # CUDA graphs save the launching of each kernel, which is what small batches wait for.
    run: Forward = torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)

    def forward(images: torch.Tensor) -> torch.Tensor:
        nonlocal run
        try:
            return run(images)
        except Exception as error:
            # Not by their types: those of torch's compilers are not public, nor the same in all its versions.
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            if wanted:
                raise UsageError(f"cannot compile this network here ({reason(error)}); try --no-compile") from None
            log.info("not compiled, which cannot be done here: %s", reason(error))
            run = model
            return forward(images)

    return forward


def fused(opt: str, device: torch.device) -> dict[str, bool]:
    """The argument for torch's optimizers that update a weight in one pass, where timm takes `opt` from there."""
    have = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
    there = device.type in ("cpu", "cuda") and get_optimizer_class(opt, bind_defaults=False) in have
    return {"fused": True} if there else {}


@contextmanager
def training_on(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Torch's settings for the whole process while it trains; afterwards they are what they were.

    With `deterministic` a GPU computes the same bits each time, as a CPU does anyway. Raises UsageError if the network
    needs what cannot be computed so.
    """
    _keep_freed_memory()
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as convolutions have it by default
            torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
            torch.use_deterministic_algorithms(True)
        yield
    except RuntimeError as error:
        if not (deterministic and "deterministic" in str(error)):
            raise
        raise UsageError(f"--deterministic: {reason(error)}; leave it out for this network") from None
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.use_deterministic_algorithms(before[2])


@contextmanager
def full_precision() -> Iterator[None]:
    """Where a GPU multiplies matrices as it does outside of training, so that what is measured there holds here."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _keep_freed_memory() -> None:
    """Have glibc reuse what a step frees, instead of returning it to the kernel and getting it back page by page.

    Elsewhere nothing happens. 32 MB is the most that it takes from there and not from the kernel.
    """
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
