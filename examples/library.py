"""A packed model as a library: one network in memory, asked as every task: library.py PACKED IMAGE [IMAGE ...].

Prints for each task the likeliest class of each image and how probable it is.
"""

from pathlib import Path

import torch
import typer
from PIL import Image

from packnet_cli import load
from packnet_cli.cli.failing import in_one_line
from packnet_cli.errors import DataError, TaskError, reason


def main(path: Path, images: list[Path]) -> None:
    """Print what each task of a packed model makes of each image."""
    packed = load(path)
    if not packed.tasks:
        raise TaskError(f"{path} holds no task yet")
    batch = torch.stack([packed.transform(read(image)) for image in images])  # (N, C, H, W)
    model = packed.model(packed.tasks[0].index)
    for task in packed.tasks:
        packed.switch(model, task.index)  # the same network, now to the bit that of this task
        with torch.inference_mode():
            probabilities = model(batch).softmax(1)  # (N, classes)
        best = probabilities.max(1)
        for image, probability, label in zip(images, best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"{task.name}\t{image}\t{task.classes[label]}\t{probability:.4f}")


def read(path: Path) -> Image.Image:
    """The picture in a file. What PIL makes of an array would do as well."""
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except Exception as error:  # decoders raise nearly anything on broken files
        raise DataError(f"cannot read the image {path}: {reason(error)}; name another") from None


if __name__ == "__main__":
    with in_one_line(lambda: "library.py"):
        typer.run(main)
