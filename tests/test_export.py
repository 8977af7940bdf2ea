"""A task that has left the packed model: it answers as it did within, and tells of its classes and pixels."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import CPU, QUICK, make_folder
from timm.data import resolve_model_data_config

import packnet_cli
from packnet_cli import extras
from packnet_cli.artifact import edit, format
from packnet_cli.engine import pack
from packnet_cli.engine.using import export
from packnet_cli.errors import ArtifactError, NetworkError

PICTURES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(model):
    """What a network answers to pictures."""
    with torch.inference_mode():
        return model(PICTURES).numpy()


def check_about(text, task, header):
    """What travels with the weights."""
    about = json.loads(text)
    assert about["classes"] == list(task.classes) and about["task"] == task.name
    assert about["data_config"] == header.data_config


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "coat_lite_tiny"])  # the last uses filters repeatedly
def test_a_folder_opens_in_timm_with_the_same_logits(tmp_path, folders, packnet, arch):
    """To the bit; with the class names and the preprocessing, a network's own arguments, and a card."""
    path, output = tmp_path / "packed.st", tmp_path / "hub"
    pack.init(path, arch, pretrained=False, data_config={"img_size": 32, "crop_pct": 0.7})
    arguments = ("--epochs", 1, "--batch-size", 8, "--workers", 0, "--device", "cpu")
    assert packnet("add-task", path, "--data", folders[2], *arguments).exit_code == 0
    result = packnet("extract", path, "--task", "blue", "-o", f"{output}/")
    assert result.exit_code == 0, result.stderr
    packed = packnet_cli.load(path)
    [task] = packed.tasks
    plain = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    assert logits(plain).tobytes() == logits(packed.model("blue")).tobytes()
    resolved = resolve_model_data_config(plain, use_test_size=True)
    assert {**resolved, "input_size": list(resolved["input_size"])} == packed.artifact.header.data_config
    config = json.loads((output / "config.json").read_text())
    assert config["label_names"] == list(task.classes) and config["architecture"] == arch
    card = (output / "README.md").read_text()
    assert f"{task.top1:.2f} %" in card and "3. class3" in card
    assert sorted(os.listdir(output)) == ["README.md", "config.json", "model.safetensors"]
    again = pack.init(tmp_path / "again.st", f"local-dir:{output}", prune=0.0)  # and is a network to start from
    assert again.header.source == str(output) and again.header.data_config == packed.artifact.header.data_config
    assert again.header.tasks[0].classes == task.classes
    assert logits(packnet_cli.load(tmp_path / "again.st").model(1)).tobytes() == logits(plain).tobytes()
    (plain := output.with_name("plain")).touch()
    assert {file.stat().st_mode & 0o777 for file in output.iterdir()} == {plain.stat().st_mode & 0o777}


def test_a_card_shows_a_name_as_it_is():
    """Whatever in it is Markdown, or would begin a list in the list of classes."""
    told = {"a *b*\n[c](d)_e-f": r"a \*b\* \[c\](d)\_e-f", "1. FC": r"1\. FC", "2) b": r"2\) b", "- none": r"\- none"}
    assert {name: export._as_markdown(name) for name in told} == told
    assert export._as_markdown("007 and 1.5") == "007 and 1.5"


def test_a_class_whose_name_is_no_text(tmp_path, packed, packnet):
    """A file system takes any bytes; so does the folder, and an ONNX file in a folder that is called so."""
    folder, place = make_folder(tmp_path / "some"), tmp_path / "to\udcff"
    for part in ("train", "val"):
        (folder / part / "class1").rename(folder / part / "cl\udcff")
    pack.add_task(packed, folder, recipe=QUICK, machine=CPU)
    place.mkdir()
    for output in (place / "hub", place / "some.onnx"):
        result = packnet("extract", packed, "--task", 1, "-o", f"{output}" if output.suffix else f"{output}/")
        assert result.exit_code == 0, result.stderr
    assert json.loads((place / "hub" / "config.json").read_text())["label_names"] == ["class0", "class2", "cl\udcff"]


def test_a_folder_that_every_timm_can_open(tmp_path, folders, packnet):
    """Earlier ones adapt a first convolution of four channels, and draw it anew; transformers wants one class count."""
    path, output = tmp_path / "packed.st", tmp_path / "hub"
    weights = timm.create_model("test_resnet", in_chans=4).state_dict()
    torch.save(weights, tmp_path / "mine.pt")
    pack.init(path, "test_resnet", weights=tmp_path / "mine.pt", data_config={"img_size": 32, "in_chans": 4})
    arguments = ("--epochs", 1, "--batch-size", 8, "--workers", 0, "--device", "cpu")
    assert packnet("add-task", path, "--data", folders[2], *arguments).exit_code == 0
    assert packnet("extract", path, "--task", "blue", "-o", f"{output}/").exit_code == 0
    config = json.loads((output / "config.json").read_text())
    assert "first_conv" not in config["pretrained_cfg"] and "num_classes" not in config["model_args"]
    plain = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    images = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(images), packnet_cli.load(path).model("blue")(images))
    card = (output / "README.md").read_text()
    assert "started from: mine.pt\n" in card and str(tmp_path) not in card


def test_a_card_of_what_was_never_measured(tmp_path, packnet):
    """A base that was kept without images has no accuracy, and a card that says so."""
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "x.pt")
    path, prune = tmp_path / "packed.st", ("--prune", 0.5, "--name", "base", "--img-size", 32)
    assert packnet("init", path, "--arch", "test_resnet", "--weights", tmp_path / "x.pt", *prune).exit_code == 0
    result = packnet("extract", path, "--task", "base", "-o", tmp_path / "hub")
    assert result.exit_code == 0, result.stderr
    assert "accuracy has not been measured" in (tmp_path / "hub" / "README.md").read_text()


