"""Settles what is left open: which of two recipes, and a batch size that fits into the device's memory."""

import dataclasses
import gc
import math
from pathlib import Path

import torch
from timm.utils import decay_batch_step

from packnet_cli.artifact.format import Artifact
from packnet_cli.engine import distributed
from packnet_cli.engine.claim import Claim
from packnet_cli.engine.data import splits
from packnet_cli.engine.device import workable_batches
from packnet_cli.engine.modes import training_on
from packnet_cli.engine.training.checkpoint import interrupted_run
from packnet_cli.engine.training.rates import has_norm
from packnet_cli.engine.training.task import TaskInTraining
from packnet_cli.errors import UsageError, is_out_of_memory
from packnet_cli.machine import Machine
from packnet_cli.progress import Say, silent
from packnet_cli.recipe import FEW_STEPS, AtMost, Recipe


def choose_recipe(
    artifact: Artifact, images: splits.TrainingImages, recipe: Recipe, few_steps: Recipe, say: Say
) -> Recipe:
    """`recipe`, or `few_steps` if the former means fewer than FEW_STEPS steps on a network with norms."""
    steps = recipe.epochs * math.ceil(len(images.train.paths) / recipe.batch_size)
    if few_steps == recipe or not has_norm(artifact) or steps >= FEW_STEPS:
        return recipe
    taken, other = (f"{each.opt}, lr {each.lr:g}, {each.sched} schedule" for each in (few_steps, recipe))
    say(f"few steps ({steps:,}): recipe adamw ({taken}), not sgd ({other})")
    return few_steps


def fit_batch_size(
    path: Path,
    claim: Claim,
    images: splits.TrainingImages,
    recipe: Recipe,
    machine: Machine,
    *,
    retrain: bool,
    resume: bool,
    say: Say,
) -> Recipe:
    """The recipe with a batch size that fits into memory, if it leaves the size open (`AtMost`).

    It is that of the run to `resume`, if there is one; else the size is lowered until a rehearsal succeeds. The result
    is to the bit that of a run given this size and this recipe. Raises UsageError if not one image fits.
    """
    most = recipe.batch_size
    if not isinstance(most, AtMost) or not images.train.paths:
        return dataclasses.replace(recipe, batch_size=int(most))
    if distributed.world() > 1:
        raise UsageError("--batch-size auto is for one process; give several a number, of which each takes its part")
    there = interrupted_run(path).get("recipe", {}).get("batch_size") if resume else None
    if there is not None:
        return dataclasses.replace(recipe, batch_size=there)
    size = int(most)
    with workable_batches(1):  # its error, of too few images for batch norm, can only come from the smallest size
        while not _fits(claim, images, dataclasses.replace(recipe, batch_size=size), machine, retrain):
            gc.collect()  # reference cycles may still hold the memory of the failed attempt
            torch.cuda.empty_cache()
            size = decay_batch_step(size)
            if not size:
                raise UsageError("the device's memory is not enough for one image; try a smaller network or image size")
    say(f"batches of {size}" + (f": for {most} the device's memory is not enough" if size < most else ""))
    return dataclasses.replace(recipe, batch_size=size)


def _fits(claim: Claim, images: splits.TrainingImages, recipe: Recipe, machine: Machine, retrain: bool) -> bool:
    """Whether training on a batch of the recipe's size fits into memory."""
    batch = splits.Split(images.train.paths[: recipe.batch_size], images.train.labels[: recipe.batch_size])
    images = dataclasses.replace(images, train=batch, held_out=None)
    try:
        with training_on(machine):
            TaskInTraining("", claim, images, recipe, dataclasses.replace(machine, workers=0), silent).rehearse(
                retrain=retrain
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
