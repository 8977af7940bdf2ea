"""A packed model as a library: one network in memory, asked as every task: library.py PACKED IMAGE [IMAGE ...].

Prints for each task the likeliest class of each image and how probable it is.
"""

from pathlib import Path

import torch
import typer
from PIL import Image

from packnet_cli import load
from packnet_cli.cli.failing import in_one_line
from packnet_cli.engine.data.pictures import problem
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import DataError


def main(path: Path, images: list[Path]) -> None:
    """Print what each task of a packed model makes of each image."""
    packed = load(path)
    tasks = packed.artifact.header.asked("all", path)  # packed.tasks, or an error if there are none
    batch = torch.stack([read(packed, image) for image in images])  # (N, C, H, W)
    model = packed.model(tasks[0].index)
    for task in tasks:
        packed.switch(model, task.index)  # the same network, now to the bit that of this task
        with torch.inference_mode():
            probabilities = model(batch).softmax(1)  # (N, classes)
        best = probabilities.max(1)
        for image, probability, label in zip(images, best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"{task.name}\t{image}\t{task.classes[label]}\t{probability:.4f}")


def read(packed: Packed, path: Path) -> torch.Tensor:
    """The image as the network takes it: (C, H, W)."""
    try:
        with Image.open(path) as picture:  # or what PIL has made of an array
            return packed.transform(picture)
    except Exception as error:  # decoders raise nearly anything on broken files
        raise DataError(f"cannot read the image {path}: {problem(error)}; name another") from None


if __name__ == "__main__":
    with in_one_line(lambda: "library.py"):
        typer.run(main)
