"""The paper's method a second time, as a textbook has it (section 3): `--recipe paper` makes the same networks."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from conftest import CPU
from torch import nn
from torch.nn import functional as F

from packnet_cli.artifact import format
from packnet_cli.engine import network, pack
from packnet_cli.engine.training import freezer
from packnet_cli.engine.training import task as training
from packnet_cli.engine.training.freezer import LARGEST_PART
from packnet_cli.recipe import RECIPES

HIGH, LOW = 0.05, 0.02  # rates at which something is learnt in two epochs
PAPER = dataclasses.replace(RECIPES["paper"], epochs=2, retrain_epochs=2, lr=HIGH, retrain_lr=LOW, batch_size=8)
PRUNE = {1: 0.5, 2: 0.75, 3: 0.0}
HEAD = ("fc.weight", "fc.bias")


class Recorded:
    """A phase of packnet's own training: the head that it began with, and the batches of each epoch."""

    def __init__(self, model, batches):
        self.head = {name: model.state_dict()[name].clone() for name in HEAD}
        self.batches, self.epochs = batches, []

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.epochs.append([])
        for images, labels in self.batches:
            self.epochs[-1].append((images.clone(), labels.clone()))
            yield images, labels


def learn(model, owner, task, phase, rates):
    """SGD with momentum on what the task owns and on its head; on biases and norms for the pretrained network alone."""
    parameters = dict(model.named_parameters())
    moving = [value for name, value in parameters.items() if name in owner or name in HEAD or task == 1]
    optimizer = torch.optim.SGD(moving, lr=rates[0], momentum=0.9)
    for rate, batches in zip(rates, phase.epochs, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for images, labels in batches:
            model.train()
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.train(task == 1)
            optimizer.zero_grad()
            F.cross_entropy(model(images.to(memory_format=torch.channels_last)), labels).backward()
            for layer in owner:
                parameters[layer].grad[owner[layer] != task] = 0
            optimizer.step()


def prune(model, owner, task, fraction):
    """The smallest of the task's weights in each layer become 0, and no one's."""
    for layer in owner:
        weights, places = model.get_parameter(layer).data, (owner[layer] == task).nonzero(as_tuple=True)
        order = weights[places].abs().argsort(stable=True)[: round(fraction * len(places[0]))]
        released = tuple(axis[order] for axis in places)
        weights[released] = owner[layer][released] = 0


@pytest.mark.parametrize(("largest_part", "rounding"), [(0, 0), (LARGEST_PART, 5e-5)])
def test_the_papers_recipe_is_the_papers_method(tmp_path, folders, monkeypatch, largest_part, rounding):
    """A pretrained network and two more tasks: who owns which weights, and every number of theirs.

    Both learn from the same batches, by the same convolutions, and start with the same heads. Images have 64 pixels, so
    that no tap sees only padding. If packnet's optimizer has whole weights, as the textbook's, they come to the same
    bits. If it has only the trainable ones, a processor may round these otherwise, which training magnifies.
    """
    monkeypatch.setattr(freezer, "LARGEST_PART", largest_part)
    phases, path, train = [], tmp_path / "packed.st", training.train
    torch.manual_seed(1)
    pretrained = timm.create_model("test_resnet", num_classes=3)
    torch.save(pretrained.state_dict(), tmp_path / "pretrained.pt")

    def recording(model, batches, *more, **settings):
        phases.append(Recorded(model, batches))
        return train(model, phases[-1], *more, **settings)

    monkeypatch.setattr(training, "train", recording)
    given = dict(weights=tmp_path / "pretrained.pt", data_config={"img_size": 64}, data=folders[0], name="red")
    pack.init(path, "test_resnet", prune=PRUNE[1], recipe=PAPER, machine=CPU, **given)
    for task in (2, 3):
        pack.add_task(path, folders[task - 1], prune=PRUNE[task], recipe=PAPER, machine=CPU)
    artifact, phases = format.load(path), iter(phases)

    owner = {layer: torch.ones(values.shape, dtype=torch.int) for layer, values in artifact.shared.items()}
    body = {name: value for name, value in pretrained.state_dict().items() if name not in HEAD}
    for task in PRUNE:
        for layer in owner:
            owner[layer][owner[layer] == 0] = task
        phase = next(phases)
        model = timm.create_model("test_resnet", num_classes=len(phase.head["fc.bias"]))
        model.load_state_dict(body | phase.head)
        network.place(model, torch.device("cpu"))
        if task > 1:
            learn(model, owner, task, phase, [HIGH, HIGH / 10])
            phase = next(phases, None)
        if PRUNE[task]:
            prune(model, owner, task, PRUNE[task])
            learn(model, owner, task, phase, [LOW, LOW / 10 if task == 1 else LOW])  # later tasks' is constant
        expected = model.state_dict()
        body = {name: value.clone() for name, value in expected.items() if name not in HEAD}
        for name, found in artifact.state(task).items():
            np.testing.assert_allclose(found, expected[name].numpy(), rtol=0, atol=rounding, err_msg=name)
    for layer, mask in artifact.mask.items():
        assert (mask != owner[layer].numpy()).mean() <= 20 * rounding, layer
