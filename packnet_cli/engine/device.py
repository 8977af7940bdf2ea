"""The device that a network runs on, and errors of its memory."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import timm
import torch

from packnet_cli.errors import UsageError, is_out_of_memory, reason

log = logging.getLogger("packnet")


def choose_device(wanted: str) -> torch.device:
    """The named torch device; "auto" is a GPU if there is one, else the CPU. Raises UsageError."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:  # whose message lists all that torch has ever known
        raise UsageError(f"{wanted!r} is not a device; try --device cpu, cuda or cuda:1") from None
    try:
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is None:  # the current GPU depends on the thread
            device = torch.device("cuda", torch.cuda.current_device())
        if device.type == "meta":
            raise NotImplementedError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, AttributeError) as error:
        raise UsageError(f"cannot use the device {wanted!r}: {reason(error)}; try --device cpu") from None
    _log_choice(device)
    return device


@functools.cache  # once for each device; not so the choice, as a program may make another GPU the current one
def _log_choice(device: torch.device) -> None:
    versions = torch.__version__, timm.__version__
    log.info("device %s, threads %d; torch %s, timm %s", device, torch.get_num_threads(), *versions)


def check_batches(batch_size: int, workers: int | None = None) -> None:
    """Raise UsageError unless there can be batches of this size, and so many threads that read them."""
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {batch_size}")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers must be at least 0, not {workers}")


@contextmanager
def workable_batches(batch_size: int, *, training: bool = True) -> Iterator[None]:
    """Turn running out of memory, or too few images for batch norm, into a UsageError that says what to try."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError("batch norm needs two images in a batch; try --batch-size 2, or more images") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = f"--batch-size {batch_size // 2}" if batch_size > 1 else "a smaller network or image size"
        smaller += ", or an --opt that needs less" if training else ""
        raise UsageError(
            f"the device's memory is not enough for batches of {batch_size} ({reason(error)}); try {smaller}"
        ) from None
