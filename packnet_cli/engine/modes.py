"""Settings of the whole process, torch's above all: as training and measuring need them, then the caller's again."""

import ctypes
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from packnet_cli.engine.device import choose_device
from packnet_cli.errors import UsageError, reason
from packnet_cli.machine import Machine

# torch's warnings where CUDA graphs are captured, which has to happen on a side stream.
CAPTURING = "The AccumulateGrad node's stream does not match", "Attempting to run cuBLAS, but there was no current"
CLIENTS = "huggingface_hub", "urllib3"  # the latter is that of TensorFlow's package
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


@contextmanager
def own_modes() -> Iterator[None]:
    """Torch's modes as training needs them, whatever the caller has set: gradients, no autocast, float32 on the CPU.

    Afterwards the caller's random numbers go on where they were, though training seeds all generators.
    """
    before = torch.get_default_dtype()
    seed, drawn = torch.initial_seed(), (random.getstate(), np.random.get_state())
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # As a context it would take part in every operation, also where it changes nothing. Of a tensor, since older
    # versions' get_default_device does not know of such contexts, and fails once the default has been put back.
    at_home = nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")
    autocasts = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad(), at_home, torch.random.fork_rng(gpus):
        for autocast in autocasts:
            stack.enter_context(autocast)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
            torch.manual_seed(seed)  # of GPUs in use only since now, if at all; the others go on
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


@contextmanager
def without_retry_log() -> Iterator[None]:
    """Silence what clients of the network log of their retries, unless --verbose asks; the final error says enough."""
    before = [(log, log.level, log.handlers) for log in map(logging.getLogger, CLIENTS)]
    for log, _, _ in before:
        if not logging.getLogger("packnet").isEnabledFor(logging.INFO):
            log.setLevel(logging.ERROR)
        elif log.propagate:
            log.handlers = []  # beside the root's, its own would say everything twice
    try:
        yield
    finally:
        for log, level, handlers in before:
            log.setLevel(level)
            log.handlers = handlers
