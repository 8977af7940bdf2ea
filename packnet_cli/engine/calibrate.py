"""How certain a task is: entropies made comparable between tasks by temperature scaling (Guo et al. 2017).

Networks are usually over- or underconfident, and each task differently. Dividing a task's logits by one number, its
temperature, matches confidence to accuracy on held-out images, and keeps the order of the classes.
Source: arXiv 1706.04599, section 4.
"""

import math

import numpy as np
import torch
from torch import nn

from packnet_cli.engine import distributed
from packnet_cli.engine.measure import Loader, answers
from packnet_cli.engine.modes import matmul_precision

RANGE = 1e-2, 1e2  # of a temperature
HALVINGS = 40


@matmul_precision("highest")
def measure_temperature(model: nn.Module, batches: Loader) -> float:
    """The temperature of a task, fitted on its held-out images."""
    # numpy arrays: older versions of torch warn when they gather tensors as objects.
    here = [(logits.float().cpu().numpy(), labels.cpu().numpy()) for logits, labels in answers(model, batches)]
    found = [pair for part in distributed.gathered(here) for pair in part]  # each process has its own images
    logits, labels = (torch.from_numpy(np.concatenate(each)) for each in zip(*found, strict=True))
    return fit_temperature(logits, labels)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that maximises the likelihood of the labels (N,) given logits (N, classes).

    One extra image is counted, equally likely to be of any class: N images without an error do not show that there will
    never be one (cf. Platt 1999), and without it the temperature would then be 0.
    """
    others = 1 / (len(labels) + 1)  # the weight of that image
    right = logits.gather(1, labels[:, None]).double().mean()
    target = (1 - others) * right + others * logits.double().mean()
    low, high = (math.log(bound) for bound in RANGE)
    for _ in range(HALVINGS):  # the expected mean logit falls as the temperature rises
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1).double().mean()
        low, high = (middle, high) if expected > target else (low, middle)
    return round(math.exp((low + high) / 2), 4)


def entropies(logits: torch.Tensor, temperature: float | None) -> torch.Tensor:
    """The entropy (N,) of the softmax of logits (N, classes) at a temperature; None means 1, uncalibrated.

    As a share of the maximum for so many classes: 0 is certain, 1 a mere guess.
    """
    probabilities = (logits.float() / (temperature or 1)).softmax(1)
    per_class: torch.Tensor = torch.special.entr(probabilities)
    return per_class.sum(1) / math.log(max(2, logits.shape[1]))
