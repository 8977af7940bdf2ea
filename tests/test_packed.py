"""A packed model as a library: plain timm networks, switched from task to task."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import CPU, QUICK, make_folder
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config

import packnet_cli
from packnet_cli.artifact import format
from packnet_cli.engine import network, pack
from packnet_cli.engine.data import feed, splits
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import ArtifactError, NetworkError, TaskError

PICTURES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def bits(model):
    """Every tensor of a network, kept in its state dict or not, and its logits, as bytes."""
    with torch.inference_mode():
        tensors = {**dict(model.named_buffers()), **model.state_dict(), "logits": model(PICTURES)}
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def test_a_model_is_plain_timm_in_eval_mode(full):
    """Which knows its classes and its preprocessing as timm's own do."""
    packed = packnet_cli.load(str(full))
    model = packed.model("green")
    assert type(model) is type(timm.create_model("test_resnet")) and not model.training
    assert model.num_classes == 2 and model.pretrained_cfg["label_names"] == ["class0", "class1"]
    resolved = resolve_model_data_config(model, use_test_size=True)
    assert {**resolved, "input_size": list(resolved["input_size"])} == packed.artifact.header.data_config
    assert [task.name for task in packed.tasks] == ["red", "green", "blue"]


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_switched_model_is_a_fresh_one_to_the_bit(tmp_path, folders, arch):
    """In any order, and whatever the head's size."""
    path = tmp_path / "packed.st"
    pack.init(path, arch, pretrained=False, data_config={"img_size": 32})
    for folder, prune in zip(folders, (0.5, 0.5, 0), strict=True):
        pack.add_task(path, folder, prune=prune, recipe=QUICK, machine=CPU)
    packed = packnet_cli.load(path)
    fresh = {name: packed.model(name) for name in ("red", "green", "blue")}
    answers = {name: bits(model) for name, model in fresh.items()}
    model = network.place(packed.model("red"), torch.device("cpu"))
    plain = packed.model("red")
    for name in ("blue", "green", "red", "red", "green"):
        for switched in (model, plain):  # with channels last, and without
            packed.switch(switched, name)
            assert not switched.training and switched.pretrained_cfg == fresh[name].pretrained_cfg
            assert switched.num_classes == fresh[name].num_classes
            state = network.read(switched)
            assert {key: array.tobytes() for key, array in state.items()}.items() <= answers[name].items()
        assert bits(plain) == answers[name]


def test_a_switch_follows_the_model(full):
    """A half precision copy stays one."""
    packed = packnet_cli.load(full)
    model = packed.model("red").to(torch.bfloat16)
    packed.switch(model, "blue")
    assert bits(model.float()) == bits(packed.model("blue").to(torch.bfloat16).float())


def test_a_switch_where_its_caller_infers(full):
    """A service may do all in inference mode, or only some of it; heads of other sizes come and go."""
    packed = packnet_cli.load(full)
    with torch.inference_mode():
        model = packed.model("red")
        packed.switch(model, "blue")
    packed.switch(model, "green")
    assert bits(model) == bits(packed.model("green"))
    model(PICTURES).sum().backward()  # what it became there can be trained elsewhere


@pytest.mark.parametrize("change", [copy.deepcopy, lambda model: model.double().float()])
def test_a_switch_of_what_its_caller_made_while_inferring(full, change):
    """A copy, or a network sent to another device or type, has tensors that can be written in inference mode only."""
    packed = packnet_cli.load(full)
    with torch.inference_mode():
        model = change(packed.model("red"))
        packed.switch(model, "blue")
        assert bits(model) == bits(packed.model("blue"))
    packed.switch(model, "green")
    assert bits(model) == bits(packed.model("green"))


def test_a_model_is_on_the_cpu_in_float32(full):
    """With its images, whatever torch makes by default."""
    expected = bits(packnet_cli.load(full).model("red"))
    image = Image.effect_noise((32, 32), 50).convert("RGB")
    for turn, to, back in (
        (torch.set_default_device, "meta", None),
        (torch.set_default_dtype, torch.float64, torch.float32),
    ):
        turn(to)
        try:
            packed = packnet_cli.load(full)
            model, picture = packed.model("red"), packed.transform(image)
        finally:
            turn(back)
        assert bits(model) == expected and picture.dtype == torch.float32 and model(picture[None]).isfinite().all()


def test_a_switch_leaves_each_module_in_its_mode(full):
    """One that samples answers by dropout, or fine-tunes with frozen statistics, goes on so."""
    packed = packnet_cli.load(full)
    model = packed.model("red")
    model.bn1.train()
    packed.switch(model, "blue")
    assert [name for name, module in model.named_modules() if module.training] == ["bn1"]


def test_a_stranger_is_not_switched(full):
    """And keeps its weights."""
    packed = packnet_cli.load(full)
    for arch, arguments in (("test_resnet", {"stem_width": 8}), ("test_efficientnet", {})):
        stranger = timm.create_model(arch, num_classes=3, **arguments).eval()
        before = bits(stranger)
        with pytest.raises(NetworkError, match="not one of this packed model"):
            packed.switch(stranger, "green")
        assert bits(stranger) == before
    with pytest.raises(TaskError, match="no task 'purple'"):
        packed.model("purple")


