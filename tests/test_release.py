"""Which weights a task releases; where some taps see nothing but padding, its share of the others, too."""

import numpy as np
import pytest
import torch
from conftest import CPU, QUICK
from timm.layers import create_conv2d
from torch import nn

from packnet_cli.artifact import format
from packnet_cli.engine import pack
from packnet_cli.engine.training.release import release_goals, release_in_steps
from packnet_cli.engine.training.taps import taps_in_use
from packnet_cli.recipe import Recipe


@pytest.mark.parametrize("pixels", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (7, 3), "padding": (3, 1), "stride": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 3, "padding": "same", "stride": 2},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_taps_in_use_are_those_that_have_a_gradient(how, pixels):
    convolution = create_conv2d(2, 3, **how)
    size = 2, pixels, pixels + 1
    convolution(torch.ones(1, *size)).sum().backward()
    used = (convolution.weight.grad != 0).any(0).any(0).numpy()
    found = taps_in_use(nn.Sequential(convolution), size)
    assert np.array_equal(found.get("0.weight", np.ones_like(used)), used)
    assert found or used.all()


@pytest.mark.parametrize("dones", [(1.0,), (0.2, 0.6, 1.0)])
def test_the_same_fraction_goes_of_the_taps_in_use_and_of_the_others(dones):
    rng = np.random.default_rng(0)
    used = np.zeros((3, 3), bool)
    used[1:, 1:] = True
    values = (rng.standard_normal((20, 10, 3, 3)) * (0.01 + used)).astype(np.float32)
    mask = {"a": rng.integers(0, 3, values.shape).astype(np.uint8)}
    given, before, owned = mask["a"], mask["a"].copy(), int((mask["a"] == 2).sum())
    layers = {"a": nn.Parameter(torch.from_numpy(values.copy()).contiguous(memory_format=torch.channels_last))}
    for done in dones:
        release_in_steps(mask, layers, 2, {"a": (owned, owned // 2)}, done, {"a": used})
    kept, left = mask["a"] == 2, layers["a"].detach().numpy()
    assert kept.sum() == owned - owned // 2
    for part in (used, ~used):
        was, now, size = (before == 2)[..., part], kept[..., part], np.abs(values[..., part])
        assert abs(now.sum() - was.sum() / 2) <= len(dones)
        assert size[now].min() >= size[was & ~now].max()
    assert np.array_equal(mask["a"][before != 2], before[before != 2])
    assert np.array_equal(given, before)  # a search goes back to it
    assert np.array_equal(left[before != 0][kept[before != 0]], values[before != 0][kept[before != 0]])
    assert not left[(before == 2) & ~kept].any()


def test_where_a_task_owns_nothing_nothing_is_released():
    used = np.eye(3, dtype=bool)
    mask, layers = {"a": np.ones((2, 1, 3, 3), np.uint8)}, {"a": nn.Parameter(torch.ones(2, 1, 3, 3))}
    release_in_steps(mask, layers, 2, {"a": (0, 0)}, 1.0, {"a": used})
    assert (mask["a"] == 1).all() and (layers["a"] == 1).all()


def test_a_task_leaves_half_of_what_is_of_use(tmp_path, folders):
    """On one pixel the taps beside the middle are never trained, and small: only these used to be left."""
    path = tmp_path / "packed.st"
    pack.init(path, "resnet10t", pretrained=False, data_config={"img_size": 32})
    artifact = format.load(path)
    artifact.shared["layer4.0.conv2.weight"][...] *= 0.1 + np.pad([[1]], 1)
    format.save(format.make(artifact.header, artifact.shared, artifact.mask, artifact.own), path)
    for index, share in ((1, 0.5), (2, 0.25)):
        after = pack.add_task(path, folders[index], prune=0.5, recipe=QUICK, machine=CPU)
        middle = after.mask["layer4.0.conv2.weight"][:, :, 1, 1] == index
        assert middle.mean() == pytest.approx(share, abs=0.01)


def test_most_weights_go_first():
    """By the cubic schedule, seven of eight half-way; what is gone already is not gone again."""
    values = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    mask, layers = {"a": np.ones(values.shape, np.uint8)}, {"a": nn.Parameter(torch.from_numpy(values))}
    for done, released in ((0.5, 700), (0.25, 700), (0.75, 788), (1.0, 800)):
        release_in_steps(mask, layers, 1, {"a": (1000, 800)}, done, {})
        assert (mask["a"] == 0).sum() == released == (layers["a"] == 0).sum()


@pytest.mark.parametrize("rank", ["global", "adaptive"])
def test_layers_compete_by_magnitude(rank):
    """Whatever the signs: one whose weights are all negative releases as many as if they were positive."""
    values = {"a": np.linspace(1, 2, 100, dtype=np.float32), "b": np.linspace(1.1, 3, 100, dtype=np.float32)}
    mask = {layer: np.ones(100, np.uint8) for layer in values}
    recipe = Recipe(rank=rank)
    goals = release_goals(mask, 1, 0.5, recipe, lambda: values)
    assert goals == release_goals(mask, 1, 0.5, recipe, lambda: values | {"b": -values["b"]})
    assert goals["a"][1] != goals["b"][1] > 0


@pytest.mark.parametrize(("rank", "released"), [("global", (100, 0)), ("adaptive", (50, 50))])
def test_adaptive_layers_compete_whatever_their_scale(rank, released):
    """Where one is a thousand times the other, magnitudes alone would take all of the smaller."""
    values = {"a": np.linspace(1, 2, 100, dtype=np.float32), "b": np.linspace(1000, 2000, 100, dtype=np.float32)}
    mask = {layer: np.ones(100, np.uint8) for layer in values}
    goals = release_goals(mask, 1, 0.5, Recipe(rank=rank), lambda: values)
    assert tuple(count for _, count in goals.values()) == released
