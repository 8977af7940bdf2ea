"""The paper's table for your network and your folders of images: packing against its rivals and its bounds.

Each task is learnt by a classifier on the network as it is, by Learning without Forgetting (LwF), by packing at one or
more prune fractions, and by a network of its own; in every order and under every seed asked for. What is done stands in
OUT and is not done again, so that a run that was stopped goes on where it was.

    packnet init --arch resnet18 start.st
    python examples/paper_table.py OUT start.st cars birds textures --prune .5 --prune equal --seeds 3

To see what becomes of the network's own task, keep it: unpruned in START, and pruned in a file for each --prune.

    packnet init --arch vgg16 --prune 0 --data imagenet --retrain-epochs 0 start.st
    packnet init --arch vgg16 --prune .5 --data imagenet base.st
    python examples/paper_table.py OUT start.st cubs cars flowers --base base.st --prune .75 --order 1,2,3 --order 3,1,2
"""

import copy
import csv
import dataclasses
import hashlib
import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timm.utils import random_seed
from torch import nn
from torch.nn import functional as F
from typer import Argument, Option

from packnet_cli.artifact import edit, format, verify
from packnet_cli.artifact.header import is_of_head
from packnet_cli.artifact.plan import equal_share, fraction_of
from packnet_cli.cli.failing import in_one_line
from packnet_cli.cli.settings import recipe_from, with_settings
from packnet_cli.engine import network, pack
from packnet_cli.engine.data import feed, splits
from packnet_cli.engine.data.augment import Augmentation
from packnet_cli.engine.device import choose_device
from packnet_cli.engine.measure import evaluate
from packnet_cli.engine.training.freezer import Freezer
from packnet_cli.engine.training.optimize import Optimization
from packnet_cli.engine.training.rates import multiples, settle_rates
from packnet_cli.engine.training.train import stop_statistics, train
from packnet_cli.engine.using.evaluate import held_out_images
from packnet_cli.errors import ConflictError, DataError, InterruptedRun, UsageError, few
from packnet_cli.images import task_name
from packnet_cli.machine import THIS_MACHINE
from packnet_cli.progress import unsaid
from packnet_cli.recipe import SETTINGS, Recipe

WAYS = ("classifier", "lwf", "packnet", "individual")


