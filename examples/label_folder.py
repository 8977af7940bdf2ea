"""Label every image in a folder by every task of a packed model: label_folder.py PACKED FOLDER OUT.csv.

Writes a line for each image, with a column for each task: the likeliest class. Each image is decoded once. Images that
cannot be read are named on stderr.
"""

import csv
import sys
from pathlib import Path

import typer

from packnet_cli import load
from packnet_cli.engine.using.predict import find_images, predict
from packnet_cli.errors import PackNetError


def main(packed: Path, folder: Path, output: Path) -> None:
    """Label every image in a folder by every task of a packed model."""
    tasks, images = load(packed).tasks, find_images([folder])
    with output.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", *(task.name for task in tasks)])
        for answer in predict(packed, images, "all"):
            if answer.problem:
                print(f"{answer.path}: {answer.problem}", file=sys.stderr)
                continue
            labels = [prediction.top(1)[0][0] for prediction in answer.predictions]
            table.writerow([Path(answer.path).relative_to(folder), *labels])


if __name__ == "__main__":
    try:
        typer.run(main)
    except PackNetError as error:
        sys.exit(f"error: {error}")
