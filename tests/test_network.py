"""timm networks: the class of every tensor, and new heads."""

import dataclasses
import signal
from functools import partial

import numpy as np
import pytest
import timm
import torch
from conftest import CPU, QUICK
from timm.models.tiny_vit import Attention
from torch import nn

from packnet_cli.artifact import format
from packnet_cli.artifact.format import Header
from packnet_cli.engine import network, pack, start
from packnet_cli.engine.device import choose_device
from packnet_cli.engine.network import Kind, kinds_of
from packnet_cli.engine.pretrained import declared
from packnet_cli.engine.training import train
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import NetworkError, UsageError


def names(kinds, kind):
    return {name for name, found in kinds.items() if found is kind}


@pytest.mark.parametrize("arch", timm.list_models("test_*"))
def test_every_tensor_of_every_family_has_a_class(arch):
    """Packed weights, head and the rest, in each of timm's network families."""
    model = timm.create_model(arch)
    head = declared(model.pretrained_cfg, "classifier")
    kinds = kinds_of(model, head)
    assert kinds.keys() == model.state_dict().keys()
    assert names(kinds, Kind.HEAD) == {n for n in kinds if n.startswith(tuple(f"{h}." for h in head))}
    sizes = {kind: sum(model.state_dict()[n].numel() for n in names(kinds, kind)) for kind in Kind}
    assert sizes[Kind.PACKED] > 5 * sizes[Kind.PER_TASK]


def test_what_is_too_small_to_share_is_per_task():
    """Biases, norm, statistics, tokens, position tables and depthwise filters."""
    kinds = kinds_of(timm.create_model("test_efficientnet"), ("classifier",))
    depthwise = [name for name in kinds if "conv_dw.weight" in name]
    assert depthwise and all(kinds[name] is Kind.PER_TASK for name in depthwise)
    kinds = kinds_of(timm.create_model("test_vit"), ("head",))
    assert kinds["cls_token"] is kinds["pos_embed"] is kinds["blocks.0.attn.qkv.bias"] is Kind.PER_TASK
    assert kinds["blocks.0.attn.qkv.weight"] is kinds["patch_embed.proj.weight"] is Kind.PACKED


def test_attention_weights_outside_a_linear_layer_are_packed():
    """nn.MultiheadAttention keeps a quarter of a network in `in_proj_weight`, in no Linear module."""
    model = nn.Module()
    model.attention, model.fc = nn.MultiheadAttention(8, 2), nn.Linear(8, 2)
    assert kinds_of(model, ("fc",))["attention.in_proj_weight"] is Kind.PACKED


class Extra(nn.Module):
    """A module with state that is neither parameter nor buffer."""

    def get_extra_state(self):
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (lambda model: setattr(model, "tied", model.body.weight), "tied is used in two places"),
        (lambda model: setattr(model, "fp16", nn.Parameter(torch.zeros(2, 2, dtype=torch.float16))), "fp16 is neither"),
        (lambda model: setattr(model, "extra", Extra()), "extra._extra_state is neither"),
    ],
)
def test_a_tensor_that_fits_no_class_is_named(odd, problem):
    """Better no packing than weights that drift unseen."""
    model = nn.Module()
    model.body, model.fc = nn.Linear(3, 3), nn.Linear(3, 2)
    kinds_of(model, ("fc",))
    odd(model)
    with pytest.raises(NetworkError, match=f"its {problem}"):
        kinds_of(model, ("fc",))


def test_a_network_without_a_head_is_refused():
    """There would be nothing to give each task."""
    with pytest.raises(NetworkError, match="no head weights"):
        kinds_of(nn.Linear(3, 3), ())


@pytest.mark.parametrize("arch", ["test_efficientnet", "test_vit", "test_convnext"])
def test_a_new_head_starts_small(arch):
    """So that what is pretrained is not drowned by what is random: within 1 / sqrt(inputs), torch's own default."""
    head = declared(timm.create_model(arch).pretrained_cfg, "classifier")
    model = network.build(Header(arch, {}, head, "random", {}), 30)
    weight = model.get_submodule(head[0]).weight
    assert weight.shape[0] == 30 and weight.abs().max() <= weight[0].numel() ** -0.5
    assert weight.std() > 0.1 * weight[0].numel() ** -0.5


