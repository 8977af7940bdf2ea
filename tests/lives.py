"""Lead packed models through random lives: `OMP_NUM_THREADS=1 python tests/lives.py --count 100 [--seed N]`.

A life is a small network of timm's and a dozen commands at random settings: tasks are added, pruned, renamed and
removed; training is stopped, and mostly resumed; files are made of them. After each command all other tasks must be the
same to the bit, as read by the specification alone, and `verify` must find nothing. A command that ends in an error
must have changed nothing, and a resumed run must end in the bytes of an unbroken one. Prints how often each command
came to which end, and what went wrong; Ctrl-C, what there is so far.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import timm
import torch
from conftest import CPU, make_folder
from safetensors import safe_open
from safetensors.numpy import load_file

from packnet_cli.artifact import atomic, edit, format, ship, verify
from packnet_cli.engine import pack
from packnet_cli.engine.using import evaluate
from packnet_cli.errors import CapacityError, DivergedError, InterruptedRun, PackNetError, TaskError, UsageError
from packnet_cli.progress import Step
from packnet_cli.recipe import CHOICES, Recipe

NETWORKS = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet", "test_nfnet"]
OPTIMIZERS = ["momentum", "sgd", "nesterov", "adam", "adamw", "nadamw", "cadamw", "lamb", "lion", "rmsprop", "adagrad"]
OPTIMIZERS += ["adafactor", "adan", "muon", "madgrad", "lars", "radam", "adopt", "mars", "laprop", "adadelta"]
PRUNES = [0, 0.1, 0.5, 0.5, 0.5, 0.75, 0.75, 0.9, 0.99]
OFTEN = {"add": 4, "stop": 2, "prune": 1, "remove": 1, "rename": 1, "use": 1}  # how often each command is chosen
ENDS = CapacityError, DivergedError, TaskError, UsageError  # that a command may come to


def read(path):
    """The tensors and the metadata of a packed model."""
    with safe_open(path, framework="np") as file:
        metadata = json.loads(file.metadata()["packnet"])
    return load_file(path), metadata


def bits(state):
    """Every tensor of a state dict as bytes."""
    return {name: array.tobytes() for name, array in state.items()}


def state_of(tensors, index):
    """A task's state dict, by the specification."""
    state = {}
    for key, values in tensors.items():
        prefix, _, name = key.partition(".")
        if prefix == "shared":
            owners = tensors[f"mask.{name}"]
            state[name] = np.where((owners > 0) & (owners <= index), values, np.float32(0))
        elif key.startswith(f"task.{index}."):
            state[key.split(".", 2)[2]] = values
    return state


def check_counts(tensors, metadata):
    """Each task owns as many weights as the file says, and nobody else any."""
    owners = np.concatenate([array.reshape(-1) for key, array in tensors.items() if key.startswith("mask.")])
    said = {task["index"]: task["owned"] for task in metadata["tasks"]}
    said |= {int(index): counts for index, counts in metadata["removed"].items()}
    found = np.bincount(owners, minlength=256)
    assert {index: sum(counts.values()) for index, counts in said.items()} == {index: found[index] for index in said}
    assert not found[sorted(set(range(1, 256)) - said.keys())].any()


def check_added(before, after, index):
    """Task `index` was added, and took only free weights; all else is as before, dormant values too."""
    for key, array in before.items():
        prefix, _, name = key.partition(".")
        kept = np.ones(array.shape, np.bool_)
        if prefix in ("shared", "mask"):
            kept = after[f"mask.{name}"] != index
            assert not before[f"mask.{name}"][~kept].any(), f"{name}: taken from another task"
        assert after[key][kept].tobytes() == array[kept].tobytes(), f"{key} changed"


def stop_after(steps):
    """A progress callback that asks the process to stop after so many steps."""

    def progress(task, phase, seen):
        nonlocal steps
        steps -= isinstance(seen, Step)
        if steps == 0:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


