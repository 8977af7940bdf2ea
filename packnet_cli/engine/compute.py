"""How training computes: number formats, launching of passes, kernels and memory, as suits the device.

Settings left open (None) follow from the device and the network, never from timings, so that a repeated run computes
alike. Compilation is used only on request.
"""

import ctypes
import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from packnet_cli.engine.device import choose_device
from packnet_cli.engine.network import is_depthwise
from packnet_cli.errors import UsageError, reason
from packnet_cli.machine import Machine

Forward = Callable[[torch.Tensor], torch.Tensor]
Ready = Callable[[], Forward]  # call at the start of an epoch, while nothing else uses the GPU

log = logging.getLogger("packnet")

# torch's warnings where CUDA graphs are captured, which has to happen on a side stream.
CAPTURING = "The AccumulateGrad node's stream does not match", "Attempting to run cuBLAS, but there was no current"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def in_bfloat16(wanted: bool | None, device: torch.device, model: nn.Module) -> bool:
    """Whether to compute in bfloat16, with float32 weights: by default where the hardware supports it well.

    Not by default on CPUs for networks with depthwise convolutions, which gain less and lose accuracy
    (examples/MEASURED.md).
    """
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    made_for_it = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # not in every version of torch
    return device.type == "cpu" and made_for_it() and not any(map(is_depthwise, model.modules()))


def in_precision(device: torch.device, amp: bool) -> AbstractContextManager[Any]:
    """A context in which a network computes in bfloat16 or, without `amp`, as it is."""
    # Not autocast(enabled=False), which still raises for devices that it does not know. No weight cache, which rules
    # out CUDA graphs, and gains nothing: a pass uses each weight once.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if amp else nullcontext()


def forward_of(
    model: nn.Module, *, wanted: bool | None, device: torch.device, shape: tuple[int, ...], amp: bool
) -> Ready:
    """The network as a function of batches (N, C, H, W): compiled if `wanted`; if None, as CUDA graphs on a GPU.

    Batches of another `shape`, such as an epoch's last, run without either. The module itself is left alone (names of
    its tensors, evaluation, copies), except that with bfloat16 on a CPU its depthwise convolutions, slow in bfloat16
    there, compute in float32 from now on. If it cannot be compiled, its first run raises UsageError.
    """
    if amp and device.type == "cpu":
        slow = [*filter(is_depthwise, model.modules())]
        kinds = {kind: _in_float32(kind) for kind in set(map(type, slow))}
        for module in slow:
            module.__class__ = kinds[type(module)]
    if wanted:
        compiled = _compiled(model, device)
        return lambda: lambda images: (compiled if images.shape == shape else model)(images)
    if wanted is None and device.type == "cuda":
        return _Graphs(model, shape, amp).ready
    return lambda: model


def _in_float32(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a module class that computes in float32, even under autocast."""
    if issubclass(kind, _Float32):
        return kind

    def forward(self: nn.Module, images: torch.Tensor) -> Any:
        with torch.autocast(images.device.type, enabled=False):
            return kind.forward(self, images.float())

    return type(kind.__name__, (_Float32, kind), {"forward": forward})


class _Float32:
    """Marks those subclasses."""


def _compiled(model: nn.Module, device: torch.device) -> Forward:
    compiled: Forward = torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)

    def forward(images: torch.Tensor) -> torch.Tensor:
        try:
            return compiled(images)
        except Exception as error:
            # By module, not by type: the exceptions of torch's compilers are not public, and differ between versions.
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UsageError(f"cannot compile this network here ({reason(error)}); try --no-compile") from None

    return forward


class _Graphs:
    """A network's forward and backward passes as CUDA graphs: the same kernels, but launched at once.

    Small batches are bound by launches: a ResNet-50 at batch size 32 is half as fast again on an H100. The graphs need
    memory of their own; where that is much, launches are not the bottleneck.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], amp: bool) -> None:
        self.model, self.shape, self.amp = model, shape, amp
        self.captured: Forward = model
        self.trained: list[tuple[int, bool]] = []  # where each parameter was, and whether it was trained, at capture

    def ready(self) -> Forward:
        trained = [(parameter.data_ptr(), parameter.requires_grad) for parameter in self.model.parameters()]
        if trained != self.trained:
            self.captured = self.model  # frees the memory of the old graphs
            self.captured, self.trained = self._capture(), trained
        return self

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (self.captured if images.shape == self.shape else self.model)(images)

    def _capture(self) -> Forward:
        gc.collect()  # reference cycles may still hold earlier graphs, and their memory
        device = next(self.model.parameters()).device
        images = torch.zeros(self.shape, device=device).contiguous(memory_format=torch.channels_last)
        whole = _Pass(self.model, self.amp)
        with torch.cuda.device(device), _nothing_left(self.model, device):
            try:
                torch.cuda.make_graphed_callables(whole, (images,), allow_unused_input=True)
            except Exception as error:  # networks may raise anything
                log.info("no CUDA graphs of this network: %s", reason(error))
                with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
                    torch.zeros(1, device=device)  # after a failed capture, random numbers fail until one succeeds
                return self.model
        if torch.cuda.memory_reserved(device) < torch.cuda.mem_get_info(device)[1] / 2:
            return whole
        log.info("no CUDA graphs: they take too much memory")
        del whole
        gc.collect()
        torch.cuda.empty_cache()
        return self.model


