"""Label every image in a folder by every task of a packed model: label_folder.py PACKED FOLDER OUT.csv.

Writes a line for each image, with a column for each task: the likeliest class. Each image is decoded once. Images that
cannot be read are named on stderr.
"""

import csv
import sys
from pathlib import Path

from packnet_cli import load
from packnet_cli.engine.using.predict import find_images, predict


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("usage: label_folder.py PACKED FOLDER OUT.csv")
    path, folder, output = map(Path, sys.argv[1:])
    with output.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", *(task.name for task in load(path).tasks)])
        for answer in predict(path, find_images([folder]), "all"):
            if answer.problem:
                print(f"{answer.path}: {answer.problem}", file=sys.stderr)
                continue
            labels = [prediction.top(1)[0][0] for prediction in answer.predictions]
            table.writerow([answer.path.relative_to(folder), *labels])


if __name__ == "__main__":
    main()
