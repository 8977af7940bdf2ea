"""Where a packed model starts from: weights from a file, the hub or nowhere, and preprocessing."""

import json

import numpy as np
import pytest
import timm
import torch
from conftest import noting
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from packnet_cli.artifact import format, ship
from packnet_cli.engine import network, pack, start
from packnet_cli.engine.using import export
from packnet_cli.engine.weights import recorded_in
from packnet_cli.errors import NetworkError, UsageError


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    """Every weight but the classifier's, whose number of classes may be any."""
    model = timm.create_model("test_resnet", num_classes=7)
    file = tmp_path / f"weights{suffix}"
    save_file(model.state_dict(), file) if suffix == ".safetensors" else torch.save(model.state_dict(), file)
    artifact = pack.init(tmp_path / "packed.st", "test_resnet", weights=file)
    for name, array in {**artifact.shared, **artifact.own[0]}.items():
        np.testing.assert_array_equal(array, model.state_dict()[name].numpy())
    assert not any(name.startswith("fc.") for name in (*artifact.shared, *artifact.own[0]))
    assert artifact.header.source == str(file)


def test_half_precision_weights_become_float32(tmp_path):
    """In half precision magnitudes tie and ranks are wrong."""
    model = timm.create_model("test_resnet").half()
    save_file(model.state_dict(), tmp_path / "half.safetensors")
    artifact = pack.init(tmp_path / "packed.st", "test_resnet", weights=tmp_path / "half.safetensors")
    assert {array.dtype for array in artifact.shared.values()} == {np.dtype(np.float32)}


def test_weights_of_another_network_are_refused(tmp_path):
    """The message names a tensor, and nothing is written."""
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    with pytest.raises(NetworkError, match=r"vit.pt does not fit this architecture: it lacks \d+ of \d+ tensors"):
        pack.init(tmp_path / "packed.st", "test_resnet", weights=tmp_path / "vit.pt")
    model = timm.create_model("test_resnet").state_dict()
    torch.save(model | {"conv1.0.weight": torch.zeros(1)}, tmp_path / "shape.pt")
    with pytest.raises(NetworkError, match="another shape for 1 of"):
        pack.init(tmp_path / "packed.st", "test_resnet", weights=tmp_path / "shape.pt")
    assert not (tmp_path / "packed.st").exists()


class Boom:
    """Runs code when it is unpickled without care."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_weights_file_cannot_run_code(tmp_path):
    """A .pt file is read with weights_only."""
    torch.save({"conv1.weight": Boom()}, tmp_path / "evil.pt")
    with pytest.raises(NetworkError, match="cannot read weights"):
        pack.init(tmp_path / "packed.st", "test_resnet", weights=tmp_path / "evil.pt")


def test_no_weights_file(tmp_path):
    """A typing mistake in its name."""
    with pytest.raises(NetworkError, match="none.pt does not exist"):
        pack.init(tmp_path / "packed.st", "test_resnet", weights=tmp_path / "none.pt")


def test_unknown_architecture_names_the_nearest(tmp_path):
    """So that a typing mistake is mended at once."""
    with pytest.raises(NetworkError, match="did you mean .*resnet50"):
        pack.init(tmp_path / "packed.st", "resnet5O", pretrained=False)
    with pytest.raises(NetworkError, match="resnet50.invalid_tag'; did you mean resnet50"):
        pack.init(tmp_path / "packed.st", "resnet50.invalid_tag", pretrained=False)


@pytest.mark.parametrize("arch", ["test_resnet", "hf-hub:a/b", "hf_hub:a/b", "local-dir:none"])
def test_no_hub_names_the_ways_on(tmp_path, arch):
    """The tests run with the hub switched off."""
    with pytest.raises(NetworkError, match="--weights FILE.*--no-pretrained"):
        pack.init(tmp_path / "packed.st", arch)


@pytest.mark.parametrize("arch", ["test_resnet", "hf-hub:a/b", "local-dir:none"])
def test_a_network_to_keep_is_not_to_start_at_random(tmp_path, arch):
    """--prune would refuse the --no-pretrained that a message names."""
    with pytest.raises(NetworkError, match="--weights FILE") as raised:
        pack.init(tmp_path / "packed.st", arch, prune=0.5)
    assert "--no-pretrained" not in str(raised.value)


def test_a_folder_is_named_as_timm_does(tmp_path, monkeypatch):
    """Where it is given as a file or as an architecture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    for arch, weights in (("net", None), ("test_resnet", tmp_path / "net")):
        with pytest.raises(NetworkError, match="in the layout of the hub .*local-dir:.*net"):
            pack.init(tmp_path / "packed.st", arch, weights=weights)


