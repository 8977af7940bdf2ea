"""Label every image in a folder by every task of a packed model: label_folder.py PACKED FOLDER OUT.csv.

Writes a line for each image, with a column for each task: the likeliest class. Each image is decoded once. Images that
cannot be read are named on stderr.
"""

import csv
import sys
from pathlib import Path

import typer

from packnet_cli import load
from packnet_cli.artifact import format
from packnet_cli.cli.failing import in_one_line
from packnet_cli.engine.using.predict import find_images, predict
from packnet_cli.errors import ReportedError


def main(packed: Path, folder: Path, output: Path) -> None:
    """Label every image in a folder by every task of a packed model."""
    format.check_replaceable(output)  # no packed model is lost by a slip
    answers = predict(packed, find_images([folder]), "all")  # an error, if any, before the table is begun
    tasks, unreadable = load(packed).tasks, 0
    with output.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", *(task.name for task in tasks)])
        for answer in answers:
            if answer.problem:
                unreadable += 1
                print(f"{answer.path}: {answer.problem}", file=sys.stderr)
                continue
            labels = [prediction.top(1)[0][0] for prediction in answer.predictions]
            table.writerow([Path(answer.path).relative_to(folder), *labels])
    if unreadable:
        raise ReportedError(f"{unreadable} images could not be read and are not in {output}")


if __name__ == "__main__":
    with in_one_line(lambda: "label_folder.py"):
        typer.run(main)
