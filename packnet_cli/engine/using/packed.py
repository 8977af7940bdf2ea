"""A packed model in memory, which gives plain timm networks and switches them from task to task."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from packnet_cli.artifact import masks
from packnet_cli.artifact.format import Artifact, State, Task
from packnet_cli.engine import network
from packnet_cli.engine.data.pictures import convert
from packnet_cli.errors import NetworkError

Transform = Callable[[Image.Image], torch.Tensor]


class Packed:
    """The tasks of a packed model, each ready to run. Everywhere, `task` is a task's index or name."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.transform = transform(network.preprocessing(artifact.header))  # the same for every task

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The metadata of each task: its index, name, class names in order of label, accuracy, ..."""
        return self.artifact.header.tasks

    def task(self, task: str | int) -> Task:
        """The metadata of one task. Raises TaskError that lists the existing ones."""
        return self.artifact.header.task(task)

    @torch.inference_mode(False)  # of its caller, in which the network could never again be switched outside of it
    def model(self, task: str | int) -> nn.Module:
        """A plain timm network that runs one task, in eval mode, on the CPU.

        It takes images (N, C, H, W) as `transform` makes them and returns logits (N, classes). Its `pretrained_cfg`
        holds the class names ("label_names") and the preprocessing, as timm's functions expect. Raises TaskError;
        NetworkError if timm builds a different network than was packed.
        """
        found, header = self.task(task), self.artifact.header
        model = network.build_blank(header, len(found.classes))
        network.check_fits(model, header, self._tensors(found), len(found.classes))
        self._write(model, found)
        return model.eval()

    def switch(self, model: nn.Module, task: str | int) -> None:
        """Switch a network that `model()` returned to another task: it then computes what a new one would, to the bit.

        It stays the same object on the same device, and its weights are written once, in place. Only a head with a
        different number of classes gets new parameters. Raises TaskError; NetworkError if it is a different network.
        """
        found = self.task(task)
        if not network.fits(model, self.artifact.header, self._tensors(found), len(found.classes)):
            raise NetworkError("the network to switch is not one of this packed model; take one from Packed.model()")
        self._write(model, found)

    def _tensors(self, task: Task) -> State:
        return self.artifact.shared | self.artifact.own[task.index]

    @torch.inference_mode()  # in which a network that was made so, by a copy or `.to(...)`, can be written, too
    def _write(self, model: nn.Module, task: Task) -> None:
        artifact, own = self.artifact, self.artifact.own[task.index]
        with torch.inference_mode(False):  # so that a new head can be trained
            network.resize_head(model, artifact.header, own)
        network.write(model, own)
        network.describe(model, artifact.header, task)
        targets = model.state_dict()
        for name, values in artifact.shared.items():
            target = targets[name]
            if target.device.type == "cpu" and target.dtype == torch.float32:
                masks.keep_visible(values, artifact.mask[name], task.index, out=target.numpy())
            else:
                target.copy_(torch.from_numpy(masks.keep_visible(values, artifact.mask[name], task.index)))


def transform(data_config: dict[str, Any]) -> Transform:
    """The test-time preprocessing: a PIL image of any mode becomes a normalised float32 tensor (C, H, W)."""
    mode = network.CHANNELS[data_config["input_size"][0]]
    with torch.device("cpu"):  # where images are read
        prepare = create_transform(**data_config, is_training=False)
    return partial(_prepared, mode=mode, prepare=prepare)  # picklable, so it can be sent to processes that read images


def _prepared(image: Image.Image, *, mode: str, prepare: Transform) -> torch.Tensor:
    return prepare(convert(image, mode)).float()  # torch's default type may be another
