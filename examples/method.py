"""The paper's method, step by step, on a network of two small layers: method.py.

Three tasks, each to compute another function of the same eight numbers, are packed into 8 x 6 and 6 x 1 weights. After
each step the owners are shown, a character for each weight: a digit is a task, a dot is free.
"""

import numpy as np
import torch

from packnet_cli.artifact import masks

STEPS, RATE = 400, 0.2
LAYERS = {"first": (8, 6), "second": (6, 1)}  # inputs, outputs
PRUNE = {1: 2 / 3, 2: 1 / 2, 3: 0.0}  # equal shares for three tasks

Weights = dict[str, np.ndarray]


def answer(weights: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """What the network makes of inputs (N, 8): (N, 1)."""
    return torch.tanh(inputs @ weights["first"]) @ weights["second"]


def train(shared: Weights, mask: Weights, task: int, inputs: torch.Tensor, wanted: torch.Tensor) -> float:
    """Train the weights that `task` owns, on top of the frozen ones that it sees; returns the mean squared error."""
    weights = {name: torch.tensor(masks.keep_visible(shared[name], mask[name], task)) for name in shared}
    for value in weights.values():
        value.requires_grad_()
    for _ in range(STEPS):
        loss = (answer(weights, inputs) - wanted).square().mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(weights.items(), gradients, strict=True):
                # An earlier task's weights get gradients like any other. They are left where they are.
                own = torch.from_numpy(mask[name] == task)
                value.copy_(torch.where(own, value - RATE * gradient, value))
    for name, value in weights.items():
        shared[name] = np.where(mask[name] == task, value.detach().numpy(), shared[name])
    return loss.item()


def show(step: str, mask: Weights, loss: float | None = None) -> None:
    owners = "  ".join("".join(".123"[index] for index in mask[name].reshape(-1)) for name in mask)
    print(f"{step:38} {owners}" + (f"  error {loss:.4f}" if loss is not None else ""))


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shared = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in LAYERS.items()}
    mask = {name: np.zeros(shape, np.uint8) for name, shape in LAYERS.items()}
    inputs = torch.randn(256, 8)
    functions = [torch.tanh(inputs @ torch.randn(8, 2) / 2).sum(1, keepdim=True) for _ in PRUNE]
    show("a network, all of its weights free", mask)
    added: dict[int, Weights] = {}
    for (task, prune), wanted in zip(PRUNE.items(), functions, strict=True):
        mask = {name: masks.claim_free(mask[name], task) for name in mask}
        show(f"task {task} claims what is free, trains", mask, train(shared, mask, task, inputs, wanted))
        if prune:
            for name in mask:  # the smallest of its own in each layer become free again, and 0
                count = round(prune * masks.count_owned(mask[name], task))
                mask[name] = masks.release_smallest(mask[name], shared[name], task, count)
                shared[name] = masks.keep_visible(shared[name], mask[name], task)
            show(
                f"  releases {100 * prune:.0f} % of each layer, retrains",
                mask,
                train(shared, mask, task, inputs, wanted),
            )
        added[task] = {name: masks.keep_visible(shared[name], mask[name], task) for name in shared}
    for task, weights in added.items():
        now = {name: masks.keep_visible(shared[name], mask[name], task) for name in shared}
        same = all(now[name].tobytes() == weights[name].tobytes() for name in shared)
        print(f"task {task} is {'to the bit' if same else 'NOT'} what it was when it was added")


if __name__ == "__main__":
    main()
