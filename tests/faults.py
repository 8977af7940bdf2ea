"""Kill add-task and remove-task at random moments: `OMP_NUM_THREADS=1 python tests/faults.py --count 200 [--seed N]`.

Every second kill comes at a random moment of the whole command, every other one at a random moment of its save. Each
time the file must be whole, and to the byte the old one or the new one; the next writer must not be blocked. Prints how
many kills came when, and what was left.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from conftest import QUICK, make_folder

from packnet_cli.artifact import atomic, edit, format, verify
from packnet_cli.engine import pack

SIGNALLED = 0.02  # s in which a save of a small file is over


def start(verb, pipe):
    """Run a verb in a process of its own, which writes a byte to `pipe` as its save begins and one as it ends."""
    child = os.fork()
    if child:
        return child
    save = format.save

    def told_save(*arguments, **settings):
        os.write(pipe, b"s")
        save(*arguments, **settings)
        os.write(pipe, b"e")

    format.save = told_save
    verb()
    os._exit(0)


def kill(verb, rng, at_save, duration):
    """Run a verb, kill it at a random moment, and return when that was."""
    told, pipe = os.pipe()
    child = start(verb, pipe)
    os.close(pipe)
    said = b""
    if at_save:
        said = os.read(told, 1)
        time.sleep(rng.uniform(0, SIGNALLED))
    else:
        time.sleep(rng.uniform(0, duration))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    said += os.read(told, 2)
    os.close(told)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("the command failed by itself")
    return {b"": "before its save", b"s": "in its save", b"se": "after its save"}[said]


def result_of(verb, path):
    """The bytes that an uninterrupted run makes, and how long it takes in seconds."""
    old, began = path.read_bytes(), time.perf_counter()
    verb()
    new, took = path.read_bytes(), time.perf_counter() - began
    path.write_bytes(old)
    return new, took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no others
    rng = random.Random(options.seed)
    tally, failures = Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder, "packed.st"), make_folder(Path(folder, "images"))
        pack.init(path, "test_resnet", pretrained=False, data_config={"img_size": 32})

        def add(name="new"):
            pack.add_task(path, images, name=name, prune=0.5, recipe=QUICK, workers=0, device="cpu")

        add("first")
        add("second")
        old = path.read_bytes()
        verbs = {"add-task": add, "remove-task": lambda: edit.remove_task(path, "second")}
        expected = {name: result_of(verb, path) for name, verb in verbs.items()}
        for number in range(options.count):
            name = ("add-task", "remove-task")[number % 2]
            when = kill(verbs[name], rng, number // 2 % 2 == 0, expected[name][1])
            content = path.read_bytes()
            which = {old: "the old file", expected[name][0]: "the new file"}.get(content, "NEITHER FILE")
            left = "a temporary file beside it" if list(path.parent.glob(".packed.st.*.tmp")) else "nothing beside it"
            findings = verify.verify(path)
            with atomic.locked(path):
                swept = set(os.listdir(folder)) == {"packed.st", "images", ".packed.st.lock", ".packed.st.holder"}
            problems = [finding.problem for finding in findings] + [f"left: {sorted(os.listdir(folder))}"] * (not swept)
            failures += bool(problems) or which == "NEITHER FILE"
            tally[f"{name} killed {when}: {which}, {left}{''.join(f' [{problem}]' for problem in problems)}"] += 1
            path.write_bytes(old)
    for outcome, times in sorted(tally.items()):
        print(f"{times:5} {outcome}")
    print(f"{options.count - failures} of {options.count} survived")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