@contextmanager
def _nothing_left(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers and random state after capturing CUDA graphs, which runs the network several times."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    random = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        torch.cuda.set_rng_state(random, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


class _Pass(nn.Module):
    """A network with its number format, in one module, as make_graphed_callables needs it."""

    def __init__(self, model: nn.Module, amp: bool) -> None:
        super().__init__()
        self.model, self.amp = model, amp

    def forward(self, images: torch.Tensor) -> Any:
        with in_precision(images.device, self.amp):
            return self.model(images)


@contextmanager
def own_modes() -> Iterator[None]:
    """Torch's modes as training needs them, whatever the caller has set: gradients, and float32 tensors on the CPU.

    Afterwards the caller's random numbers go on where they were, though training seeds all generators.
    """
    before = torch.get_default_dtype()
    drawn = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # As a context it would take part in every operation, also where it changes nothing.
    at_home = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.inference_mode(False), torch.enable_grad(), at_home, torch.random.fork_rng(gpus):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])


@contextmanager
def training_on(machine: Machine) -> Iterator[None]:
    """Torch's process-wide settings while training on `machine`.

    They are restored afterwards, except for cuBLAS's workspace.

    With `deterministic` a GPU computes the same bits each time, as a CPU does anyway. Raises UsageError if the network
    needs an operation that has no deterministic implementation.
    """
    device, deterministic = choose_device(machine.device), machine.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
            torch.use_deterministic_algorithms(True)
        # TF32 is the default for convolutions anyway.
        tf32 = matmul_precision("high") if device.type == "cuda" else nullcontext()
        with tf32, _freed_memory_kept(), warnings.catch_warnings():
            for harmless in CAPTURING:
                warnings.filterwarnings("ignore", harmless)
            yield
    except RuntimeError as error:
        if not (deterministic and "deterministic" in str(error)):
            raise
        raise UsageError(f"--deterministic: {reason(error)}; leave it out for this network") from None
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Multiply float32 matrices within in "highest" precision, float32 itself, or in "high", TF32."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set torch's newer switches, one for each backend, which bar this one
        with _matmul_switches("ieee" if precision == "highest" else "tf32"):
            yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _matmul_switches(precision: str) -> Iterator[None]:
    mkldnn: Any = torch.backends.mkldnn
    backends: list[Any] = [torch.backends.cuda.matmul, mkldnn.matmul]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = precision
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.fp32_precision = was


@contextmanager
def _freed_memory_kept() -> Iterator[None]:
    """Have glibc reuse what a step frees, instead of returning it to the kernel and getting it back page by page.

    Afterwards it is returned. Does nothing without glibc.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)  # what is mapped by itself is always returned
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 2**16)  # these are glibc's defaults
        libc.mallopt(M_TRIM_THRESHOLD, 2**17)
        libc.malloc_trim(0)
