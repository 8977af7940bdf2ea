"""Kill whatever writes at random moments: `OMP_NUM_THREADS=1 python tests/faults.py --count 200 [--seed N]`.

Each of add-task, prune, init --prune and remove-task is killed --count times: every second time at a random moment of
the whole command, which writes a checkpoint after every step, every other time at a random moment of its save. Each
time the file must be whole, and to the byte the old one or the new one; the next writer must not be blocked, and sweeps
up; and from the checkpoint, if there is one, --resume must come to the new file. Prints how many kills came when, and
what was left; Ctrl-C, what there is so far.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from conftest import CPU, QUICK, make_folder

from packnet_cli.artifact import atomic, edit, format, verify
from packnet_cli.engine import pack
from packnet_cli.engine.training.checkpoint import Checkpointer
from packnet_cli.errors import InterruptedRun

RUN = dict(machine=CPU, checkpoint_minutes=0)
MOMENTS = {"": "before it wrote", "c": "in a checkpoint", "d": "between checkpoints", "s": "in its save", "e": "after"}


@dataclass
class Verb:
    """A command that is to be killed; `run` takes whether to resume."""

    run: Any
    old: bytes | None  # the file before it, if there is one
    new: bytes = b""  # and after it
    seconds: float = 0  # that it takes
    saving: float = 0  # of these, in its save


def tell(place, name, pipe, begins, ends):
    """Have a function write a letter to `pipe` as it begins and one as it ends."""
    function = getattr(place, name)

    def told(*arguments, **settings):
        os.write(pipe, begins)
        result = function(*arguments, **settings)
        os.write(pipe, ends)
        return result

    setattr(place, name, told)


def start(verb, pipe):
    """Run a verb in a process of its own, which tells of its writing."""
    child = os.fork()
    if child:
        return child
    tell(format, "save", pipe, b"s", b"e")
    tell(Checkpointer, "save", pipe, b"c", b"d")
    verb.run(False)
    os._exit(0)


def kill(verb, rng, at_save):
    """Run a verb, kill it at a random moment, and return when that was."""
    told, pipe = os.pipe()
    child = start(verb, pipe)
    os.close(pipe)
    said = b""
    if at_save:
        while not said.endswith(b"s"):
            said += os.read(told, 1)
        time.sleep(rng.uniform(0, verb.saving))
    else:
        time.sleep(rng.uniform(0, verb.seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    said += os.read(told, 1 << 16)
    os.close(told)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("the command failed by itself")
    return MOMENTS[said[-1:].decode()]


def put(path, content):
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def measure(verb, path):
    """Note what an uninterrupted run makes, and how long it takes, of three processes like those that are killed."""
    whole, saving = [], []
    for _ in range(3):
        put(path, verb.old)
        told, pipe = os.pipe()
        began, child = time.perf_counter(), start(verb, pipe)
        os.close(pipe)
        at = {}
        while letter := os.read(told, 1):
            at[letter] = time.perf_counter()
        if os.waitpid(child, 0)[1]:
            sys.exit("the command failed by itself")
        os.close(told)
        whole.append(time.perf_counter() - began)
        saving.append(at[b"e"] - at[b"s"])
    verb.seconds, verb.saving = min(whole), min(saving)
    verb.new = path.read_bytes()


def problems_left(verb, path, allowed):
    """What is wrong after a kill, and which file it left."""
    content = path.read_bytes() if path.exists() else None
    which = {verb.old: "the old file", verb.new: "the new file"}.get(content, "NEITHER FILE")
    problems = [] if content is None else [finding.problem for finding in verify.verify(path)]
    with atomic.locked(path):
        left = set(os.listdir(path.parent)) - allowed - {path.name, ".packed.st.lock", ".packed.st.holder"}
    if left:
        problems.append(f"left: {sorted(left)}")
    checkpoint = atomic.checkpoint(path)
    if which == "the old file" and checkpoint.exists():
        verb.run(True)
        if path.read_bytes() != verb.new:
            problems.append("resumed, it is ANOTHER FILE")
    return which, problems


def make_verbs(folder, path):
    """The four, each with the file that it starts from."""
    images = make_folder(folder / "images")
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), folder / "weights.pt")
    config = {"img_size": 32}

    def init(resume):
        pack.init(
            path,
            "test_resnet",
            weights=folder / "weights.pt",
            data_config=config,
            prune=0.5,
            data=images,
            recipe=QUICK,
            resume=resume,
            **RUN,
        )

    def add(resume, name="new"):
        pack.add_task(path, images, name=name, prune=0.5, recipe=QUICK, resume=resume, **RUN)

    def prune(resume):
        pack.prune_task(path, "second", prune=0.5, resume=resume, **RUN)

    pack.init(path, "test_resnet", pretrained=False, data_config=config)
    add(False, "first")
    add(False, "second")
    two = path.read_bytes()
    return {
        "add-task": Verb(add, two),
        "prune": Verb(prune, two),
        "init --prune": Verb(init, None),
        "remove-task": Verb(lambda resume: edit.remove_task(path, "second"), two),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no others
    rng = random.Random(options.seed)
    tally, kills, failures = Counter(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "packed.st")
        verbs = make_verbs(Path(name), path)
        allowed = set(os.listdir(name)) | {"packed.st.resume"}
        with suppress(KeyboardInterrupt, InterruptedRun):  # which ask for what there is so far
            for number in range(4 * options.count):
                verb_name = list(verbs)[number % 4]
                verb = verbs[verb_name]
                if not verb.new:
                    measure(verb, path)
                put(path, verb.old)
                when = kill(verb, rng, number // 4 % 2 == 0)
                which, problems = problems_left(verb, path, allowed)
                Checkpointer(path, {}, 0).remove()
                kills, failures = kills + 1, failures + (bool(problems) or which == "NEITHER FILE")
                tally[f"{verb_name} killed {when}: {which}{''.join(f' [{problem}]' for problem in problems)}"] += 1
    for outcome, times in sorted(tally.items()):
        print(f"{times:5} {outcome}")
    print(f"{kills - failures} of {kills} survived")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