@pytest.mark.parametrize("bounds", [(-2, 2), (2, 3)])  # by two ways of torch's
def test_a_blank_network_does_not_wait_for_numbers_that_never_come(monkeypatch, bounds):
    """torch draws a truncated normal again until all lies within the bounds, whatever the memory held before."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, 9.0))
    signal.alarm(20)  # this process would wait for ever
    with network._WithoutRandomNumbers():
        weight = nn.init.trunc_normal_(nn.Parameter(torch.full((4,), 9.0)), a=bounds[0], b=bounds[1])
    signal.alarm(0)
    assert weight.shape == (4,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB.", "CUDA out of memory"),
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. can't allocate memory: you", "can't allocate memory"),
    ],
)
def test_too_little_memory_names_the_batch_size(packed, folders, monkeypatch, text, told):
    """In one line, with what to try; and nothing is written. Any other error stays what it is."""
    before = packed.read_bytes()

    def fail(*arguments, **more):
        raise RuntimeError(text)

    monkeypatch.setattr(train.F, "cross_entropy", fail)
    with pytest.raises(UsageError, match=rf"not enough for batches of 8 \({told}.*try --batch-size 4"):
        pack.add_task(packed, folders[0], recipe=QUICK, machine=CPU)
    assert packed.read_bytes() == before
    text = "another"
    with pytest.raises(RuntimeError, match="another"):
        pack.add_task(packed, folders[0], recipe=QUICK, machine=CPU)


@pytest.mark.parametrize("arch", ["vgg11", "halonet_h1"])
def test_a_network_that_cannot_look_at_its_images(arch):
    """Is refused at once, and not when it is first trained."""
    with pytest.raises(NetworkError, match="cannot process images of 3 x 16 x 16 .*--img-size"):
        start.start_from(arch, weights=None, pretrained=False, model_kwargs={}, data_config={"img_size": 16})


def test_what_a_network_makes_at_its_first_look_is_no_change(tmp_path, folders):
    """ConViT has a table that its state dict leaves out, and makes it for the size of what it first sees."""
    path = tmp_path / "packed.st"
    pack.init(path, "convit_tiny", pretrained=False, data_config={"img_size": 32})
    assert pack.add_task(path, folders[0], recipe=QUICK, machine=CPU).header.tasks


def test_a_network_forgets_what_it_made_of_other_weights():
    """TinyViT's attention keeps in eval mode what its biases come to."""
    attention = Attention(8, key_dim=4, num_heads=2, attn_ratio=1, resolution=(2, 2))
    attention.eval()
    tokens, biases = torch.randn(1, 4, 8), np.random.randn(*attention.attention_biases.shape).astype(np.float32)
    with torch.inference_mode():
        before = attention(tokens)
        network.write(attention, {"attention_biases": biases})
        after = attention(tokens)
        attention.train()
        anew = attention(tokens)
    assert torch.equal(after, anew) and not torch.equal(after, before)


def test_arguments_that_timm_does_not_take():
    """Of whatever kind its error is."""
    with pytest.raises(NetworkError, match="timm cannot build test_resnet with .*act_layer"):
        network.create("test_resnet", {"act_layer": "foo"})
    with pytest.raises(NetworkError, match="AssertionError"):  # which says nothing
        network.create("test_resnet", {"output_stride": "x"})


def test_a_device_that_computes_nothing():
    with pytest.raises(UsageError, match="cannot use the device 'meta'"):
        choose_device("meta")


def test_the_gpu_is_the_one_that_is_current_now(monkeypatch):
    """A service may give each of its threads one."""
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for current in (0, 1):
        monkeypatch.setattr(torch.cuda, "current_device", partial(int, current))
        assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", current)


def test_a_batch_of_one_is_too_little_for_batch_norm(tmp_path, folders):
    """Where the network ends in one pixel, one image has no statistics."""
    path = tmp_path / "packed.st"
    pack.init(path, "resnet10t", pretrained=False, data_config={"img_size": 32})
    with pytest.raises(UsageError, match="two images in a batch; try --batch-size 2"):
        pack.add_task(path, folders[0], recipe=dataclasses.replace(QUICK, batch_size=1), machine=CPU)


def test_a_weight_of_five_dimensions_stays_as_it_is():
    """As LambdaResNets have one, whatever else has its channels last."""
    model = network.place(nn.Sequential(nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3)), torch.device("cpu"))
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.is_contiguous()


@pytest.mark.parametrize("head", [("nope",), ("fc", "nope"), ("layer1",)])
def test_a_file_that_names_another_head(full, head):
    """One error, wherever a network is made of it."""
    artifact = format.load(full)
    wrong = dataclasses.replace(artifact.header, head=head)
    with pytest.raises(NetworkError, match="has no classifier|builds another"):
        network.build(wrong, 3)
    with pytest.raises(NetworkError, match="has no classifier|builds another"):
        Packed(dataclasses.replace(artifact, header=wrong)).model(1)


@pytest.mark.parametrize("head", [(3, 96, 3), (4, 17, 4), (4, 96, 3), None])
def test_a_file_whose_head_does_not_fit(full, head):
    """Has other outputs than the task has classes, other inputs, or is not there: one error, in a switch as well."""
    artifact = format.load(full)
    own = {name: array for name, array in artifact.own[3].items() if not name.startswith("fc.")}
    if head:
        outputs, inputs, biases = head
        own |= {"fc.weight": np.zeros((outputs, inputs), np.float32), "fc.bias": np.zeros(biases, np.float32)}
    wrong = format.make(artifact.header, artifact.shared, artifact.mask, (*artifact.own[:3], own))
    newest = dataclasses.replace(artifact.header.tasks[-1], digest=wrong.digest(3))
    wrong = dataclasses.replace(
        wrong, header=dataclasses.replace(wrong.header, tasks=(*artifact.header.tasks[:2], newest))
    )
    packed = Packed(wrong)
    model = packed.model(1)
    for make in (partial(packed.model, 3), partial(packed.switch, model, 3)):
        with pytest.raises(NetworkError, match="builds another|not one of"):
            make()
    if head:  # without one it would get a new one
        format.save(wrong, full)
        with pytest.raises(NetworkError, match="builds another"):
            pack.prune_task(full, "3", prune=0.5, machine=CPU)
