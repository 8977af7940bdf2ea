"""Convolutions on a CPU, where they learn: the same function, its gradients right, and its evaluation to the bit."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from packnet_cli.engine import convolutions, network
from packnet_cli.engine.training.train import Teacher

CHANNELS_LAST = torch.channels_last


def test_a_gradient_that_onednn_would_get_wrong():
    """Of strided convolutions of single pixels with few channels, channels last, as RepVGG begins with."""
    torch.manual_seed(0)
    model = network.place(nn.Sequential(nn.Conv2d(3, 64, 1, 2)), torch.device("cpu"))
    images, exact = torch.randn(2, 3, 96, 96), nn.Conv2d(3, 64, 1, 2).double()
    exact.load_state_dict(model[0].state_dict())
    for net, given in ((model, images.contiguous(memory_format=CHANNELS_LAST)), (exact, images.double())):
        net(given).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-2)
    with torch.no_grad():
        torch.testing.assert_close(model(images).double(), exact(images.double()), rtol=1e-5, atol=1e-5)


def test_a_gradient_that_torch_would_get_wrong():
    """Of a view of a map of one column, if the convolution is in groups."""
    plain = nn.Conv2d(4, 4, 1, (1, 3), groups=2).double().to(memory_format=CHANNELS_LAST)
    sampling = copy.deepcopy(plain)
    convolutions.replace(sampling)
    assert type(sampling) is convolutions._Sampling
    images = torch.randn(1, 4, 5, 1).double().contiguous(memory_format=CHANNELS_LAST)
    for module in (plain, sampling):
        module(images).square().sum().backward()
    torch.testing.assert_close(sampling.weight.grad, plain.weight.grad)


@pytest.fixture(params=["AVX2", "AVX512"])
def processor(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        (3, 1, 1, (1, 1)),
        (3, 1, 1, (2, 2)),
        (3, 2, 1, (4, 3)),
        (7, 1, 0, (7, 7)),
        ((3, 1), (1, 2), (1, 0), (1, 3)),
        (7, 2, 3, (2, 1)),
        (3, 2, 2, (1, 1)),
        (1, 1, 0, (1, 1)),
        (1, 1, 0, (2, 2)),
        (3, 1, 1, (4, 4)),
        (5, 1, 0, (2, 2)),
    ],
)
def test_few_pixels_as_a_product_of_matrices(processor, monkeypatch, kernel, stride, padding, size):
    """What comes out and all gradients, of maps of few pixels and of more (16); of none, torch's own error."""
    monkeypatch.setattr(convolutions, "WIDE", 6)
    products = []
    linear = F.linear
    monkeypatch.setattr(convolutions.F, "linear", lambda *given: products.append(given) or linear(*given))
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 6, kernel, stride, padding).double().to(memory_format=CHANNELS_LAST)
    small = nn.Conv2d(5, 6, kernel, stride, padding).double().to(memory_format=CHANNELS_LAST)
    small.load_state_dict(plain.state_dict())
    convolutions.replace(nn.Sequential(small))
    assert type(small) is convolutions._Small
    images = torch.randn(3, 5, *size).double()
    if kernel == 5:
        for module in (plain, small):
            with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
                module(images)
        return
    found = []
    for module in (plain, small):
        seen = images.clone().requires_grad_()
        logits = module(seen)
        logits.square().sum().backward()
        found.append((logits, seen.grad, module.weight.grad, module.bias.grad))
    for right, given in zip(*found, strict=True):
        torch.testing.assert_close(given, right, rtol=1e-12, atol=1e-12)
    assert len(products) == (size != (4, 4))
    assert found[1][0].is_contiguous(memory_format=CHANNELS_LAST)
    with torch.no_grad():
        assert torch.equal(plain(images), small(images))


@pytest.mark.parametrize(("kernel", "channels", "products"), [(3, 255, 1), (3, 256, 2), (1, 8, 2)])
def test_only_one_pixel_of_a_narrow_layer_with_large_filters(processor, monkeypatch, kernel, channels, products):
    found, linear = [], F.linear
    monkeypatch.setattr(convolutions.F, "linear", lambda *given: found.append(given) or linear(*given))
    layer = network.place(nn.Sequential(nn.Conv2d(2, channels, kernel, padding=kernel // 2)), torch.device("cpu"))
    for side in (1, 2, 3):
        layer(torch.zeros(1, 2, side, side))
    assert len(found) == products


def test_a_network_of_them_learns_alike_and_is_evaluated_alike(processor):
    """A ResNet that ends in one pixel: the gradients of a step; and in evaluation the same bits."""
    torch.manual_seed(0)
    plain = timm.create_model("resnet10t", num_classes=3).double().to(memory_format=CHANNELS_LAST)
    small = timm.create_model("resnet10t", num_classes=3).double()
    small.load_state_dict(plain.state_dict())
    network.place(small, torch.device("cpu"))
    assert any(type(module) is convolutions._Small for module in small.modules())
    images = torch.randn(4, 3, 32, 32).double().contiguous(memory_format=CHANNELS_LAST)
    for model in (plain, small):
        F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    for right, given in zip(plain.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(given.grad, right.grad, rtol=1e-8, atol=1e-10)
    plain.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), small.eval()(images))


def test_a_teacher_computes_by_them(processor, monkeypatch):
    """And remembers nothing of it for gradients. In two dimensions: torch may copy filters for each image of more."""
    torch.manual_seed(0)
    model = network.place(timm.create_model("resnet10t", num_classes=3), torch.device("cpu"))
    teacher = Teacher(model, 1.0, lambda model: lambda: model, amp=False)
    teacher.prepare()
    products = []
    linear = F.linear
    monkeypatch.setattr(convolutions.F, "linear", lambda *given: products.append(linear(*given)) or products[-1])
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=CHANNELS_LAST)
    assert teacher.loss(images, torch.tensor([0, 1, 2, 0]), torch.zeros(4, 3)) > 0
    assert len(products) > 1  # one is the head's
    assert not any(product.requires_grad or product.ndim > 2 for product in products)


def test_a_teacher_casts_their_weights_once(processor):
    """As those of any convolution; what it computes in bfloat16 stays the same to the bit."""
    torch.manual_seed(0)
    model = network.place(timm.create_model("resnet10t", num_classes=3), torch.device("cpu"))
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=CHANNELS_LAST)
    losses = []
    for amp in (False, True):
        teacher = Teacher(model, 1.0, lambda model: lambda: model, amp)
        kinds = {module.weight.dtype for module in teacher.model.modules() if isinstance(module, nn.Conv2d)}
        assert kinds == {torch.bfloat16 if amp else torch.float32}
        teacher.prepare()
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(teacher.loss(images, torch.tensor([0, 1, 2, 0]), torch.zeros(4, 3)))
    assert torch.equal(*losses)


def test_where_it_was_not_measured_it_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    model = network.place(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.device("cpu"))
    assert type(model[0]) is nn.Conv2d
