"""Write scikit-learn's handwritten digits as three tasks of image folders: digits.py OUT.

Makes OUT/<task>/train/<class>/NNN.png and OUT/<task>/val/<class>/NNN.png. The 1,797 images (8 x 8 pixels, 17 greys)
come with scikit-learn, so nothing is downloaded.
"""

from pathlib import Path

import typer
from PIL import Image
from sklearn.datasets import load_digits

from packnet_cli.cli.failing import in_one_line

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASKS = {"zero-to-three": range(0, 4), "four-to-six": range(4, 7), "seven-to-nine": range(7, 10)}  # name -> digits

# Pixels a side. From 8 the augmentation, which crops down to a twelfth of the area, would be left with two or three
# pixels; and at 32 a person can see what the digit is.
SIZE = 32
VAL_EVERY = 5  # one image in five of each class is held out: always the same ones, spread over the whole set
WHITE = 16  # the largest grey level


def write_tasks(out: Path) -> dict[str, dict[str, int]]:
    """Write every task's images below `out`; returns how many are in train and val, by task."""
    digits = load_digits()
    counts = {task: {"train": 0, "val": 0} for task in TASKS}
    for task, members in TASKS.items():
        for digit in members:
            for number, image in enumerate(digits.images[digits.target == digit]):
                part = "val" if number % VAL_EVERY == 0 else "train"
                folder = out / task / part / CLASSES[digit]
                folder.mkdir(parents=True, exist_ok=True)
                grey = Image.fromarray((image * (255 / WHITE)).round().astype("uint8"))
                grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
                counts[task][part] += 1
    return counts


def main(out: Path) -> None:
    """Write scikit-learn's handwritten digits as three tasks of image folders."""
    for task, count in write_tasks(out).items():
        print(f"{out / task}: {len(TASKS[task])} classes, {count['train']} training images, {count['val']} held out")


if __name__ == "__main__":
    with in_one_line(lambda: "digits.py"):
        typer.run(main)
