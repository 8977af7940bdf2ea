"""Batches for the network: every image is decoded once and cached, as far as there is room, and augmented as a tensor.

Caching changes the speed and never the batches: an epoch's order and crops depend only on the state of torch's random
generator at its start. Images that are not cached are read by threads, the next batch while one is computed.
"""

import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, str_to_interp_mode

from packnet_cli.engine import distributed
from packnet_cli.engine.data import pictures
from packnet_cli.engine.data.augment import (
    DRAWS,
    Augmentation,
    by_torch,
    moved,
    resized_alone,
    resized_together,
    stacked,
)
from packnet_cli.engine.data.splits import Split
from packnet_cli.engine.device import check_batches
from packnet_cli.engine.network import CHANNELS
from packnet_cli.errors import DataError, UsageError, is_out_of_memory
from packnet_cli.images import Picture
from packnet_cli.machine import Cache

AHEAD = 1  # batches read while one is computed

Decode = Callable[[Picture], torch.Tensor]
Draws = list[float]  # (DRAWS,): determine an image's augmentation in an epoch; empty in evaluation


class Budget:
    """A budget of `size` bytes of a device's memory, for images."""

    def __init__(self, device: torch.device, size: float) -> None:
        self.device, self.left, self.lock = device, size, Lock()

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; returns whether there was budget."""
        with self.lock:
            if size > self.left:
                return False
            self.left -= size
            return True


def budgets(cache: Cache, gigabytes: float, device: torch.device) -> list[Budget]:
    """Where images may be cached, first choice first: "ram", "device", "off", or "auto", the device and then the RAM.

    Each has so many gigabytes (1e9 bytes), a GPU's at most a quarter of its free memory. Raises UsageError.
    """
    if cache not in get_args(Cache):
        raise UsageError(f"--cache must be one of {', '.join(get_args(Cache))}, not {cache!r}")
    if not gigabytes >= 0:  # refuses nan, too
        raise UsageError(f"--cache-gb must be a number from 0 up, not {gigabytes}")
    size, found = 1e9 * gigabytes, []
    if device.type == "cuda" and cache in ("auto", "device"):
        found.append(Budget(device, min(size, torch.cuda.mem_get_info(device)[0] / 4)))
    if cache in ("auto", "ram") or (cache == "device" and device.type != "cuda"):
        found.append(Budget(torch.device("cpu"), size))
    return found


class ImageCache:
    """The images of a split by number, uint8 (C, H, W); decoded ones are kept, as far as the budgets go.

    Raises DataError for an image that can no longer be read; out-of-memory errors are passed on.
    """

    def __init__(self, paths: Sequence[Picture], decode: Decode, budgets: Sequence[Budget]) -> None:
        self.paths, self.decode, self.budgets = paths, decode, budgets
        self.kept: dict[int, torch.Tensor] = {}

    def __getitem__(self, number: int) -> torch.Tensor:
        if number in self.kept:
            return self.kept[number]
        try:
            picture = self.decode(self.paths[number])
        except Exception as error:  # of any kind: PIL's plugins may fail in any way
            why = pictures.problem(error)
            raise DataError(f"{self.paths[number]} can no longer be read: {why}; nothing was written") from None
        for budget in self.budgets:
            if budget.take(picture.nbytes):
                try:
                    self.kept[number] = moved(picture, budget.device)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    budget.left = 0  # something else has taken the memory meanwhile
                    continue
                return self.kept[number]
        return picture


class Batches:
    """Batches of images (N, C, H, W), normalised float32 on the device, and labels (N,), int64; iterating is one epoch.

    Each process of a run gets its part of every batch.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        read: Callable[[int, Draws], Any],  # reads an image, by its number
        collate: Callable[[list[Any]], torch.Tensor],  # makes what was read a batch on the device
        *,
        at_hand: Container[int],  # the images that take no time to read; threads read all others
        shuffled: bool,
        workers: int,
    ) -> None:
        self.labels, self.batch_size, self.read, self.collate = labels, batch_size, read, collate
        self.at_hand, self.shuffled, self.workers = at_hand, shuffled, workers
        self.first = 0

    @property
    def most(self) -> int:
        """How many images this process gets of every batch except, perhaps, the last."""
        return len(range(distributed.rank(), min(self.batch_size, len(self.labels)), distributed.world()))

    def __len__(self) -> int:
        count = len(self.labels)
        # Batch norm cannot take the statistics of a lone image, in any process.
        few = self.shuffled and 0 < count % self.batch_size < 2 * distributed.world() and count > self.batch_size
        return math.ceil(count / self.batch_size) - few

    def skip(self, steps: int) -> None:
        """Skip the first `steps` batches of the next epoch, at no cost; the others stay the same."""
        self.first = steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # The epoch's, from torch's generator, which an evaluation leaves to its caller.
        seed = int(torch.empty((), dtype=torch.int64).random_()) if self.shuffled else 0
        count, first, self.first = len(self.labels), self.first, 0
        order = np.random.default_rng(seed).permutation(count) if self.shuffled else np.arange(count)
        waiting = deque[tuple[list[int], Iterable[list[Any]]]]()

        def read(share: list[tuple[int, Draws]]) -> list[Any]:
            return [self.read(*each) for each in share]

        with ThreadPoolExecutor(self.workers) if self.workers else nullcontext() as pool:
            for step in range(first, len(self)):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                mine = slice(distributed.rank(), None, distributed.world())
                numbers = batch[mine].tolist()
                # For the whole batch, whatever this process's part; step + 1, as a trailing 0 does not change a seed.
                shape = len(batch), DRAWS if self.shuffled else 0
                draws = np.random.default_rng((seed, step + 1)).random(shape)[mine].tolist()
                if numbers:
                    share = math.ceil(len(numbers) / max(1, self.workers))  # per thread: one image is too small a task
                    drawn = list(zip(numbers, draws, strict=True))
                    shares = [drawn[at : at + share] for at in range(0, len(drawn), share)]
                    ready = all(number in self.at_hand for number in numbers)  # faster without threads
                    start = pool.map if pool and not ready else map
                    waiting.append((numbers, start(read, shares)))
                if len(waiting) > AHEAD:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())

    def _batch(self, numbers: list[int], shares: Iterable[list[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.tensor([self.labels[number] for number in numbers])
        return self.collate([image for share in shares for image in share]), labels


def batches(
    split: Split,
    data_config: dict[str, Any],
    *,
    augmentation: Augmentation | None = None,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    budgets: Sequence[Budget] = (),
) -> Batches:
    """Batches of a split: for training, with `augmentation`; for evaluation, to the bit as timm transforms each image.

    Training shuffles them; the last batch is left out if a process would get fewer than two images of it. Raises
    UsageError if that is so of every batch of a run of several processes.
    """
    check_batches(batch_size, workers)
    least, processes = min(batch_size, len(split.paths)), distributed.world()
    if augmentation and split.paths and processes > 1 and least < 2 * processes:
        raise UsageError(f"{processes} processes cannot share a batch of {least} images; each needs at least two")
    channels, height, width = data_config["input_size"]
    size, collate = (height, width), partial(stacked, device=device)
    if augmentation:
        interpolation = str_to_interp_mode(data_config["interpolation"])
        together = device.type == "cuda" and by_torch(channels, interpolation)
        if together:
            collate = partial(resized_together, size=size, interpolation=interpolation, device=device)
        else:  # on the CPU
            budgets = [budget for budget in budgets if budget.device.type == "cpu"]
        # Large photographs are reduced, to save memory. The smallest square crop keeps twice the network's resolution:
        # with less, two reductions would blur more than one.
        short_side = math.ceil(2 * max(size) / math.sqrt(augmentation.crop_scale))
        kept = ImageCache(split.paths, partial(decoded, mode=CHANNELS[channels], short_side=short_side), budgets)

        def read(number: int, draws: Draws) -> Any:
            crop = augmentation.crop(kept[number], draws)
            return crop if together else resized_alone(crop, size, interpolation)
    else:
        transform = create_transform(**data_config, is_training=False, normalize=False)
        kept = ImageCache(split.paths, partial(transformed, mode=CHANNELS[channels], transform=transform), budgets)

        def read(number: int, draws: Draws) -> Any:
            return kept[number]

    normalise = normaliser(data_config["mean"], data_config["std"], device)
    return Batches(
        split.labels,
        batch_size,
        read,
        lambda images: normalise(collate(images)),
        at_hand=() if augmentation and not together else kept.kept,
        shuffled=augmentation is not None,
        workers=pictures.READERS if workers is None else workers,
    )


def normaliser(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from uint8 images (N, C, H, W) to float32, to the bit as torchvision's ToTensor and Normalize."""
    white = torch.tensor(255.0, device=device)  # a tensor, as a GPU divides less exactly by a Python number
    centre, spread = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return images.float().div_(white).sub_(centre).div_(spread)

    return normalise


def decoded(picture: Picture, mode: str, short_side: int) -> torch.Tensor:
    """An image file as uint8 (C, H, W), reduced by an integer if its short side is several times `short_side`."""
    with pictures.open_picture(picture) as file:
        file.draft(None, (short_side, short_side))  # a JPEG is then decoded at a fraction of its size
        image = pictures.convert(file, mode)
    factor = min(image.size) // short_side
    pixels = np.array(image.reduce(factor) if factor > 1 else image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def transformed(picture: Picture, mode: str, transform: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    """An image file as timm transforms it for evaluation, uint8 (C, H, W)."""
    with pictures.open_picture(picture) as file:
        return transform(pictures.convert(file, mode))
