"""Pack folders of images into one network, and beside it train an individual network and a bare classifier for each.

One recipe for all; what is not pruned trains for all epochs in one phase, so that every column trains as long.

    python examples/compare.py --arch resnet18 --img-size 96 --prune .5 --prune .5 --prune 0 cars birds textures
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from timm.utils import random_seed
from typer import Argument, Option

from packnet_cli.artifact import format, verify
from packnet_cli.engine import data, network, pack
from packnet_cli.engine.start import parse_model_kwargs
from packnet_cli.engine.train import Freezer, evaluate, train
from packnet_cli.recipe import Recipe


def compare(
    folders: Annotated[list[Path], Argument(help="Folders of images, in the order in which they are packed.")],
    arch: Annotated[str, Option()],
    prune: Annotated[list[float], Option(help="Prune fraction of each task, in the same order.")],
    weights: Annotated[Path | None, Option()] = None,
    model_kwargs: Annotated[list[str] | None, Option(metavar="KEY=VALUE")] = None,
    img_size: int = 224,
    mean: float | None = None,
    std: float | None = None,
    epochs: int = Recipe.epochs,
    retrain_epochs: int = Recipe.retrain_epochs,
    lr: float = Recipe.lr,
    retrain_lr: float = Recipe.retrain_lr,
    sched: str = Recipe.sched,
    opt: str = Recipe.opt,
    crop_scale: float = Recipe.crop_scale,
    prune_steps: int = Recipe.prune_steps,
    restart: str = Recipe.restart,
    norm: str = Recipe.norm,
    seed: int = 0,
    workers: int = 0,
    threads: Annotated[int | None, Option(help="Of torch, on the CPU.")] = None,
    only: Annotated[str, Option(help="packed, individual, classifier or all.")] = "all",
) -> None:
    """Print a JSON line for each task and way, then the table."""
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(
        epochs=epochs,
        retrain_epochs=retrain_epochs,
        lr=lr,
        retrain_lr=retrain_lr,
        sched=sched,
        opt=opt,
        crop_scale=crop_scale,
        prune_steps=prune_steps,
        restart=restart,
        norm=norm,
        seed=seed,
    )
    unpruned = dataclasses.replace(recipe, epochs=epochs + retrain_epochs)
    rows = {folder.name: {} for folder in folders}

    def note(way: str, folder: Path, **figures: float) -> None:
        rows[folder.name][way] = figures
        print(json.dumps({"way": way, "task": folder.name, "seed": seed, **figures}), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        start, packed = Path(scratch, "start.st"), Path(scratch, "packed.st")
        for path in (start, packed):
            pack.init(
                path,
                arch,
                weights=weights,
                model_kwargs=parse_model_kwargs(model_kwargs or []),
                data_config={"img_size": img_size, "mean": mean and (mean,), "std": std and (std,)},
            )
        if only in ("packed", "all"):
            for folder, fraction in zip(folders, prune, strict=True):
                used = recipe if fraction else unpruned
                after = pack.add_task(packed, folder, prune=fraction, recipe=used, workers=workers)
                assert not verify.altered_tasks(after)
                note("packed", folder, **after.header.tasks[-1].accuracy)
        for folder in folders:
            if only in ("individual", "all"):
                alone = Path(scratch, "alone.st")
                alone.write_bytes(start.read_bytes())
                after = pack.add_task(alone, folder, recipe=unpruned, workers=workers)
                note("individual", folder, top1=after.header.tasks[0].top1)
            if only in ("classifier", "all"):
                note("classifier", folder, top1=classifier_only(start, folder, unpruned, workers))
    print_table(rows)


def classifier_only(start: Path, folder: Path, recipe: Recipe, workers: int) -> float:
    """Top-1 in percent of a new head on the starting network, which stays as it is."""
    random_seed(recipe.seed)
    artifact = format.load(start)
    images = data.open_training(folder, val_split=recipe.val_split, seed=recipe.seed)
    model = network.build(artifact.header, len(images.classes))
    network.write(model, artifact.shared | artifact.own[0])
    model = network.place(model, network.choose_device("auto"))
    for name, kind in network.classify(model, artifact.header.head).items():
        if name in dict(model.named_parameters()):
            model.get_parameter(name).requires_grad_(kind is network.Kind.HEAD)
    feed = dict(batch_size=recipe.batch_size, workers=workers, device=next(model.parameters()).device)
    epochs = train(
        model,
        data.batches(images.train, artifact.header.data_config, training=True, crop_scale=recipe.crop_scale, **feed),
        Freezer(model),
        epochs=recipe.epochs,
        lr=recipe.lr,
        opt=recipe.opt,
        weight_decay=recipe.weight_decay,
        sched=recipe.sched,
        train_norm=False,
        amp=False,
        progress=lambda step: None,
    )
    for _ in epochs:
        pass
    return evaluate(
        model, data.batches(images.held_out.split, artifact.header.data_config, training=False, **feed)
    ).top1


def print_table(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    """Top-1 in percent, as Markdown."""
    print("| task | packed: dense / pruned / retrained | individual | classifier only |\n|---|---|---|---|")
    for task, ways in rows.items():
        packed = " / ".join(f"{top1:.1f}" for top1 in ways.get("packed", {}).values())
        alone, head = (f"{ways[way]['top1']:.1f}" if way in ways else "" for way in ("individual", "classifier"))
        print(f"| {task} | {packed} | {alone} | {head} |")


if __name__ == "__main__":
    typer.run(compare)
