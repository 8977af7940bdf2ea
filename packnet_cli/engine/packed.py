"""A packed model in memory, from which plain timm networks are taken and switched from task to task."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from packnet_cli.artifact import masks
from packnet_cli.artifact.format import Artifact, Task
from packnet_cli.engine import data, network
from packnet_cli.errors import NetworkError

Transform = Callable[[Image.Image], torch.Tensor]


class Packed:
    """The tasks of a packed model, each ready to run. `task` is everywhere the index or the name of one."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.transform = transform(artifact.header.data_config)  # the same for every task

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is known of each task: its index, name, class names in order of label, accuracy, ..."""
        return self.artifact.header.tasks

    def task(self, task: str | int) -> Task:
        """What is known of one task. Raises TaskError that lists those there are."""
        return self.artifact.header.task(task)

    def model(self, task: str | int) -> nn.Module:
        """A plain timm network that runs one task, in eval mode, on the CPU.

        It takes images (N, C, H, W) as `transform` makes them and returns logits (N, classes). Its `pretrained_cfg`
        holds the class names ("label_names") and the preprocessing, as timm's functions expect. Raises TaskError.
        """
        found = self.task(task)
        model = network.build(self.artifact.header, len(found.classes))
        network.write(model, self.artifact.state(found.index))
        network.describe(model, self.artifact.header, found)
        return model.eval()

    @torch.no_grad()
    def switch(self, model: nn.Module, task: str | int) -> None:
        """Make a network that `model()` returned run another task, to the bit as a new one would.

        It stays the same object on the same device, and its weights are written once, in place. Only a head with
        another number of classes gets new parameters. Raises TaskError; NetworkError if the network is another one.
        """
        found, artifact = self.task(task), self.artifact
        own = artifact.own[found.index]
        head = tuple(f"{prefix}." for prefix in artifact.header.head)
        wanted, there = (
            {name: None if name.startswith(head) else tuple(value.shape) for name, value in state.items()}
            for state in (artifact.shared | own, model.state_dict())
        )
        if wanted != there:
            raise NetworkError("the network to switch is not one of this packed model; take one from Packed.model()")
        network.resize_head(model, artifact.header, own)
        network.write(model, own)
        network.describe(model, artifact.header, found)
        targets = model.state_dict()
        for name, values in artifact.shared.items():
            target = targets[name]
            if target.device.type == "cpu" and target.dtype == torch.float32:
                masks.keep_visible(values, artifact.mask[name], found.index, out=target.numpy())
            else:
                target.copy_(torch.from_numpy(masks.keep_visible(values, artifact.mask[name], found.index)))


def transform(data_config: dict[str, Any]) -> Transform:
    """The preprocessing at test time: a PIL image of any mode becomes a tensor (C, H, W), normalised float32."""
    mode = network.CHANNELS[data_config["input_size"][0]]
    prepare = create_transform(**data_config, is_training=False)
    return lambda image: prepare(data.convert(image, mode))
