"""Weights from files of other origin: the same network, whatever the names in the file are."""

import argparse
import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import adapt_input_conv

from packnet_cli.engine import weights
from packnet_cli.engine.pretrained import declared
from packnet_cli.errors import NetworkError

WRAPPED = {
    "training checkpoint": lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "tutorial": lambda state: {"epoch": 3, "optimizer_state_dict": {"state": {}}, "model_state_dict": state},
    "tutorial with its loss": lambda state: {"norm": {"mean": torch.zeros(3)}, "net": state, "loss": torch.ones(())},
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "both": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "framework": lambda state: {
        "state_dict": {f"net.body.{n}": v for n, v in state.items()} | {"loss.w": torch.ones(2)}
    },
    "no counters": lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
}


def load(model, file, arch):
    """As `init --weights` does; returns what it says."""
    cfg = model.pretrained_cfg
    return weights.load_weights(model, file, arch, head=declared(cfg, "classifier"), stems=(cfg["first_conv"],))


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_checkpoints_of_training(tmp_path, wrap):
    """Whatever is wrapped around the state dict, the same weights to the bit."""
    state = timm.create_model("test_resnet").state_dict()
    torch.save(wrap(state), tmp_path / "x.pt")
    model = timm.create_model("test_resnet", num_classes=3)
    load(model, tmp_path / "x.pt", "test_resnet")
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, state[name])


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_weights_for_another_image_size(tmp_path, prefix):
    """Position tables are resampled as timm does, with or without a prefix of the names."""
    state = timm.create_model("test_vit").state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"{prefix}{name}": value for name, value in state.items()}}, tmp_path / "x.pt")
    model = timm.create_model("test_vit", img_size=64)
    load(model, tmp_path / "x.pt", "test_vit")
    there = {"file": str(tmp_path / "plain.pt")}
    expected = timm.create_model("test_vit", img_size=64, pretrained=True, pretrained_cfg_overlay=there).state_dict()
    for name, value in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        ("resnet18", "resnet18", []),
        ("regnet_y_400mf", "regnety_004", ["382 tensors taken", "converted by timm"]),
        ("mobilenet_v2", "mobilenetv2_100", ["312 tensors taken by order and shape", "not used: classifier.1.weight"]),
    ],
)
def test_torchvisions_networks(tmp_path, theirs, ours, words):
    """timm's network of torchvision's weights computes what torchvision's does; what happened is said."""
    torch.manual_seed(0)
    original = getattr(torchvision.models, theirs)(weights=None).eval()
    for name, value in original.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    torch.save(original.state_dict(), tmp_path / "x.pth")
    model = timm.create_model(ours).eval()
    said = load(model, tmp_path / "x.pth", ours)
    assert "\n" not in said and bool(said) == bool(words) and all(word in said for word in words)
    pictures = torch.randn(1, 3, 224, 224)
    for ending in ("weight", "bias"):  # of the classifier, which comes last, and which is not taken
        *_, ours_head = (value for name, value in model.state_dict().items() if name.endswith(ending))
        *_, their_head = (value for name, value in original.state_dict().items() if name.endswith(ending))
        ours_head.copy_(their_head)
    with torch.inference_mode():
        torch.testing.assert_close(model(pictures), original(pictures))


@pytest.mark.parametrize(
    ("shapes", "outputs"),
    [
        ({"x": (2, 2), "module.classifier.weight": (5, 4, 1, 1)}, 5),  # of 1 x 1 filters, as DPN's
        ({"classifier.weight": (5, 4), "se.classifier.weight": (6, 4, 1, 1)}, 5),
        ({"x": (2, 2), "fc.weight": (5, 4), "bias": (3,)}, 5),
    ],
)
def test_the_classifier_is_found(tmp_path, shapes, outputs):
    """By its name, else as the last matrix."""
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.pt")
    assert weights.count_outputs(tmp_path / "x.pt", ("classifier",)) == outputs


def test_order_alone_is_not_enough(tmp_path):
    """Of the same shapes in the same order, a weight is no bias."""
    state = timm.create_model("test_resnet").state_dict()
    renamed = {f"x{place}.{name.rpartition('.')[2]}": value for place, (name, value) in enumerate(state.items())}
    torch.save(renamed, tmp_path / "fits.pt")
    assert "by order" in load(timm.create_model("test_resnet"), tmp_path / "fits.pt", "test_resnet")
    swapped = {name.replace("weight", "w").replace("bias", "weight"): value for name, value in renamed.items()}
    torch.save(swapped, tmp_path / "swapped.pt")
    with pytest.raises(NetworkError, match=r"lacks \d+ of \d+ tensors \(conv1.0.weight, .* unknown ones \(x0.w, "):
        load(timm.create_model("test_resnet"), tmp_path / "swapped.pt", "test_resnet")