def test_an_encoder_lacks_no_weights(tmp_path):
    """Those of another network would be left out, and this one stay random; a norm for other pooling may be new."""
    save_for_hf(timm.create_model("test_vit", num_classes=0), tmp_path / "net", safe_serialization=True)
    arch = f"local-dir:{tmp_path / 'net'}"
    pack.init(tmp_path / "a.st", arch, model_kwargs={"global_pool": "avg"})
    weights = tmp_path / "net" / "model.safetensors"
    save_file({f"encoder.{name}": value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(NetworkError, match="Missing key"):
        pack.init(tmp_path / "b.st", arch)
    assert not (tmp_path / "b.st").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture", None),
        ("architecture", ""),
        ("num_classes", "2"),
        ("label_names", 5),
        ("input_size", [3, 64, 64, 1]),
        ("mean", 5),
        ("std", [0.5, 0, 0.5]),
        ("crop_pct", "abc"),
        ("interpolation", []),
        ("classifier", 5),
    ],
)
def test_a_configuration_that_no_file_could_hold(tmp_path, name, value):
    """It is refused before anything is trained or written."""
    (tmp_path / "net").mkdir()
    config = {"architecture": "test_resnet", "num_classes": 2, "pretrained_cfg": {"classifier": "fc"}}
    (config if name in (*config, "label_names") else config["pretrained_cfg"])[name] = value
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    with pytest.raises(NetworkError, match=f"configuration of .*net.* has an impossible {name}"):
        pack.init(tmp_path / "a.st", f"local-dir:{tmp_path / 'net'}", pretrained=False)
    assert not (tmp_path / "a.st").exists()


def test_an_interpolation_that_a_configuration_says(tmp_path):
    """It was not given as an option, which can be given in its place."""
    (tmp_path / "net").mkdir()
    config = {"architecture": "test_resnet", "pretrained_cfg": {"classifier": "fc", "interpolation": "magic"}}
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    arch = f"local-dir:{tmp_path / 'net'}"
    with pytest.raises(UsageError, match="^the interpolation 'magic' is unknown; try --interpolation bilinear"):
        pack.init(tmp_path / "a.st", arch, pretrained=False)
    artifact = pack.init(tmp_path / "a.st", arch, pretrained=False, data_config={"interpolation": "bilinear"})
    assert artifact.header.data_config["interpolation"] == "bilinear"


def test_an_argument_that_is_null_is_left_to_timm(tmp_path):
    """As timm does where it builds such a network."""
    (tmp_path / "net").mkdir()
    config = {"architecture": "test_resnet", "model_args": {"in_chans": None}, "pretrained_cfg": {"classifier": "fc"}}
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    artifact = pack.init(tmp_path / "a.st", f"local-dir:{tmp_path / 'net'}", pretrained=False)
    assert artifact.header.model_kwargs == {}


def test_weights_that_are_no_numbers(tmp_path):
    """timm takes them without a word."""
    save_for_hf(timm.create_model("test_resnet"), tmp_path / "net", safe_serialization=True)
    weights, name = tmp_path / "net" / "model.safetensors", "layer1.0.conv1.weight"
    state = load_file(weights)
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, weights)
    with pytest.raises(NetworkError, match=f"some numbers of {name} are NaN"):
        pack.init(tmp_path / "a.st", f"local-dir:{tmp_path / 'net'}")


def test_a_folder_in_the_users_home(tmp_path, monkeypatch):
    """After a colon the shell leaves the tilde."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save_for_hf(timm.create_model("test_resnet"), tmp_path / "net", safe_serialization=True)
    assert pack.init(tmp_path / "a.st", "local-dir:~/net").header.source == str((tmp_path / "net").resolve())


def test_a_mistyped_folder_names_the_nearest(tmp_path):
    """As of any other path."""
    (tmp_path / "birds-timm").mkdir()
    with pytest.raises(NetworkError, match="does not exist; did you mean .*birds-timm"):
        pack.init(tmp_path / "packed.st", f"local-dir:{tmp_path}/bird-timm")
    (tmp_path / "bird-timm").write_text("")  # a file, which is there
    for arch in (f"local-dir:{tmp_path}/bird-timm", f"local-dir:{5000 * 'a'}"):
        with pytest.raises(NetworkError, match="cannot load the configuration"):
            pack.init(tmp_path / "packed.st", arch)
    with pytest.raises(NetworkError, match="timm knows no architecture"):
        pack.init(tmp_path / "packed.st", 5000 * "a")


def test_bad_model_arguments_are_refused(tmp_path):
    """timm's own words, without its traceback."""
    with pytest.raises(NetworkError, match="cannot build test_resnet"):
        pack.init(tmp_path / "packed.st", "test_resnet", pretrained=False, model_kwargs={"nonsense": 1})
    for refused, said in (("num_classes", "cannot set num_classes"), ("act_layer", "cannot be kept in a file")):
        with pytest.raises(UsageError, match=said):
            pack.init(tmp_path / "packed.st", "test_resnet", pretrained=False, model_kwargs={refused: torch.nn.SiLU})


