"""How a network computes: in which number format, and how its passes are launched, as suits the device.

Settings left open (None) follow from the device and the network, never from timings, so that a repeated run computes
alike. Compilation is used only on request.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn

from packnet_cli.engine.network import is_depthwise
from packnet_cli.errors import UsageError, reason

Forward = Callable[[torch.Tensor], torch.Tensor]
Ready = Callable[[], Forward]  # call at the start of an epoch, while nothing else uses the GPU

log = logging.getLogger("packnet")


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

    Small batches are bound by launches: a ResNet-50 at batch size 32 trains 1.4 times as fast on an H100. The graphs
    need memory of their own; where that is much, launches are not the bottleneck.
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
