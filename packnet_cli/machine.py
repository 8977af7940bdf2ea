"""What to train on, and how to compute there. Imports no torch, so that --help can show the defaults quickly."""

from dataclasses import dataclass
from typing import Literal

Cache = Literal["auto", "ram", "device", "off"]  # where decoded images are kept: see `engine/data/feed.py`


@dataclass(frozen=True)
class Machine:
    """A device and how it is used. Apart from the number format, `amp`, results differ only as devices round."""

    device: str = "auto"
    workers: int | None = None  # threads that read images; None: one per core, up to 8
    amp: bool | None = None  # train in bfloat16; None: if it suits the device and network
    compile: bool | None = None  # None: CUDA graphs on a GPU, nothing elsewhere
    deterministic: bool = False
    cache: Cache = "auto"
    cache_gb: float = 4.0  # gigabytes (1e9 bytes) for the cache: the 6,000 photographs of CUBS take 3.4


THIS_MACHINE = Machine()
CHECKPOINT_MINUTES = 5.0  # between two checkpoints of a training run