def test_a_folder_takes_the_place_of_nothing_but_an_empty_one(full, tmp_path, packnet, monkeypatch):
    """And is whole, or not there."""
    (tmp_path / "there").mkdir()
    assert packnet("extract", full, "--task", 1, "-o", tmp_path / "there").exit_code == 0
    result = packnet("extract", full, "--task", 1, "-o", tmp_path / "there")
    assert result.exit_code == 3 and "not an empty folder" in result.stderr
    (tmp_path / "file").touch()
    assert packnet("extract", full, "--task", 1, "-o", f"{tmp_path / 'file'}/").exit_code == 3
    assert packnet("extract", full, "--task", 1, "-o", tmp_path / "none" / "x").exit_code == 3
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(export, "_model_card", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    result = packnet("extract", full, "--task", 1, "-o", tmp_path / "other")
    assert result.exit_code == 3 and "No space left" in result.stderr
    assert sorted(os.listdir(tmp_path)) == before


def test_an_ending_chooses_the_form_also_where_a_folder_has_that_name(full, tmp_path, packnet):
    """Who asks for a file gets a file or an error; other names of folders, as v1.0, may have dots."""
    for name in ("red.pt", "v1.0"):
        (tmp_path / name).mkdir()
    result = packnet("extract", full, "--task", "red", "-o", tmp_path / "red.pt")
    assert result.exit_code == 3 and "red.pt is a folder; name a file to write" in result.stderr
    assert packnet("extract", full, "--task", "red", "-o", tmp_path / "v1.0").exit_code == 0
    assert packnet("extract", full, "--task", "red", "-o", f"{tmp_path}/red.pt/").exit_code == 0


def test_a_task_that_is_removed_meanwhile_is_missed_in_one_line(full, tmp_path, packnet, monkeypatch):
    """Between a look at the metadata and the reading of all of the file."""
    load = format.load

    def removed_and_loaded(path):
        monkeypatch.setattr(format, "load", load)
        edit.remove_task(path, "blue")
        return load(path)

    monkeypatch.setattr(format, "load", removed_and_loaded)
    result = packnet("extract", full, "--task", "blue", "-o", tmp_path / "blue.pt")
    assert result.exit_code == 4 and "no task 'blue'" in result.stderr and result.stderr.count("\n") == 1


def test_a_folder_is_flushed_to_disk(full, tmp_path, packnet, monkeypatch):
    """All that is in it before it takes its place, and then its name."""
    flushed, output = [], tmp_path / "hub"
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    assert packnet("extract", full, "--task", 1, "-o", output).exit_code == 0
    *within, last = flushed
    assert set(within) == {path.stat().st_ino for path in (output, *output.iterdir())}
    assert last == tmp_path.stat().st_ino


def test_onnx(full, tmp_path, packnet):
    """onnxruntime computes the packed logits, whatever the batch size."""
    output = tmp_path / "x.onnx"
    result = packnet("extract", full, "--task", "green", "-o", output)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 3 and "onnxruntime.InferenceSession" in result.stdout
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    packed = packnet_cli.load(full)
    [answer] = session.run(["logits"], {"images": PICTURES.numpy()})
    np.testing.assert_allclose(answer, logits(packed.model("green")), atol=1e-5)
    check_about(session.get_modelmeta().custom_metadata_map["packnet"], packed.task("green"), packed.artifact.header)
    assert onnx.load(output).graph.input[0].type.tensor_type.shape.dim[0].dim_param  # a name, not a number


def test_other_logits_are_not_kept(full, tmp_path, packnet, monkeypatch):
    """What another runtime computes otherwise leaves no file."""
    load = torch.export.load

    def load_otherwise(file):
        program = load(file)
        program.state_dict["fc.bias"].data += 0.1
        return program

    monkeypatch.setattr(torch.export, "load", load_otherwise)
    result = packnet("extract", full, "--task", "green", "-o", tmp_path / "x.pt2")
    assert result.exit_code == 7 and "other logits, by up to 0.1;" in result.stderr
    assert os.listdir(tmp_path) == ["full.st"]


def test_an_exported_program(full, tmp_path, packnet):
    """It reloads without timm to the same logits, to the bit."""
    output = tmp_path / "x.pt2"
    assert packnet("extract", full, "--task", "green", "-o", output).exit_code == 0
    told = {"packnet.json": ""}
    program = torch.export.load(output, extra_files=told).module()
    packed = packnet_cli.load(full)
    assert logits(program).tobytes() == logits(packed.model("green")).tobytes()
    check_about(told["packnet.json"], packed.task("green"), packed.artifact.header)


def test_what_torch_cannot_export_is_one_line(full, tmp_path, monkeypatch):
    """Its own first words, no traceback, no file."""
    artifact = packnet_cli.load(full).artifact
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(NetworkError, match="torch cannot export test_resnet like this: division by zero"):
        export.write_program(artifact, artifact.header.task(1), tmp_path / "x.pt2")
    with pytest.raises(ArtifactError):
        export.write_folder(artifact, artifact.header.task(1), tmp_path)


def test_a_missing_extra_is_one_line(full, tmp_path, packnet, monkeypatch):
    """Which says how to install it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    result = packnet("extract", full, "--task", 1, "-o", tmp_path / "x.onnx")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "onnxscript" in result.stderr and "pip install 'packnet-cli[onnx]'" in result.stderr


def test_onnxruntime_sends_no_telemetry():
    """For which it would write files in the user's home, and say in colours where it cannot."""
    code = "from packnet_cli import extras; extras.require('onnx')"
    home = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
