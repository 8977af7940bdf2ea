"""A packed model as a library: one network in memory, asked as every task: library.py PACKED IMAGE [IMAGE ...].

Prints for each task the likeliest class of each image and how probable it is.
"""

import sys

import torch
from PIL import Image

from packnet_cli import load


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: library.py PACKED IMAGE [IMAGE ...]")
    packed = load(sys.argv[1])
    images = [Image.open(path) for path in sys.argv[2:]]  # or what PIL has made of an array
    batch = torch.stack([packed.transform(image) for image in images])  # (N, C, H, W)
    model = packed.model(packed.tasks[0].index)
    for task in packed.tasks:
        packed.switch(model, task.index)  # the same network, now to the bit that of this task
        with torch.inference_mode():
            probabilities = model(batch).softmax(1)  # (N, classes)
        best = probabilities.max(1)
        for path, probability, label in zip(sys.argv[2:], best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"{task.name}\t{path}\t{task.classes[label]}\t{probability:.4f}")


if __name__ == "__main__":
    main()
