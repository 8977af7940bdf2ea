"""How certain a task is: entropies that can be compared between tasks, by a temperature for each (Guo et al. 2017).

A network is as a rule more, or less, certain than it is right, and each task's in its own way. Its logits divided by
one number, its temperature, are as certain as they are right on held-out images; the order of the classes stays.
Source: arXiv 1706.04599, section 4.
"""

import math

import numpy as np
import torch
from torch import nn

from packnet_cli.engine import distributed
from packnet_cli.engine.compute import full_precision
from packnet_cli.engine.measure import Batches, answers

RANGE = 1e-2, 1e2  # of a temperature
HALVINGS = 40


@full_precision()
def measure_temperature(model: nn.Module, batches: Batches) -> float:
    """The temperature of a task, by its network and its held-out images."""
    # numpy arrays: older versions of torch warn when they gather tensors as objects.
    here = [(logits.float().cpu().numpy(), labels.cpu().numpy()) for logits, labels in answers(model, batches)]
    found = [pair for part in distributed.gathered(here) for pair in part]  # each process has its own images
    logits, labels = (torch.from_numpy(np.concatenate(each)) for each in zip(*found, strict=True))
    return fit_temperature(logits, labels)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature at which logits (N, classes) give the labels (N,) the greatest likelihood.

    One more image is counted, of which every class is as likely: N images of which none is wrong do not show that none
    ever will be (Platt 1999 reasons alike), and without it the temperature would be 0.
    """
    others = 1 / (len(labels) + 1)  # the part of that image
    right = logits.gather(1, labels[:, None]).double().mean()
    target = (1 - others) * right + others * logits.double().mean()
    low, high = (math.log(bound) for bound in RANGE)
    for _ in range(HALVINGS):  # the mean logit that is expected falls with the temperature, from the greatest
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1).double().mean()
        low, high = (middle, high) if expected > target else (low, middle)
    return round(math.exp((low + high) / 2), 4)


def entropies(logits: torch.Tensor, temperature: float | None) -> torch.Tensor:
    """The entropy (N,) of what logits (N, classes) say at a temperature, None being 1: uncalibrated.

    As a share of the maximum for so many classes: 0 is certain, 1 a mere guess.
    """
    probabilities = (logits.float() / (temperature or 1)).softmax(1)
    per_class: torch.Tensor = torch.special.entr(probabilities)
    return per_class.sum(1) / math.log(max(2, logits.shape[1]))