def test_a_quantized_model_is_a_stranger(full):
    """Its state dict holds what is no tensor; in place of torch's quantized layers, which warn, one that does so."""
    packed = packnet_cli.load(full)
    model = packed.model("red")

    class Quantized(torch.nn.Linear):
        def get_extra_state(self):
            return torch.qint8

    model.fc = Quantized(model.fc.in_features, model.fc.out_features)
    with pytest.raises(NetworkError, match="not one of this packed model"):
        packed.switch(model, "green")


def test_a_timm_that_builds_another_network_is_told_from_ours(full):
    artifact = packnet_cli.load(full).artifact
    other = dataclasses.replace(artifact, header=dataclasses.replace(artifact.header, arch="test_efficientnet"))
    with pytest.raises(NetworkError, match="builds another test_efficientnet than the one packed here"):
        Packed(other).model("red")


def test_it_gets_no_task_either(packed, folders):
    """Not even where all that is packed fits into the other one, which has more."""
    artifact = format.load(packed)
    other = dataclasses.replace(artifact.header, model_kwargs={"layers": [1, 1, 2, 1]})
    format.save(format.make(other, artifact.shared, artifact.mask, artifact.own), packed)
    before = packed.read_bytes()
    with pytest.raises(NetworkError, match="builds another test_resnet than the one packed here"):
        pack.add_task(packed, folders[0], recipe=QUICK, machine=CPU)
    assert packed.read_bytes() == before


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_every_tensor_of_a_blank_network_is_written(tmp_path, folders, monkeypatch, arch):
    """No number was drawn for any, and none may stay as the memory happened to be."""
    path = tmp_path / "packed.st"
    pack.init(path, arch, pretrained=False)
    artifact = pack.add_task(path, folders[0], recipe=QUICK, machine=CPU)
    numbers = torch.get_rng_state()
    blank = network.build_blank(artifact.header, 2)
    assert torch.equal(torch.get_rng_state(), numbers)
    for value in blank.state_dict().values():
        value.fill_(7)
    monkeypatch.setattr(network, "build_blank", lambda *_: blank)
    state = network.read(Packed(artifact).model(1))
    assert {name: value.tobytes() for name, value in state.items()} == {
        name: value.tobytes() for name, value in artifact.state(1).items()
    }


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch before 2.6, of pickled tensors
def test_the_transform_is_that_of_eval(full, tmp_path):
    """To the bit, and timm's own for the network's configuration; any kind of image is taken."""
    packed = packnet_cli.load(full)
    [path, *_] = (make_folder(tmp_path / "data") / "val" / "class0").iterdir()
    batches = feed.batches(
        splits.Split([path], [0]),
        packed.artifact.header.data_config,
        batch_size=1,
        workers=0,
        device=torch.device("cpu"),
    )
    [(expected, _)] = batches
    with Image.open(path) as image:
        assert torch.equal(packed.transform(image), expected[0])
        assert packed.transform(image.convert("P")).shape == (3, 32, 32)
        assert torch.equal(pickle.loads(pickle.dumps(packed.transform))(image), expected[0])
        timms = create_transform(**resolve_model_data_config(packed.model("red")))
        assert torch.equal(timms(image.convert("RGB")), expected[0])


@pytest.mark.parametrize("config", [{}, {"mean": [0.5] * 3, "of another version": 1}])
def test_preprocessing_that_a_file_does_not_tell_is_timms(full, config):
    """A file from elsewhere may say less, or more, of it."""
    artifact = format.load(full)
    header = dataclasses.replace(artifact.header, data_config={"input_size": [3, 32, 32], **config})
    packed = Packed(dataclasses.replace(artifact, header=header))
    defaults = create_transform(**resolve_data_config({"input_size": (3, 32, 32), "mean": config.get("mean")}))
    image = Image.effect_noise((50, 40), 50).convert("RGB")
    assert torch.equal(packed.transform(image), defaults(image))


@pytest.mark.parametrize("config", [{"interpolation": "guess"}, {"input_size": [2, 32, 32]}, {"input_size": [1, 9, 9]}])
def test_preprocessing_that_cannot_be(full, config):
    """In one line; of another number of channels, timm's defaults are not."""
    artifact = format.load(full)
    header = dataclasses.replace(artifact.header, data_config={"input_size": [3, 32, 32], **config})
    with pytest.raises(NetworkError, match="images are to"):
        Packed(dataclasses.replace(artifact, header=header))


def test_load_says_what_is_wrong(tmp_path):
    """As the commands do."""
    with pytest.raises(ArtifactError, match="does not exist"):
        packnet_cli.load(tmp_path / "none.st")


def test_importing_the_package_is_light():
    """Neither torch nor numpy before `load` is called."""
    check = "import sys, packnet_cli; packnet_cli.load; print({'torch', 'numpy', 'timm'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", check], text=True) == "set()\n"


def test_odd_images_look_to_a_task_as_in_training(full, tmp_path):
    """The transform makes of 16-bit and palette images what training and `eval` make of them."""
    shades = np.arange(36 * 36, dtype=np.uint16).reshape(36, 36) * 50
    Image.fromarray(shades).save(tmp_path / "deep.png")
    Image.fromarray((shades >> 8).astype(np.uint8)).convert("P").save(tmp_path / "palette.png")
    packed = packnet_cli.load(full)
    for name in ("deep.png", "palette.png"):
        split = splits.Split([tmp_path / name], [0])
        config = packed.artifact.header.data_config
        device = torch.device("cpu")
        [(batch, _)] = feed.batches(split, config, batch_size=1, workers=0, device=device)
        with Image.open(tmp_path / name) as image:
            assert torch.equal(packed.transform(image), batch[0])
