"""Small pictures and small packed models, made afresh."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before anything is imported that looks at them.
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network
os.environ["OMP_NUM_THREADS"] = "1"  # these networks are too small to share out

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from packnet_cli.cli import app, capacity, keeping, packing, using  # noqa: F401  (importing the commands adds them)
from packnet_cli.engine import pack
from packnet_cli.machine import Machine
from packnet_cli.recipe import Recipe

gc.freeze()  # what the imports have made: at each collection it would be looked through, for a quarter of a second

CPU = Machine("cpu", workers=0, amp=False)
QUICK = Recipe(
    rank="layer", distill_weight=0.0, epochs=1, retrain_epochs=2, lr=0.05, retrain_lr=0.02, batch_size=8, prune_steps=2
)
# As quick, on the command line.
FLAGS = ["--epochs", 1, "--retrain-epochs", 1, "--batch-size", 8, "--workers", 0, "--device", "cpu"]


def noting(lines):
    """A `say` callback that adds what is said to these lines, warnings too."""
    return lambda line, warning=False: lines.append(line)


def make_folder(folder: Path, *, classes: int = 3, train: int = 6, val: int = 3, seed: int = 0) -> Path:
    """train/ and val/ with folders of noise, each class of its own shade."""
    rng = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for number in range(classes):
            target = folder / part / f"class{number}"
            target.mkdir(parents=True)
            for image in range(count):
                pixels = rng.integers(0, 120, (36, 36, 3)) + np.array([120, 60, 0]) * (number % 3 == np.arange(3))
                Image.fromarray(pixels.astype(np.uint8)).save(target / f"{image}.png")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tasks' images, with 3, 2 and 4 classes."""
    root = tmp_path_factory.mktemp("images")
    return [make_folder(root / name, classes=n, seed=n) for name, n in (("red", 3), ("green", 2), ("blue", 4))]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """An artifact without tasks, of a small convolutional network with batch norm."""
    path = tmp_path / "packed.st"
    pack.init(path, "test_resnet", pretrained=False, data_config={"img_size": 32})
    return path


@pytest.fixture(scope="session")
def three_tasks(tmp_path_factory: pytest.TempPathFactory, folders: list[Path]) -> bytes:
    """The bytes of an artifact with three tasks, the last of which took all that was free."""
    path = tmp_path_factory.mktemp("three") / "packed.st"
    pack.init(path, "test_resnet", pretrained=False, data_config={"img_size": 32})
    for folder, prune in zip(folders, (0.5, 0.5, 0), strict=True):
        pack.add_task(path, folder, prune=prune, recipe=QUICK, machine=CPU)
    return path.read_bytes()


@pytest.fixture
def full(tmp_path: Path, three_tasks: bytes) -> Path:
    """A file of its own with those three tasks."""
    path = tmp_path / "full.st"
    path.write_bytes(three_tasks)
    return path


@pytest.fixture
def packnet() -> Callable[..., Any]:
    """Run a command line in this process: `result = packnet("info", path)`; `input` is its stdin."""
    return lambda *arguments, input=None: CliRunner().invoke(
        app, [str(a) for a in arguments], input=input, catch_exceptions=False
    )