def test_numbers_that_are_none(tmp_path):
    """Of which no task could learn, nor answer."""
    for number in (float("nan"), float("inf"), 1e300):
        state = timm.create_model("test_resnet").state_dict()
        state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].double()
        state["layer1.0.conv1.weight"][0, 0, 0, 0] = number
        torch.save(state, tmp_path / "x.pt")
        with pytest.raises(NetworkError, match="not all numbers of layer1.0.conv1.weight are finite"):
            load(timm.create_model("test_resnet"), tmp_path / "x.pt", "test_resnet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.Tensor.to_sparse, None),
        (lambda value: value.to(torch.float8_e5m2), None),
        (lambda value: value.to(torch.complex64), "holds complex64 numbers"),
        (lambda value: (100 * value).to(torch.int8), "holds int8 numbers"),
        (lambda value: value.to("meta"), "cannot read weights"),
    ],
)
def test_numbers_of_other_kinds(tmp_path, change, message):
    """Become what they stand for, or are refused."""
    name, model = "layer1.0.conv1.weight", timm.create_model("test_resnet")
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state | {name: change(state[name])}, tmp_path / "x.pt")
    if message:
        with pytest.raises(NetworkError, match=message):
            load(model, tmp_path / "x.pt", "test_resnet")
    else:
        load(model, tmp_path / "x.pt", "test_resnet")
        assert (model.state_dict()[name] - state[name]).abs().max() < 0.125 * state[name].abs().max()


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (3, 4), (1, 3), (1, 4), (4, 1), (4, 3)])
def test_weights_for_other_channels(tmp_path, theirs, ours):
    """Those for RGB are adapted, as timm does; of others it cannot tell which channel is which."""
    torch.save(timm.create_model("test_resnet", in_chans=theirs).state_dict(), tmp_path / "x.pt")
    model = timm.create_model("test_resnet", in_chans=ours)
    if theirs == 3:
        load(model, tmp_path / "x.pt", "test_resnet")
        expected = adapt_input_conv(ours, torch.load(tmp_path / "x.pt", weights_only=True)["conv1.0.weight"])
        assert torch.equal(model.state_dict()["conv1.0.weight"], expected)
    else:
        with pytest.raises(NetworkError, match=r"another shape for 1 of \d+ tensors \(conv1.0.weight\)"):
            load(model, tmp_path / "x.pt", "test_resnet")


def test_where_the_order_is_lost_it_is_said(tmp_path):
    """safetensors sorts tensors, so that those of other names cannot be told by their order."""
    state = {f"x{number}": value for number, value in enumerate(timm.create_model("test_resnet").state_dict().values())}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(NetworkError, match="or try it as .pth, which keeps the order"):
        load(timm.create_model("test_resnet"), tmp_path / "x.safetensors", "test_resnet")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """It is there."""
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(weights.os, "access", lambda path, how: False)
    with pytest.raises(NetworkError, match="w.safetensors may not be read; check its permissions"):
        weights._read(tmp_path / "w.safetensors")


def test_a_file_without_weights(tmp_path):
    """Numbers, but no tensors."""
    torch.save({"epoch": 3, "best": {"top1": 0.5}}, tmp_path / "x.pt")
    with pytest.raises(NetworkError, match="lacks"):
        load(timm.create_model("test_resnet"), tmp_path / "x.pt", "test_resnet")


@pytest.mark.parametrize("content", ["module", "pickle", b"junk"])
def test_what_is_no_state_dict_is_one_line(tmp_path, packnet, content):
    """A whole network, a pickle of another kind, and no such file at all; it says what is expected."""
    if content == "module":
        torch.save(torch.nn.Linear(1, 1), tmp_path / "x.pt")
    else:
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}, protocol=4) if content == "pickle" else content)
    result = packnet("init", "--arch", "test_resnet", "--weights", tmp_path / "x.pt", tmp_path / "a.st")
    assert result.exit_code == 7 and result.stderr.count("\n") == 1 and "Expected: a state dict" in result.stderr


@pytest.mark.parametrize("suffix", [".st", ".safetensors"])
def test_a_packed_model_is_no_weights_file(full, tmp_path, packnet, suffix):
    """It says how to get one out of it."""
    path = full.rename(full.with_suffix(suffix))
    for prune in ([], ["--prune", 0.5]):
        result = packnet("init", "--arch", "test_resnet", "--weights", path, *prune, tmp_path / "a.st")
        assert result.exit_code == 7 and result.stderr.count("\n") == 1
        assert f"is a packed model; `packnet extract {path} --task" in result.stderr


def test_init_says_which_keys_did_not_fit(tmp_path, packnet):
    """In one line on stderr; stdout has the result alone. Nothing is said where nothing is left."""
    state = timm.create_model("test_resnet").state_dict()
    init = ("init", "--arch", "test_resnet", "--weights")
    torch.save(state | {"extra.weight": torch.ones(1)}, tmp_path / "x.pt")
    result = packnet(*init, tmp_path / "x.pt", tmp_path / "a.st")
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert result.stderr == f"{tmp_path / 'x.pt'}: not used: extra.weight\n"
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "x.pt")
    assert packnet(*init, tmp_path / "x.pt", tmp_path / "b.st").stderr == ""
    assert (tmp_path / "a.st").read_bytes() == (tmp_path / "b.st").read_bytes()


def test_a_part_of_the_weights_says_so(tmp_path):
    """One file of several, as large networks come in, and their index; no other name or form would help."""
    state = timm.create_model("test_resnet").state_dict()
    half = dict(list(state.items())[: len(state) // 2])
    for name, message in (
        ("model-00001-of-00002.safetensors", "lacks .* it is one of several files of these weights"),
        ("model-00001-of-00001.safetensors", "lacks .* check --arch"),
    ):
        save_file(half, tmp_path / name)
        with pytest.raises(NetworkError, match=message):
            load(timm.create_model("test_resnet"), tmp_path / name, "test_resnet")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(NetworkError, match="only describes weights"):
        load(timm.create_model("test_resnet"), tmp_path / "model.safetensors.index.json", "test_resnet")
