"""What `info` shows of an artifact, from the metadata and the tensors' shapes: no tensor is read."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from packnet_cli.artifact import format
from packnet_cli.artifact.compact import by_task
from packnet_cli.artifact.format import Header, Task
from packnet_cli.artifact.header import is_of_head
from packnet_cli.errors import DamageError

ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Summary:
    """An artifact in numbers. Counts are of weights, sizes are bytes."""

    LORA_RANK: ClassVar[int] = 8  # the usual one

    header: Header
    layers: dict[str, int]  # weights of each packed parameter, sorted by `_natural`
    file_bytes: int
    separate_bytes: int  # of one network per task, each with its own copy of everything
    lora_bytes: int  # of one network, and a low-rank adapter and a head per task

    @property
    def packed_weights(self) -> int:
        return sum(self.layers.values())

    @property
    def free_weights(self) -> int:
        return self.packed_weights - sum(sum(owned.values()) for owned in self.header.owned.values())

    @property
    def free_fraction(self) -> float:
        return self.free_weights / self.packed_weights

    @property
    def removed_fraction(self) -> float:
        """The fraction owned by removed tasks, which later ones run on."""
        return sum(self._fraction(owned) for owned in self.header.removed.values())

    def owned_fraction(self, task: Task) -> float:
        return self._fraction(task.owned)

    def _fraction(self, owned: dict[str, int]) -> float:
        return sum(owned.values()) / self.packed_weights

    def owned(self, layer: str) -> list[int]:
        """How many of a layer's weights each index owns, from 1, removed tasks included."""
        return [owned.get(layer, 0) for _, owned in sorted(self.header.owned.items())]

    def shares(self, layer: str) -> list[float]:
        """The same as fractions of the layer; the rest is free."""
        return [count / max(1, self.layers[layer]) for count in self.owned(layer)]

    def free_share(self, layer: str) -> float:
        """The fraction of a layer that is free."""
        return 1 - sum(self.owned(layer)) / max(1, self.layers[layer])


def summarize(path: Path) -> Summary:
    """The summary of an artifact, from its header. Raises ArtifactError."""
    header, tensors = format.load_shapes(path)
    shared = {key.removeprefix("shared."): shape for key, (_, shape) in tensors.items() if key.startswith("shared.")}
    if header.compact:
        shared = header.compact.shapes
    layers = {name: math.prod(shared[name]) for name in sorted(shared, key=_natural)}
    if not any(layers.values()):
        raise DamageError(f"{path} is damaged: it holds no packed weights")
    own = heads = 0
    kinds = by_task(tensors)
    of_task: dict[str, int] = {}
    for task in header.tasks:
        sizes = {name: _bytes(*kind, header.compact is not None) for name, kind in kinds[str(task.index)].items()}
        # A compact file leaves out tensors equal to those of the task before.
        of_task = (of_task if header.compact else {}) | sizes
        own += sum(of_task.values())
        heads += sum(of_task[name] for name in of_task if is_of_head(name, header.head))
    packed, tasks = 4 * sum(layers.values()), len(header.tasks)
    rest = (own - heads) // max(1, tasks)  # biases, normalisation and the like: the same size in each task
    lora = packed + rest + heads + tasks * sum(map(_lora_bytes, shared.values()))
    return Summary(header, layers, path.stat().st_size, own + packed * tasks, lora)


def _lora_bytes(shape: list[int]) -> int:
    """The bytes of a low-rank adapter of a matrix (out, in) or filter (out, in, height, width), in float32.

    It has two factors, (out, r) and (r, in * height * width), where r is Summary.LORA_RANK or, if that is less, the
    matrix's greatest possible rank (Hu et al. 2021, arXiv 2106.09685; convolutions as in Hugging Face PEFT).
    """
    out, rest = math.prod(shape[:1]), math.prod(shape[1:])  # a layer may be a scalar
    return 4 * min(Summary.LORA_RANK, out, rest) * (out + rest)


def _bytes(dtype: str, shape: list[int], compact: bool) -> int:
    """The bytes of a tensor in a separate network, where 16-bit numbers of a compact file take 32 bits."""
    return (4 if compact and dtype in ("U16", "F16") else ITEM_BYTES.get(dtype, 0)) * math.prod(shape)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which layer10 follows layer9: a number's digits compare by length first."""
    parts = re.split(r"(\d+)", name)  # every second one is a number
    return [(len(part.lstrip("0")), part.lstrip("0")) if at % 2 else (0, part) for at, part in enumerate(parts)]