class Life:
    """One packed model in a folder of its own."""

    def __init__(self, folder, images, seed):
        self.rng, self.images, self.names = random.Random(seed), images, 0
        self.folder, self.path = folder, folder / "packed.st"

    def live(self, commands, tally):
        """Begin, and do these commands. Raises AssertionError at the first that does what it must not."""
        self.begin()
        for name in commands:
            content = self.path.read_bytes()
            tensors, metadata = read(self.path)
            self.tasks = [task["index"] for task in metadata["tasks"]]
            self.unlike = set()  # the tasks that the command is to change or remove
            try:
                getattr(self, name)()
                end = "done"
            except InterruptedRun:  # by the user of this program
                raise
            except PackNetError as error:
                assert isinstance(error, ENDS), f"{name}: {error!r}"
                assert self.path.read_bytes() == content, f"{name} changed the file and raised {error!r}"
                end = type(error).__name__
            tally[f"{name}: {end}"] += 1
            assert verify.verify(self.path) == []
            after, metadata = read(self.path)
            check_counts(after, metadata)
            for index in {*self.tasks} - self.unlike:
                assert bits(state_of(after, index)) == bits(state_of(tensors, index)), f"{name} changed task {index}"

    def begin(self):
        """Start from random weights, all free, or keep a network with its own classifier as the first task."""
        rng, arch = self.rng, self.rng.choice(NETWORKS)
        how = {"data_config": {"img_size": 32}, "machine": CPU}
        if rng.random() < 0.7:
            pack.init(self.path, arch, pretrained=False, recipe=Recipe(seed=rng.randrange(9)), **how)
            return
        weights, names = self.folder / "weights.pt", self.folder / "names.txt"
        torch.save(timm.create_model(arch, num_classes=3).state_dict(), weights)
        names.write_text("class0\nclass1\nclass2\n")
        how |= rng.choice([{"class_names": names}, {"data": self.images[1]}, {"distill": self.images[2]}])
        pack.init(self.path, arch, weights=weights, prune=rng.choice(PRUNES), recipe=self.recipe(), **how)

    def recipe(self):
        """Settings that users choose, and some that hardly anyone would."""
        rng = self.rng
        return Recipe(
            epochs=rng.choice([1, 1, 2]),
            retrain_epochs=rng.choice([0, 1, 2, 3]),
            lr=10 ** rng.uniform(-4, -1),
            retrain_lr=10 ** rng.uniform(-4, -1),
            head_lr=rng.choice([1, 10]),
            layer_decay=rng.choice([1, 0.8]),
            batch_size=rng.choice([4, 7, 8, 32]),
            opt=rng.choice(OPTIMIZERS),
            weight_decay=rng.choice([0, 0.01, 0.5]),
            prune_steps=rng.choice([1, 2, 6]),
            keep_at_least=rng.choice([0, 0, 5]),
            skip_layers=rng.choice(["", "", "*1*"]),
            distill_weight=rng.choice([0, 0.5, 0.9]),
            seed=rng.randrange(3),
            **{name: rng.choice(choices) for name, choices in CHOICES.items()},
        )

    def new_name(self):
        self.names += 1
        return f"task-{self.names}"

    def training(self):
        """The arguments of a run that adds a task."""
        rng = self.rng
        how = {"prune": rng.choice(PRUNES)}
        if rng.random() < 0.15:
            how = rng.choice([{"head_only": True}, {"max_drop": rng.choice([0, 20, 60])}])
        machine = dataclasses.replace(
            CPU, workers=rng.choice([0, 1]), amp=rng.choice([False, False, True]), cache=rng.choice(["auto", "off"])
        )
        how |= {"data": rng.choice(self.images), "name": self.new_name(), "recipe": self.recipe(), "machine": machine}
        return how

    def add(self):
        before, _ = read(self.path)
        pack.add_task(self.path, **self.training())
        after, metadata = read(self.path)
        *others, newest = (task["index"] for task in metadata["tasks"])
        assert others == self.tasks
        check_added(before, after, newest)

    def stop(self):
        """Have a run stopped, and mostly go on with it."""
        how, resumes = self.training(), self.rng.random() < 0.7
        content, unbroken = self.path.read_bytes(), self.folder / "unbroken.st"
        if resumes:
            shutil.copy(self.path, unbroken)
            pack.add_task(unbroken, **how)
        with suppress(InterruptedRun):
            progress = stop_after(self.rng.randint(1, 12))
            pack.add_task(self.path, **how, progress=progress, checkpoint_minutes=0)
            return  # it was over before
        assert self.path.read_bytes() == content, "stopped, it has changed the file"
        if resumes:
            pack.add_task(self.path, **how, resume=True)
            assert self.path.read_bytes() == unbroken.read_bytes(), "resumed, it is another file"
            assert not atomic.checkpoint(self.path).exists()

    def prune(self):
        before, newest = read(self.path)[0], max(self.tasks, default=1)
        self.unlike = {newest}
        how = {"recipe": self.recipe()} if self.rng.random() < 0.5 else {}
        # A base may have been started without images, or on some that are not its own.
        how |= {"distill": self.rng.choice(self.images)} if newest == 1 or self.rng.random() < 0.3 else {}
        pack.prune_task(self.path, str(newest), prune=self.rng.choice(PRUNES[1:]), machine=CPU, **how)
        after, _ = read(self.path)
        for key, array in before.items():
            if key.startswith("mask."):
                released = after[key] != array
                assert not after[key][released].any() and (array[released] == newest).all(), f"{key}: not released"

    def remove(self):
        task = self.rng.choice(self.tasks or [1])
        self.unlike = {task}
        edit.remove_task(self.path, task)
        assert task not in [left["index"] for left in read(self.path)[1]["tasks"]]

    def rename(self):
        edit.rename(self.path, self.rng.choice(self.tasks or [1]), self.new_name())

    def use(self):
        """Measure all tasks again, and make other files of them."""
        content, (tensors, _) = self.path.read_bytes(), read(self.path)
        if not self.tasks:
            raise TaskError("there is nothing to use")
        assert evaluate.check_accuracies(self.path, batch_size=32, workers=0, device="cpu") == []
        small, extracted = self.folder / "small.st", self.folder / "task.safetensors"
        ship.make_compact(self.path, small)
        assert verify.verify(small) == []
        artifact, compact = format.load(self.path), format.load(small)
        for task in artifact.header.tasks:
            wanted = bits(state_of(tensors, task.index))
            assert bits(compact.state(task.index)) == wanted, f"compact, {task} is another one"
            ship.extract_safetensors(artifact, task, extracted)
            assert bits(load_file(extracted)) == wanted, f"extracted, {task} is another one"
        assert self.path.read_bytes() == content


def make_images(folder):
    """Three small sets, and one without held-out images."""
    sets = [make_folder(folder / f"set{classes}", classes=classes, train=8, seed=classes) for classes in (2, 3, 5)]
    bare = Path(shutil.copytree(sets[1] / "train", folder / "bare"))
    return [*sets, bare]


def lead(folder, images, seed, commands, tally):
    """Lead the life of this seed, with these commands, in a new folder. Returns what went wrong, or an empty text."""
    folder.mkdir()
    try:
        Life(folder, images, seed).live(commands, tally)
    except InterruptedRun:
        raise
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder)
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--commands", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tally, lives, problems = Counter(), 0, []
    with tempfile.TemporaryDirectory() as name, suppress(KeyboardInterrupt, InterruptedRun):
        images = make_images(Path(name))
        for seed in range(options.seed, options.seed + options.count):
            commands = random.Random(seed).choices(list(OFTEN), OFTEN.values(), k=options.commands)
            problem = lead(Path(name, "life"), images, seed, commands, tally)
            lives, problems = lives + 1, problems + [problem] * bool(problem)
    for end, times in sorted(tally.items()):
        print(f"{times:5} {end}")
    print(*problems, f"{lives - len(problems)} of {lives} lives without a fault", sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