class Bench:
    """What all ways share: the network to start from, the images, the recipe, and what has been measured so far."""

    def __init__(self, out: Path, start: Path, folders: list[Path], recipe: Recipe) -> None:
        self.out, self.path, self.folders = out, start, folders
        started = format.load(start)
        self.base = started.header.tasks[0] if started.header.tasks else None
        if self.base and (len(started.header.tasks) > 1 or started.free_count()):
            raise UsageError(f"{start} is not as init makes it, all free or kept with --prune 0; name one that is")
        names = [task_name(folder) for folder in folders] + ([self.base.name] if self.base else [])
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"several tasks are called {twice[0]!r}, and could not be told apart; rename a folder")
        self.start = started.state(1) if self.base else started.shared | started.own[0]
        self.all_free = started
        if self.base:  # with the norms and biases that belong to the kept weights, not those from before it was kept
            freed = edit.without_task(started, self.base)
            own = {name: self.start[name] for name in freed.own[0]}
            self.all_free = format.make(freed.header, freed.shared, freed.mask, (own,))
        self.header = self.all_free.header
        self.recipe = settle_rates(self.all_free, recipe, unsaid)  # the same rates for all ways
        for folder in folders:
            if splits.open_training(folder, val_split=recipe.val_split, seed=recipe.seed).held_out is None:
                raise DataError(f"{folder} has one image in each class, and so none to measure on; add others")
        self.results = out / "results.jsonl"
        self.rows = (
            [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.exists() else []
        )

    def check_settings(self, bases: list[tuple[str, Path]]) -> None:
        """Make OUT. Raise ConflictError if what stands in OUT was measured by other settings or from other networks."""
        now = dataclasses.asdict(self.recipe) | {"START": digest_of(self.path)}
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / "settings.json"
        then = json.loads(file.read_text()) if file.exists() else dict(now)
        different = [name for name in now if now[name] != then.get(name)]
        for way, base in bases:  # a new way may join those that stand there
            digest = digest_of(base)
            if then.setdefault(f"--base of {way}", digest) != digest:
                different.append(f"--base of {way}")
        if different:
            raise ConflictError(f"{self.out} is of other settings ({few(different)}); name another folder")
        file.write_text(json.dumps(then))

    def has(self, way: str, order: str, seed: int, task: str) -> bool:
        key = (way, order, seed, task)
        return any((row["way"], row["order"], row["seed"], row["task"]) == key for row in self.rows)

    def note(self, way: str, order: str, seed: int, task: str, top1: float, size: int, **more: Any) -> None:
        row = {"way": way, "order": order, "seed": seed, "task": task, "top1": top1, "bytes": size, **more}
        self.rows.append(row)
        with self.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def recipe_for(self, seed: int, pruned: bool = False) -> Recipe:
        """What is not pruned trains for as many epochs, in one phase."""
        epochs = self.recipe.epochs + (0 if pruned else self.recipe.retrain_epochs)
        return dataclasses.replace(self.recipe, epochs=epochs, seed=seed)

    def new_network(self, folder: Path, seed: int) -> tuple[splits.TrainingImages, nn.Module]:
        """A task's images, and the starting network with a new head for them."""
        random_seed(seed)
        images = splits.open_training(folder, val_split=self.recipe.val_split, seed=seed)
        model = network.build(self.header, len(images.classes))
        network.write(
            model, {name: array for name, array in self.start.items() if not is_of_head(name, self.header.head)}
        )
        return images, network.place(model, choose_device("auto"))

    def feed(self, split: splits.Split, *, training: bool = False) -> Any:
        device = choose_device("auto")
        return feed.batches(
            split,
            self.header.data_config,
            augmentation=Augmentation.of(self.recipe) if training else None,
            batch_size=self.recipe.batch_size,
            workers=None,
            device=device,
            budgets=feed.budgets(THIS_MACHINE.cache, THIS_MACHINE.cache_gb, device),
        )


# --- packing --------------------------------------------------------------------------------------------------------


def packnet(bench: Bench, order: str, base: Path | None, prune: str, seed: int) -> None:
    """Pack the tasks in this order, all but the last pruned by `prune`, or to equal shares. The artifact resumes."""
    way = packnet_way(base, prune)
    path = bench.out / f"{way.replace(' ', '-').replace('/', '-')}.{order.replace(',', '-')}.{seed}.st"
    if not path.exists():
        format.save(format.load(base) if base else bench.all_free, path)
    folders = in_order(bench, order)
    done = len(format.load_header(path).tasks) - (base is not None)
    for position, folder in enumerate(folders[done:], start=done + 1):
        left = len(folders) - position
        fraction = 0.0 if not left else equal_share(left) if prune == "equal" else fraction_of(prune, "equal")
        pack.add_task(path, folder, prune=fraction, recipe=bench.recipe_for(seed, pruned=fraction > 0), resume=True)
    artifact = format.load(path)
    assert not verify.altered_tasks(artifact)  # every task is, to the bit, what it was when it was added
    for task in artifact.header.tasks:
        if not bench.has(way, order, seed, task.name):
            bench.note(way, order, seed, task.name, task.top1, path.stat().st_size, accuracy=task.accuracy)


def packnet_way(base: Path | None, prune: str) -> str:
    return f"packnet {prune}" if base is None else f"packnet {format.load_header(base).tasks[0].prune:g}/{prune}"


# --- the bounds -----------------------------------------------------------------------------------------------------


def individual(bench: Bench, folder: Path, seed: int) -> None:
    """A network of its own, in which everything trains."""
    path = bench.out / f"individual.{task_name(folder)}.{seed}.st"
    format.save(bench.all_free, path)
    after = pack.add_task(path, folder, recipe=bench.recipe_for(seed), resume=True)
    size = sum(array.nbytes for array in after.state(1).values())
    bench.note("individual", "", seed, task_name(folder), after.header.tasks[0].top1, size)
    path.unlink()


def classifier(bench: Bench, folder: Path, seed: int) -> None:
    """A new head on the network as it is."""
    images, model = bench.new_network(folder, seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_of_head(name, bench.header.head))
    recipe = bench.recipe_for(seed)
    epochs = train(
        model,
        bench.feed(images.train, training=True),
        Freezer(model, recipe.opt),
        optimization(recipe, multiples(model, recipe, bench.header.head)),
        epochs=recipe.epochs,
        train_norm=False,
        amp=False,
        progress=lambda step: None,
    )
    for _ in epochs:
        pass
    top1 = evaluate(model, bench.feed(images.held_out.split)).top1
    bench.note("classifier", "", seed, task_name(folder), top1, bytes_of(model.get_classifier()))


# --- the rival ------------------------------------------------------------------------------------------------------


def lwf(bench: Bench, order: str, seed: int) -> None:
    """Learning without Forgetting (Li and Hoiem, 2016, arXiv 1606.09282): one network, all of whose weights move on.

    While it learns a task, its answers for the earlier ones, on the new images, are held to what they were before.
    Batch norm keeps its statistics: with those of the new images the old heads would know next to nothing.
    """
    folders = in_order(bench, order)
    if all(bench.has("lwf", order, seed, task_name(folder)) for folder in folders):
        return
    heads: dict[str, nn.Module] = {}
    held_out: dict[str, splits.Split] = {}
    model = None
    if bench.base:
        model = network.build(bench.header, len(bench.base.classes))
        network.write(model, bench.start)
        network.place(model, choose_device("auto"))
        heads[bench.base.name] = model.get_classifier()
        # Those that START was measured on, whatever the seed here: it was trained on the others.
        held_out[bench.base.name] = held_out_images(bench.path, bench.base, None).split
    for folder in folders:
        images, following = bench.new_network(folder, seed)
        if model is not None:
            trunk = {
                name: value for name, value in model.state_dict().items() if not is_of_head(name, bench.header.head)
            }
            following.load_state_dict(trunk, strict=False)
        model = following
        batches = bench.feed(images.train, training=True)
        lwf_train(model, nn.ModuleList(heads.values()), batches, bench.recipe_for(seed), bench.header.head)
        heads[task_name(folder)], held_out[task_name(folder)] = model.get_classifier(), images.held_out.split
    size = sum(bytes_of(part) for part in (model, *heads.values())) - bytes_of(model.get_classifier())
    for name, split in held_out.items():
        if not bench.has("lwf", order, seed, name):  # by a run that was stopped between two tasks
            bench.note("lwf", order, seed, name, top1_with(model, heads[name], bench.feed(split)), size)


def lwf_train(model: nn.Module, heads: nn.ModuleList, batches: Any, recipe: Recipe, head: tuple[str, ...]) -> None:
    """Cross-entropy with the new labels, and at a temperature of 2 the divergence from each old head's answers.

    The latter weighs 4, the square of the temperature, as retraining's teacher does; 1 in the paper, which also trains
    the new head alone at first.
    """
    device = next(model.parameters()).device
    before, then = (copy.deepcopy(part).eval().requires_grad_(False) for part in (model, heads))
    learners = nn.ModuleList([model, heads])
    optimized = optimization(
        recipe, {f"0.{name}": multiple for name, multiple in multiples(model, recipe, head).items()}
    )
    optimizer = optimized.optimizer(learners, dict(learners.named_parameters()))
    scheduler = optimized.scheduler(optimizer, recipe.epochs, len(batches))
    for epoch in range(recipe.epochs):
        model.train()
        stop_statistics(model)
        for step, (images, labels) in enumerate(batches):
            images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
            features = features_of(model, images)  # (N, features)
            loss = F.cross_entropy(model.get_classifier()(features), labels)
            with torch.no_grad():
                past = features_of(before, images) if heads else features
                wanted = [F.log_softmax(head(past) / 2, 1) for head in then]
            for head, target in zip(heads, wanted, strict=True):
                given = F.log_softmax(head(features) / 2, 1)
                loss = loss + 4 * F.kl_div(given, target, log_target=True, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step_update(epoch * len(batches) + step + 1)


def optimization(recipe: Recipe, multiples: dict[str, float]) -> Optimization:
    return Optimization(recipe.opt, recipe.lr, recipe.sched, recipe.weight_decay, rates=multiples)


def features_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model.forward_head(model.forward_features(images), pre_logits=True)


@torch.inference_mode()
def top1_with(model: nn.Module, head: nn.Module, batches: Any) -> float:
    model.eval()
    device = next(model.parameters()).device
    right = seen = 0
    for images, labels in batches:
        right += int((head(features_of(model, images.to(device))).argmax(1).cpu() == labels).sum())
        seen += len(labels)
    return 100 * right / seen


def bytes_of(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


# --- the table ------------------------------------------------------------------------------------------------------


def table(bench: Bench) -> list[list[str]]:
    """Errors in percent, means over orders and seeds with their standard deviation, and the sizes in MB (1e6 bytes)."""
    tasks = ([bench.base.name] if bench.base else []) + [task_name(folder) for folder in bench.folders]
    ways = sorted({row["way"] for row in bench.rows}, key=lambda way: (WAYS.index(way.split()[0]), way))
    columns = [[errors(bench, way, task) for task in tasks] for way in ways]
    lines = [["error %", *ways]]
    lines += [[task, *(spread(column[row]) for column in columns)] for row, task in enumerate(tasks)]
    means = [statistics.mean(statistics.mean(cell) for cell in column if cell) for column in columns]
    lines.append(["mean"] + [f"{mean:.1f}" for mean in means])
    lines.append(["MB"] + [f"{size_of(bench, way, tasks) / 1e6:.1f}" for way in ways])
    return lines


def errors(bench: Bench, way: str, task: str) -> list[float]:
    return [100 - row["top1"] for row in bench.rows if (row["way"], row["task"]) == (way, task)]


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def size_of(bench: Bench, way: str, tasks: list[str]) -> float:
    """The bytes of the one file, or of as many networks, or of one network and so many classifiers."""
    sizes = {row["task"]: row["bytes"] for row in bench.rows if row["way"] == way}
    if way == "individual":
        return sum(sizes.get(task, 0) for task in tasks)
    if way == "classifier":
        return sum(sizes.get(task, 0) for task in tasks) + sum(array.nbytes for array in bench.start.values())
    return max(sizes.values())


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def in_order(bench: Bench, order: str) -> list[Path]:
    """The folders by their numbers, from 1."""
    return [bench.folders[int(number) - 1] for number in order.split(",")]


@with_settings(*SETTINGS)
def main(
    out: Annotated[Path, Argument(help="A folder for what is measured.")],
    start: Annotated[Path, Argument(help="The network, as `packnet init` made it: all free, or kept with --prune 0.")],
    folders: Annotated[list[Path], Argument(help="Folders of images, numbered from 1.")],
    settings: dict[str, Any],
    base: Annotated[list[Path] | None, Option(help="The network kept and pruned; one for each --prune.")] = None,
    prune: Annotated[list[str] | None, Option(help="Fraction for all tasks but the last, or 'equal' shares.")] = None,
    order: Annotated[list[str] | None, Option(help="For example 2,1,3; may be repeated.")] = None,
    seeds: Annotated[int, Option(min=1, help="How many seeds, from 0.")] = 1,
    way: Annotated[list[str] | None, Option(help=f"{', '.join(WAYS)}; may be repeated; default: all.")] = None,
    threads: Annotated[int | None, Option(min=1, help="Of torch, on the CPU.")] = None,
) -> None:
    """Measure what is not measured yet, then print the table and write it to OUT/table.csv."""
    for one in way or []:
        if one not in WAYS:
            raise typer.BadParameter(f"there is no way {one!r}; there are {', '.join(WAYS)}")
    numbers = [str(number + 1) for number in range(len(folders))]
    for one in order or []:
        if len(set(one.split(",")) & set(numbers)) < len(one.split(",")):
            raise typer.BadParameter(f"--order {one} is not of the folders' numbers, 1 to {len(folders)}, each once")
    ways, prunes = way or WAYS, prune or ["equal"]
    bases = base or [None] * len(prunes)
    if len(bases) != len(prunes):
        raise typer.BadParameter(f"there are {len(bases)} --base and {len(prunes)} --prune; give one base for each")
    for fraction in prunes:
        if fraction != "equal":
            fraction_of(fraction, "equal")
    if threads:
        torch.set_num_threads(threads)
    bench = Bench(out, start, folders, recipe_from(settings))
    for kept in ([start] if bench.base else []) + (base or []):
        if not any(task.has_images for task in format.load_header(kept).tasks[:1]):
            raise typer.BadParameter(f"{kept} keeps no task of known accuracy; make it by init --prune P --data DIR")
    pairs = [*zip(bases, prunes, strict=True)]
    bench.check_settings([(packnet_way(*pair), pair[0]) for pair in pairs if pair[0]])
    if bench.base:
        for one, size in (("individual", sum(array.nbytes for array in bench.start.values())), ("classifier", 0)):
            if one in ways and not bench.has(one, "", 0, bench.base.name):
                bench.note(one, "", 0, bench.base.name, bench.base.top1, size)
    for seed in range(seeds):
        for folder in folders:
            for measure in (individual, classifier):
                if measure.__name__ in ways and not bench.has(measure.__name__, "", seed, task_name(folder)):
                    measure(bench, folder, seed)
        for key in order or [",".join(numbers)]:
            if "lwf" in ways:
                lwf(bench, key, seed)
            for kept, fraction in pairs:
                if "packnet" in ways:
                    packnet(bench, key, kept, fraction, seed)
    lines = table(bench)
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    for number, line in enumerate(lines):
        print("| " + " | ".join(line) + " |" + ("\n" + "|---" * len(line) + "|" if number == 0 else ""))


if __name__ == "__main__":
    with in_one_line(lambda: "paper_table.py"):
        try:
            typer.run(main)
        except InterruptedRun:
            raise InterruptedRun("interrupted; the same command goes on from here") from None
