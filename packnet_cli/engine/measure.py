"""A network's logits, and its accuracy."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from packnet_cli.engine import distributed
from packnet_cli.engine.compute import in_precision
from packnet_cli.engine.modes import matmul_precision
from packnet_cli.progress import Accuracy, passing


class Loader(Protocol):
    """Loader of images (N, C, H, W), float32, and labels (N,), int64; each iteration goes through them once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@torch.inference_mode()
def answers(model: nn.Module, batches: Loader, *, amp: bool = False) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The network's logits (N, classes) for each batch, and its labels (N,), both on the network's device."""
    device = next(model.parameters()).device
    model.eval()
    with passing("measuring", len(batches)) as passed:
        for images, labels in batches:
            images = images.to(device, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=device.type == "cuda")
            with in_precision(device, amp):
                logits = model(images)
            yield logits, labels
            passed()


@matmul_precision("highest")  # so that what is measured during training holds in use
@torch.inference_mode()
def evaluate(model: nn.Module, batches: Loader, *, amp: bool = False) -> Accuracy:
    """Top-1 and top-5 accuracy over all batches; with fewer than five classes, top-5 counts all."""
    counts, seen = torch.zeros(2, dtype=torch.int64), 0
    for logits, labels in answers(model, batches, amp=amp):
        best = logits.topk(min(5, logits.shape[1])).indices  # (N, 5)
        hits = best == labels[:, None]
        # Not read in each batch: that would wait for the GPU.
        counts = counts.to(hits.device) + torch.stack((hits[:, 0].sum(), hits.sum()))
        seen += len(labels)
    top1, top5, seen = distributed.total([*counts.tolist(), seen])
    return Accuracy(100 * top1 / seen, 100 * top5 / seen, seen)
