"""A packed model as a library: one network in memory, asked as every task: library.py PACKED IMAGE [IMAGE ...].

Prints for each task the likeliest class of each image and how probable it is.
"""

import sys
from pathlib import Path

import torch
import typer
from PIL import Image

from packnet_cli import load
from packnet_cli.errors import PackNetError


def main(path: Path, images: list[Path]) -> None:
    """Print what each task of a packed model makes of each image."""
    packed = load(path)
    pictures = [Image.open(image) for image in images]  # or what PIL has made of an array
    batch = torch.stack([packed.transform(picture) for picture in pictures])  # (N, C, H, W)
    model = packed.model(packed.tasks[0].index)
    for task in packed.tasks:
        packed.switch(model, task.index)  # the same network, now to the bit that of this task
        with torch.inference_mode():
            probabilities = model(batch).softmax(1)  # (N, classes)
        best = probabilities.max(1)
        for image, probability, label in zip(images, best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"{task.name}\t{image}\t{task.classes[label]}\t{probability:.4f}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except PackNetError as error:
        sys.exit(f"error: {error}")