def test_parse_model_kwargs():
    """Literals of Python or JSON, else strings."""
    parsed = start.parse_model_kwargs(["pad_type=same", "drop_rate=0.5", "qkv_bias=False", "s=a=b", "t=true", "p=none"])
    assert parsed == {"pad_type": "same", "drop_rate": 0.5, "qkv_bias": False, "s": "a=b", "t": True, "p": "none"}
    assert start.parse_model_kwargs(["x={[]: 1}"]) == {"x": "{[]: 1}"}  # which is no dictionary of Python's
    for bad in ("drop_rate", "=3", "num_classes=5", "a-b=1"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            start.parse_model_kwargs([bad])
    for null in ("n=Null", "n=None"):  # which timm would take for not given
        with pytest.raises(UsageError, match="leave it out"):
            start.parse_model_kwargs([null])


# --- preprocessing --------------------------------------------------------------------------------------------------


def test_preprocessing_is_timms_unless_told(tmp_path):
    """And what was told is remembered."""
    artifact = pack.init(tmp_path / "a.st", "test_resnet", pretrained=False)
    cfg = timm.create_model("test_resnet").pretrained_cfg
    assert artifact.header.data_config["input_size"] == list(cfg["input_size"])
    assert artifact.header.data_config["mean"] == list(cfg["mean"])
    told = {"img_size": 48, "mean": (0.1,), "std": (0.2, 0.3, 0.4), "crop_pct": 0.5, "interpolation": "nearest"}
    config = pack.init(tmp_path / "b.st", "test_resnet", pretrained=False, data_config=told).header.data_config
    assert config["input_size"] == [3, 48, 48]
    assert config["mean"] == [0.1] * 3 and config["std"] == [0.2, 0.3, 0.4]
    assert config["crop_pct"] == 0.5 and config["interpolation"] == "nearest"
    assert format.load_header(tmp_path / "b.st").data_config == config


@pytest.mark.parametrize(("name", "value"), [("crop_pct", -1), ("crop_pct", 0), ("crop_pct", 2), ("img_size", 0)])
def test_no_preprocessing(tmp_path, name, value):
    """From the library, where no command line checks it first."""
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be"):
        pack.init(tmp_path / "a.st", "test_resnet", pretrained=False, data_config={name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arch", "stems"),
    [("test_resnet", ["conv1.0"]), ("fastvit_t8", ["stem.0.conv_kxk.0.conv", "stem.0.conv_scale.conv"])],
)
def test_grey_pictures(tmp_path, arch, stems):
    """One input channel: each first convolution is summed over colours, mean and std are averaged."""
    model = timm.create_model(arch)
    torch.save(model.state_dict(), tmp_path / "rgb.pt")
    told = {"in_chans": 1, "img_size": 32}
    artifact = pack.init(tmp_path / "a.st", arch, weights=tmp_path / "rgb.pt", data_config=told)
    assert artifact.header.data_config["input_size"] == [1, 32, 32]
    assert len(artifact.header.data_config["mean"]) == 1
    for name in (f"{stem}.weight" for stem in stems):
        found = artifact.shared | artifact.own[0]
        np.testing.assert_array_equal(found[name], model.state_dict()[name].sum(1, keepdim=True).numpy())


def test_a_vit_is_built_for_the_image_size(tmp_path):
    """Its position table depends on it, so timm must be told each time."""
    artifact = pack.init(tmp_path / "a.st", "test_vit", pretrained=False, data_config={"img_size": 32})
    assert artifact.header.model_kwargs == {"img_size": 32}
    with torch.inference_mode():
        assert network.build(artifact.header, 5)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_an_extracted_task_brings_its_preprocessing_and_classes(tmp_path, full):
    """As its safetensors file records them, but for what is said otherwise."""
    before, file = format.load(full), tmp_path / "red.safetensors"
    ship.extract_safetensors(before, before.header.task("red"), file)
    said = []
    how = {"weights": file, "prune": 0.0, "say": noting(said)}
    after = pack.init(tmp_path / "again.st", "test_resnet", **how)
    assert after.header.data_config == before.header.data_config and "records" in said[0]
    assert after.header.task(1).classes == before.header.task("red").classes
    assert after.header.task(1).digest == before.header.task("red").digest
    export.write_folder(before, before.header.task("red"), tmp_path / "red-timm")
    assert recorded_in(tmp_path / "red-timm" / "model.safetensors") == recorded_in(file)
    larger = pack.init(tmp_path / "larger.st", "test_resnet", data_config={"img_size": 48}, **how)
    assert larger.header.data_config == before.header.data_config | {"input_size": [3, 48, 48]}
    told = recorded_in(file)
    told["data_config"] |= {"classifier": "none"}
    save_file({"a": torch.zeros(1)}, file, {"packnet_task": json.dumps(told)})
    with pytest.raises(NetworkError, match="has no classifier to keep|does not fit"):
        pack.init(tmp_path / "none.st", "test_resnet", **how)
    for wrong in ("[" * 100_000, "{}", '{"arch": "test_resnet"}'):
        save_file({"a": torch.zeros(1)}, file, {"packnet_task": wrong})
        assert recorded_in(file) == {}
