"""The commands as their users type them: output, JSON, and one clear line with its exit code for bad input."""

import errno
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import typer
from conftest import FLAGS, make_folder
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from test_format import rewrite

from packnet_cli import __main__, __version__, report
from packnet_cli.artifact import edit, format, verify
from packnet_cli.cli import app, capacity, keeping, packing, streams, using  # noqa: F401  (importing them adds their commands)
from packnet_cli.engine import network
from packnet_cli.engine.data import splits
from packnet_cli.engine.using.packed import Packed
from packnet_cli.report import console

COMMANDS = typer.main.get_command(app).commands


def answer(result):
    """The JSON document on stdout, which must hold nothing else."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(result, exit_code, *words):
    """One line on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == exit_code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_the_whole_way(tmp_path, folders, packnet):
    """init, add-task, eval, extract, info, in a session like the README's."""
    path = tmp_path / "packed.st"
    result = packnet("init", "--arch", "test_resnet", "--no-pretrained", "--img-size", 32, path)
    assert result.exit_code == 0 and "test_resnet" in result.stdout and "all free" in result.stdout
    result = packnet("add-task", path, "--data", folders[0], "--prune", 0.5, *FLAGS)
    assert result.exit_code == 0
    for words in ("task 1: red", "top-1 dense", "top-1 pruned", "top-1 retrained", "(50.00 %)"):
        assert words in result.stdout
    added = answer(packnet("add-task", path, "--data", folders[1], "--name", "second", "--json", *FLAGS))
    assert added["task"]["index"] == 2 and added["task"]["name"] == "second" and added["free_fraction"] == 0
    assert list(added["task"]["accuracy"]) == ["dense"]

    told = answer(packnet("info", path, "--json"))
    assert told["arch"] == "test_resnet" and told["free_fraction"] == 0
    assert [(t["index"], t["name"], t["num_classes"]) for t in told["tasks"]] == [(1, "red", 3), (2, "second", 2)]
    assert told["tasks"][0]["owned_fraction"] == pytest.approx(0.5, abs=1e-4)
    assert told["bytes"]["file"] == path.stat().st_size < told["bytes"]["separate_networks"]
    assert "second" in packnet("info", path).stdout

    for wanted in ("2", "second"):
        [measured] = answer(packnet("eval", path, "--task", wanted, "--json", "--device", "cpu", "--workers", 0))[
            "tasks"
        ]
        assert (measured["index"], measured["name"], measured["images"]) == (2, "second", 6)
        assert measured["top1"] == added["task"]["top1"]
    table = packnet("eval", path, "--task", "all", "--device", "cpu", "--workers", 0)
    assert table.exit_code == 0 and "red" in table.stdout and "second" in table.stdout


@pytest.mark.parametrize("suffix", [".pt", ".PTH", ".safetensors"])
def test_extract_opens_in_plain_timm_with_the_same_logits(full, tmp_path, packnet, suffix):
    """To the bit, for every task."""
    artifact = format.load(full)
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for task in artifact.header.tasks:
        output = tmp_path / f"{task.name}{suffix}"
        result = packnet("extract", full, "--task", task.name, "-o", output)
        assert result.exit_code == 0 and "timm.create_model('test_resnet'" in result.stdout
        # All of the preprocessing, which a .pt file itself does not hold.
        assert all(f"{key} {value}" in result.stdout for key, value in artifact.header.data_config.items())
        plain = timm.create_model("test_resnet", num_classes=len(task.classes), checkpoint_path=str(output)).eval()
        with torch.inference_mode():
            expected = Packed(artifact).model(task.index)(pictures).numpy().tobytes()
            assert plain(pictures).numpy().tobytes() == expected
    if suffix == ".safetensors":
        with safe_open(output, "np") as file:
            assert json.loads(file.metadata()["packnet_task"])["classes"] == list(artifact.header.tasks[-1].classes)
    else:
        assert network.read(plain).keys() == torch.load(output, weights_only=True).keys()


def test_info_of_an_artifact_without_tasks(packed, packnet):
    """Everything is free, and there is nothing to compare with."""
    text = packnet("info", packed).stdout
    assert "100.00 %" in text and "in this file\n" in text and "for each task" not in text


def test_version(packnet):
    """For bug reports."""
    assert packnet("--version").stdout == f"packnet {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(packnet, monkeypatch, command):
    """It tells what the command does, and ends with an example; nothing is cut short; the bare program lists it."""
    monkeypatch.setenv("COLUMNS", "80")
    text, about = " ".join(packnet(command, "--help").stdout.split()), COMMANDS[command]
    assert about.help.splitlines()[0] in text and text.endswith(about.epilog.rpartition("$ ")[2])
    assert "…" not in text
    assert f" {command} " in packnet("--help").stdout


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["add-tsk", "x.st"], ["No such command 'add-tsk'. Did you mean 'add-task'?", "(see packnet --help)"]),
        (["--quite", "info", "x.st"], ["No such option: --quite", "(see packnet --help)"]),
        (["info"], ["Missing argument 'PACKED'", "(see packnet info --help)"]),
        (["eval", "x.st", "--tsk", 2], ["--task", "(see packnet eval --help)"]),
        (["init", "x.st", "--arch"], ["--arch", "requires an argument", "(see packnet init --help)"]),
        (["add-task", "x.st", "--data", "d", "--lr", "fast"], ["'--lr'", "(see packnet add-task --help)"]),
    ],
)
def test_a_command_line_that_cannot_be_parsed(packnet, arguments, words):
    """One line as of any other wrong argument, and where to look."""
    refused(packnet(*arguments), 2, *words)


def test_without_a_command_there_is_help(packnet):
    """And the exit code of a wrong argument."""
    result = packnet()
    assert result.exit_code == 2 and "add-task" in result.stdout


def test_eval_says_where_all_images_are_measured(packed, tmp_path, folders, packnet):
    """In a copy of the folder that the task was trained on, the training images are no longer told from the others."""
    assert packnet("add-task", packed, "--data", folders[0] / "train", *FLAGS).exit_code == 0
    shutil.copytree(folders[0] / "train", tmp_path / "copy")
    told = packnet("eval", packed, "--task", 1, "--workers", 0)
    assert told.stderr == "" and " 3 " in told.stdout
    told = packnet("eval", packed, "--task", 1, "--workers", 0, "--data", tmp_path / "copy")
    assert "no images are held out here" in told.stderr and " 18 " in told.stdout
    for there in (folders[0], folders[0] / "val"):
        assert packnet("eval", packed, "--task", 1, "--workers", 0, "--data", there).stderr == ""


def test_eval_of_every_task_on_one_tasks_images_says_so(full, folders, packnet):
    refused(packnet("eval", full, "--data", folders[2]), 6, "without --task NAME all 3 tasks are measured on")


def test_eval_warns_when_other_images_are_held_out_than_were(packed, tmp_path, packnet):
    """A part of each class is drawn; with more images in the class the part is larger, by some that were trained on."""
    folder = make_folder(tmp_path / "data") / "train"
    assert packnet("add-task", packed, "--data", folder, *FLAGS).exit_code == 0
    for image in list(folder.rglob("*.png")):
        shutil.copy(image, image.with_name(f"more-{image.name}"))
    told = packnet("eval", packed, "--task", 1, "--workers", 0, "--json")
    [found] = answer(told)["tasks"]
    assert found["doubt"] in told.stderr.replace("\n", " ") and found["images"] == 6
    assert "it may have been trained on some of them" in found["doubt"]
    assert packnet("eval", packed, "--task", 1, "--workers", 0, "--data", folder.parent / "val").stderr == ""


def test_held_out_images_that_are_gone_are_made_up_for_by_others(packed, tmp_path, packnet, monkeypatch):
    """By as many that were trained on, which is said. Elsewhere, and by another path, the same ones are the same."""
    folder = make_folder(tmp_path / "data") / "train"
    assert packnet("add-task", packed, "--data", folder, *FLAGS).exit_code == 0
    before = format.load_header(packed).task(1)
    held_out = splits.open_held_out(folder, before.classes, val_split=0.2, seed=0).split.paths
    monkeypatch.chdir(tmp_path)
    for told in (packnet("eval", packed, "--data", "data/train"), packnet("verify", packed, "--data")):
        assert told.exit_code == 0 and told.stderr == ""
    for image in held_out:
        image.rename(tmp_path / f"{image.parent.name}-{image.name}")
    told = packnet("eval", packed, "--workers", 0, "--json")
    assert "it may have been trained on some of them" in told.stderr and answer(told)["tasks"][0]["images"] == 3
    told = packnet("verify", packed, "--data", "--workers", 0)
    assert told.exit_code == 6 and told.stdout.count("\n") == 1 and "may have been trained on some" in told.stdout
    assert "dense" in packnet("prune", packed, "--task", 1, "--prune", 0.1, *FLAGS[2:], "--progress", "json").stderr


def test_eval_warns_of_a_missing_class_and_refuses_an_unknown_one(full, tmp_path, folders, packnet):
    """Classes are matched by name."""
    other = shutil.copytree(folders[0], tmp_path / "other")
    shutil.rmtree(other / "val" / "class1")
    arguments = ("eval", full, "--task", 1, "--data", other, "--device", "cpu", "--workers", 0, "--json")
    result = packnet(*arguments)
    assert "1 of 3 classes have no images here, 'class1'" in result.stderr
    assert answer(result)["tasks"][0]["images"] == 6
    (other / "val" / "class0").rename(other / "val" / "stranger")
    refused(packnet(*arguments[:-1]), 6, "stranger", "unknown to the task")


def test_every_command_says_when_the_data_has_moved(packed, tmp_path, packnet):
    """And takes it from where it is now; each command names what it takes."""
    folder = make_folder(tmp_path / "data")
    assert packnet("add-task", packed, "--data", folder, *FLAGS).exit_code == 0
    folder.rename(tmp_path / "elsewhere")
    alone = f"packnet eval {packed} --task 1 --data DIR"
    for command in (["eval", "--task", 1], ["eval", "--task", "auto"]):
        refused(packnet(*command, packed), 6, "no longer at", alone)
    refused(packnet("compact", packed, "-o", tmp_path / "x.st", "--check"), 6, alone)
    result = packnet("verify", "--data", packed, "--json")
    assert result.exit_code == 6 and "is whole, but 1 task(s)" in result.stderr
    told = json.loads(result.stdout)
    assert told["whole"] and "no longer at" in told["findings"][0]["problem"]
    refused(packnet("prune", packed, "--task", 1, "--prune", 0.5), 6, "no longer at", "with --data")
    assert packnet("eval", packed, "--task", 1, "--data", tmp_path / "elsewhere", "--workers", 0).exit_code == 0


def test_what_is_read_and_each_epoch_are_told_where_there_is_no_terminal(packed, folders, packnet):
    """In lines, as they go to a log: which images, and how training goes."""
    result = packnet("add-task", packed, "--data", folders[0], *FLAGS[2:], "--epochs", 2, "--name", "cubs", "--quiet")
    assert result.exit_code == 2  # which stands before the command
    result = packnet("add-task", packed, "--data", folders[0], *FLAGS[2:], "--epochs", 2, "--name", "cubs")
    told, *epochs = [line for line in result.stderr.splitlines() if line.startswith(("cubs", "train"))]
    assert told == f"cubs: 3 classes, 18 images to train on, 9 held out ({folders[0] / 'val'})"
    assert [epoch.partition("  ")[0] for epoch in epochs] == ["train epoch 1/2", "train epoch 2/2"]
    assert all("images/s" in epoch for epoch in epochs)


def test_eval_goes_on_past_a_task_whose_images_are_gone(full, packnet):
    """Those of the others are shown; what is wrong with that one stands on stderr, and in the document."""
    there = Path(format.load_header(full).tasks[1].data)
    there.rename(there.with_name("elsewhere"))
    try:
        result = packnet("eval", full, "--json", "--workers", 0)
    finally:
        there.with_name("elsewhere").rename(there)
    assert result.exit_code == 6
    lost, last = result.stderr.splitlines()
    assert "no longer at" in lost and last == "error: 1 of 3 tasks could not be measured"
    red, green, blue = json.loads(result.stdout)["tasks"]
    assert green["top1"] is None and "no longer at" in green["problem"]
    assert red["top1"] is not None and blue["problem"] is None


@pytest.mark.parametrize("command", ["eval", "extract", "predict"])
def test_a_task_that_does_not_exist(full, tmp_path, packnet, command):
    """Those that do are listed."""
    more = {"extract": ["-o", tmp_path / "x.pt"], "predict": [tmp_path]}.get(command, [])
    refused(packnet(command, full, "--task", "purple", *more), 4, "purple", "1 (red), 2 (green), 3 (blue)")


def test_eval_of_an_artifact_without_tasks(packed, packnet):
    """What to do next is said."""
    spaced = shutil.copy(packed, packed.with_name("it's mine.st"))
    adding = f"`packnet add-task {shlex.quote(str(spaced))} --data DIR`"
    refused(packnet("eval", spaced, "--task", "all"), 4, "holds no task yet", adding)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--data", "{folder}"], 5, ["no free weights", "--prune"]),
        (["--data", "{folder}", "--prune", "1"], 2, ["--prune", "less than 1"]),
        (["--data", "{folder}", "--prune", "-0.1"], 2, ["--prune"]),
        (["--data", "{folder}", "--opt", "adamv"], 2, ["adamv"]),
        (["--data", "{folder}", "--sched", "linear"], 2, ["--sched", "cosine"]),
        (["--data", "{folder}", "--epochs", "0"], 2, ["--epochs"]),
        (["--data", "{folder}", "--lr", "nan"], 2, ["--lr"]),
    ],
)
def test_add_task_refuses(full, folders, packnet, arguments, exit_code, words):
    """And leaves the file as it is."""
    before = full.read_bytes()
    refused(packnet("add-task", full, *(a.format(folder=folders[0]) for a in arguments)), exit_code, *words)
    assert full.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--data", "/none"], 6, ["/none", "does not exist"]),
        (["--data", "{folder}", "--name", "red"], 4, ["'red' already", "--name"]),
        (["--data", "{folder}", "--name", "7"], 4, ["'7'", "--name"]),
        (["--data", "{folder}", "--name", "all"], 4, ["'all'"]),
        (["--data", "{folder}", "--name", ""], 4, ["'' cannot be a task's name"]),
        (["--data", "{folder}", "--name", "", "--dry-run"], 4, ["'' cannot be a task's name"]),
        (["--data", "{folder}", "--name", "new", "--device", "cuda:99"], 2, ["cuda:99"]),
        (["--data", "{folder}", "--name", "new", "--device", "toaster"], 2, ["toaster"]),
    ],
)
def test_add_task_refuses_before_training(packed, folders, packnet, arguments, exit_code, words):
    """Whatever can be known beforehand."""
    assert packnet("add-task", packed, "--data", folders[0], "--prune", 0.5, *FLAGS).exit_code == 0
    before = packed.read_bytes()
    refused(packnet("add-task", packed, *(a.format(folder=folders[0]) for a in arguments)), exit_code, *words)
    assert packed.read_bytes() == before


def test_a_file_that_is_no_image_is_named(packed, tmp_path, packnet):
    """It has an image's name, but not its content; where an option leaves it out, that is named too."""
    folder = make_folder(tmp_path / "data")
    add_task = ("add-task", packed, "--data", folder, "--prune", 0.5, *FLAGS)
    assert packnet(*add_task).exit_code == 0
    (folder / "train" / "class0" / "broken.jpg").write_text("hello")
    refused(packnet(*add_task, "--name", "more"), 6, "broken.jpg", "with --skip-bad-images\n")
    refused(packnet("prune", packed, "--task", 1, "--prune", 0.5), 6, "broken.jpg", "remove or repair them\n")


def test_bad_images_are_skipped_and_recorded(packed, tmp_path, packnet):
    """Also when the task is evaluated later; a bad image elsewhere is named."""
    folder = make_folder(tmp_path / "data")
    for part in ("train", "val"):
        (folder / part / "class0" / "broken.jpg").write_text("hello")
    result = packnet("add-task", packed, "--data", folder, "--skip-bad-images", *FLAGS)
    assert result.exit_code == 0 and "unreadable images │ 2" in " ".join(result.stdout.split())
    [task] = answer(packnet("info", packed, "--json"))["tasks"]
    assert task["skipped_images"] == 2
    arguments = ("--device", "cpu", "--workers", 0)
    assert answer(packnet("eval", packed, "--json", *arguments))["tasks"][0]["images"] == 9
    assert packnet("verify", packed, "--data", *arguments).exit_code == 0


def test_one_image_in_each_class_and_names_in_any_bytes(packed, tmp_path, packnet):
    """It is trained on them; what cannot be measured is passed over, and no name is acted on."""
    folder = make_folder(tmp_path / "lone", train=1)
    shutil.rmtree(folder / "val")
    (folder / "train" / "class0").rename(os.fsdecode(os.fsencode(folder) + b"/train/\x1b[31m\xff[red]"))
    result = packnet("add-task", packed, "--data", folder, "--prune", 0.5, *FLAGS)
    assert result.exit_code == 0 and "none: accuracy unmeasured" in result.stdout
    arguments = ("--device", "cpu", "--workers", 0)
    assert "unmeasured" in packnet("eval", packed, *arguments).stdout
    assert packnet("verify", packed, "--data", *arguments).exit_code == 0
    refused(packnet("eval", packed, "--task", 1, *arguments), 6, "no images to evaluate on")
    told = packnet("info", packed, "--task", 1)
    assert "\\u001b[31m\\udcff[red] to class2" in told.stdout
    assert packnet("extract", packed, "--task", 1, "-o", tmp_path / "out.safetensors").exit_code == 0


def test_eval_names_bad_images(full, tmp_path, packnet):
    """Rather than end in the midst of it."""
    folder = make_folder(tmp_path / "data")
    (folder / "val" / "class0" / "broken.jpg").write_text("hello")
    refused(packnet("eval", full, "--task", 1, "--data", folder, "--device", "cpu"), 6, "broken.jpg")


def test_a_layer_that_is_not_there_cannot_be_spared(full, packed, folders, packnet):
    """Said before any training."""
    for line in (
        ["add-task", packed, "--data", folders[0], "--prune", 0.5],
        ["prune", full, "--task", 3, "--prune", 0.5],
    ):
        refused(packnet(*line, "--skip-layers", "conv9*", "--device", "cpu"), 2, "--skip-layers 'conv9*'", "conv1.0")


def test_a_release_of_nothing_is_refused(packed, folders, packnet):
    """Before training, which it would be for nothing; also where the settings on record are what spares all."""
    spared = ("--skip-layers", "*", *FLAGS)
    add_task = ("add-task", packed, "--data", folders[0])
    for release in (("--prune", 0.5), ("--max-drop", 1), ("--prune", 0.5, "--dry-run")):
        refused(packnet(*add_task, *release, *spared), 2, "would release nothing", "--skip-layers")
    refused(packnet(*add_task, "--prune", 1e-9, *FLAGS), 2, "it is less than one weight of each layer")
    assert packnet(*add_task, *spared).exit_code == 0
    before = packed.read_bytes()
    refused(packnet("prune", packed, "--task", 1, "--prune", 0.5), 2, "would release nothing", "--skip-layers")
    assert packed.read_bytes() == before
    assert packnet("prune", packed, "--task", 1, "--prune", 0.5, "--skip-layers", "").exit_code == 0


def test_classes_without_a_readable_held_out_image_are_named(packed, tmp_path, packnet):
    """When the task is added, and when it is evaluated."""
    folder = make_folder(tmp_path / "data")
    for image in (folder / "val" / "class1").iterdir():
        image.write_text("hello")
    result = packnet("add-task", packed, "--data", folder, "--skip-bad-images", *FLAGS)
    assert result.exit_code == 0 and "1 of 3 classes have no image to hold out, 'class1' among them" in result.stderr
    told = answer(packnet("eval", packed, "--json", "--device", "cpu"))["tasks"][0]
    assert told["missing_classes"] == ["class1"]


def test_a_damaged_task_is_not_extracted(full, tmp_path, packnet):
    """The others still are, and so is it where the damage is in what it does not see."""
    damaged = format.load(full)
    damaged.own[2]["fc.bias"].view(np.uint8)[1] ^= 16
    format.save(damaged, full)
    output = tmp_path / "task.pt"
    refused(packnet("extract", full, "--task", 2, "-o", output), 3, "task 2", "is not what was added", "packnet verify")
    assert not output.exists()
    assert packnet("extract", full, "--task", 1, "-o", output).exit_code == 0


@pytest.mark.parametrize("batch_size", [8, 32])
def test_divergence_writes_nothing(packed, folders, packnet, batch_size):
    """Exit code 10, and what to try; also if it was the last step, which no loss has seen."""
    before = packed.read_bytes()
    result = packnet("add-task", packed, "--data", folders[0], "--lr", "1e30", *FLAGS, "--batch-size", batch_size)
    assert result.exit_code == 10 and result.stderr.endswith("Try a lower learning rate than 1e+30\n")
    assert packed.read_bytes() == before


def test_divergence_where_the_rate_was_raised(packed, folders, packnet):
    """It names the rate that was given, and by how much it was raised."""
    assert packnet("add-task", packed, "--data", folders[0], "--prune", 0.25, *FLAGS).exit_code == 0
    result = packnet("add-task", packed, "--data", folders[1], "--lr", "1e30", *FLAGS)
    assert result.exit_code == 10 and "than 1e+30, which was raised 4 times, or --lr-scale none" in result.stderr


def test_init_refuses(tmp_path, packed, packnet):
    """Each with its exit code; the file that is in the way stays."""
    before = packed.read_bytes()
    init = ("init", "--arch", "test_resnet", "--no-pretrained")
    refused(packnet(*init, packed), 3, "exists already", "--force")
    refused(packnet("init", "--arch", "resnet51", "--no-pretrained", tmp_path / "a.st"), 7, "did you mean", "resnet50")
    refused(packnet(*init, tmp_path / "none" / "a.st"), 3, "does not exist")
    refused(packnet(*init, tmp_path / "a.st", "--mean", "0.5;0.5"), 2, "--mean")
    refused(packnet(*init, tmp_path / "a.st", "--mean", "0.5,0.5"), 2, "--mean")
    refused(packnet(*init, tmp_path / "a.st", "--mean", "127", "--std", "58"), 2, "--mean 127", "127 of 255 is 0.498")
    for flag, wrong in (
        ("--mean", "nan"),
        ("--mean", "-0.1"),
        ("--std", "1.1"),
        ("--mean", "0,inf,0"),
        ("--std", "nan"),
        ("--std", "0"),
        ("--std", "-1"),
    ):
        refused(packnet(*init, tmp_path / "a.st", flag, wrong), 2, flag, wrong)
    refused(packnet(*init, tmp_path / "a.st", "--crop-pct", "nan"), 2, "--crop-pct")
    refused(packnet(*init, tmp_path / "a.st", "--seed", 2**32), 2, "--seed")
    refused(packnet(*init, tmp_path / "a.st", "--in-chans", 5), 2, "--in-chans")
    refused(packnet(*init, tmp_path / "a.st", "--model-kwargs", "in_chans=1"), 2, "--in-chans 1")
    refused(packnet(*init, tmp_path / "a.st", "--interpolation", "magic"), 2, "--interpolation")
    for size in ([], ["--img-size", 32]):  # without it, images of the usual size
        refused(packnet(*init, tmp_path / "a.st", *size, "--model-kwargs", "img_size=64"), 2, "by --img-size alone")
    for pair, word in (("x", "KEY=VALUE"), ("pretrained_cfg={}", "KEY=VALUE"), ("x={1}", "set"), ("x=1e999", "float")):
        refused(packnet(*init, tmp_path / "a.st", "--model-kwargs", pair), 2, word)
    refused(packnet(*init, tmp_path / "a.st", "--model-kwargs", "features_only=True"), 7, "a logit for each class")
    assert packed.read_bytes() == before and not (tmp_path / "a.st").exists()
    assert packnet(*init, packed, "--force", "--seed", 1).exit_code == 0
    assert packed.read_bytes() != before


def test_an_empty_argument_is_refused(full, folders, tmp_path, packnet, monkeypatch):
    """Python takes an empty path for the current folder, which may well hold images; some texts may be empty."""
    monkeypatch.chdir(folders[0])
    before = full.read_bytes()
    for line in (
        ("add-task", full, "--name", "new", "--head-only", *FLAGS, "--data", ""),
        ("add-task", full, "--name", "new", "--head-only", *FLAGS, "--data="),
        ("add-task", full, "--data", folders[0], "--name", "new", "--head-only", *FLAGS, "--log", ""),
        ("init", tmp_path / "new.st", "--arch", "test_resnet", "--no-pretrained", "--weights", ""),
        ("predict", full, "--task", "red", ""),
        ("extract", full, "--task", "red", "-o", ""),
        ("info", ""),
    ):
        result = packnet(*line)
        refused(result, 2, f"the argument after {line[-1].strip('=') or line[-2]} is empty")
    refused(packnet("rename", full, "--task", "red", "--name", ""), 4, "cannot be a task's name")
    result = packnet("prune", full, "--task", "blue", "--prune", 0.5, "--skip-layers", "", *FLAGS[2:])
    assert result.exit_code == 0 and before != full.read_bytes()


def test_a_file_that_may_not_be_read(full, folders, packnet, monkeypatch):
    """Told where it is read, with the exit code of what it is, and not as a wrong argument."""
    monkeypatch.setattr(os, "access", lambda path, how, **kwargs: how != os.R_OK)
    assert packnet("info", full).exit_code == 0
    assert packnet("eval", full, "--task", "red", "--data", folders[0]).exit_code == 0

    def denied(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(format, "open", denied, raising=False)
    refused(packnet("info", full), 3, f"cannot read {full}: Permission denied")


def test_no_hub_is_one_clear_line(tmp_path, packnet):
    """After the word that it is being tried; the ways on are named."""
    result = packnet("init", "--arch", "test_resnet", tmp_path / "a.st")
    assert result.exit_code == 7 and result.stdout == ""
    fetching, error = result.stderr.splitlines()
    assert fetching.startswith("fetching") and error.startswith("error: cannot load")
    assert "--weights FILE" in error and "--no-pretrained" in error


def test_extract_refuses(full, tmp_path, packnet):
    """An output that cannot be written, or that says no format."""
    for name in ("x.zip", "x.SAFETENSORS"):
        refused(packnet("extract", full, "--task", 1, "-o", tmp_path / name), 2, ".pt, .pth, .safetensors")
    refused(packnet("extract", full, "--task", 1, "-o", tmp_path / "none" / "x.pt"), 3, "does not exist")
    packed, before = full.with_suffix(".safetensors"), full.read_bytes()
    full.rename(packed)
    refused(packnet("extract", packed, "--task", 1, "-o", packed), 2, "a packed model, whose tasks would be lost")
    assert packed.read_bytes() == before


@pytest.mark.parametrize("command", ["info", "eval", "extract", "predict", "plot", "add-task"])
def test_what_is_no_artifact_is_refused(tmp_path, folders, packnet, command):
    """Missing, or something else."""
    more = {
        "extract": ["--task", 1, "-o", tmp_path / "x.pt"],
        "predict": [tmp_path, "--task", 1],
        "plot": ["-o", tmp_path / "x.png"],
        "add-task": ["--data", folders[0]],
    }.get(command, [])
    refused(packnet(command, tmp_path / "none.st", *more), 3, "does not exist", "packnet init")
    (tmp_path / "other.st").write_bytes(b"something else")
    refused(packnet(command, tmp_path / "other.st", *more), 3, "not a packed model")
    refused(packnet(command, tmp_path / "othr.st", *more), 3, f"does not exist; did you mean {tmp_path / 'other.st'}?")


def test_init_keeps_the_network_as_task_1(tmp_path, folders, packnet):
    """With its own classifier; and the recipe of the paper by name, with one setting changed."""
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "w.pt")
    how = ["--arch", "test_resnet", "--weights", tmp_path / "w.pt", "--img-size", 32, "--data", folders[2]]
    result = packnet("init", *how, "--prune", 0.5, "--recipe", "paper", "--retrain-epochs", 1, tmp_path / "a.st")
    assert result.exit_code == 0 and "task 1: blue" in result.stdout and "top-1 retrained" in result.stdout
    told = answer(packnet("info", tmp_path / "a.st", "--json"))["tasks"][0]
    assert told["recipe"]["norm"] == "frozen" and told["recipe"]["retrain_epochs"] == 1
    refused(packnet("init", *how, tmp_path / "b.st"), 2, "--data goes with --prune")
    for flag in (["--log", tmp_path], ["--resume"]):
        refused(packnet("init", *how[:4], *flag, tmp_path / "b.st"), 2, f"{flag[0]} goes with --prune")
    for flag in (["--opt", "momentum"], ["--batch-size", 7], ["--recipe", "adamw"]):
        refused(packnet("init", *how[:4], *flag, tmp_path / "b.st"), 2, f"{flag[0]} goes with --prune")
    wrong = ("--device", "toaster", "--prune", 0.5)
    refused(packnet("init", *how, *wrong, tmp_path / "b.st"), 2, "toaster")
    refused(packnet("prune", tmp_path / "a.st", "--task", 1, *wrong, "--data", tmp_path / "none"), 2, "toaster")
    refused(packnet("init", *how, "--prune", 0.5, "--recipe", "mine", tmp_path / "b.st"), 2, "'sgd', 'adamw', 'paper'")
    result = packnet("init", "--arch", "test_resnet", "--prune", 0.5, "--dry-run", tmp_path / "b.st")
    assert result.exit_code == 0 and "50.00 %" in result.stdout and not (tmp_path / "b.st").exists()


def test_prune_and_plan(packed, folders, packnet):
    """Shares planned, then taken: `--prune auto`, `prune`, and what a full file says to do."""
    assert packnet("plan", packed, "--tasks", 3, "--layers").stdout.count("33.3") == 3
    planned = answer(packnet("plan", packed, "--tasks", 3, "--json"))
    dry = answer(
        packnet("add-task", packed, "--data", folders[0], "--prune", "auto", "--tasks-left", 2, "--dry-run", "--json")
    )
    assert dry["tasks"][0]["owned"] == planned["tasks"][0]["owned"]
    for wrong in ("nan", "5", "1", "-0.1"):
        dry_run = ("add-task", packed, "--data", folders[0], "--dry-run", "--prune", wrong)
        refused(packnet(*dry_run), 2, "less than 1", wrong, *["5 % are 0.05"] * (wrong == "5"))
    for given, words in (
        (["--prune", "auto"], "needs either --tasks-left"),
        (["--prune", 0.5, "--tasks-left", 2], "--prune 0.5 leaves nothing to choose"),
        (["--tasks-left", 2, "--max-drop", 1], "exclude each other"),
        (["--prune", "half"], "a fraction from 0 to 1, or auto, not 'half'"),
    ):
        refused(packnet("add-task", packed, "--data", folders[0], *given), 2, words)
    added = answer(packnet("add-task", packed, "--data", folders[0], "--tasks-left", 2, "--json", *FLAGS))
    assert added["task"]["owned_weights"] == pytest.approx(planned["tasks"][0]["owned_weights"], abs=20)
    assert answer(packnet("add-task", packed, "--data", folders[1], "--json", *FLAGS))["free_fraction"] == 0
    refused(packnet("add-task", packed, "--data", folders[2]), 5, "packnet prune", "--head-only")
    refused(packnet("prune", packed, "--task", "red", "--prune", 0.5), 4, "Only the newest", "2 (green)")
    pruned = answer(packnet("prune", packed, "--task", "green", "--prune", 0.5, "--json", "--device", "cpu"))
    assert pruned["free_fraction"] == pytest.approx(1 / 3, abs=1e-3)
    said = packnet("plan", packed, "--tasks", 250).stderr
    assert "tasks 3, 4, 5, 6, 7 and 243 more own little" in said and "more own nothing in up to" in said
    refused(packnet("plan", packed, "--tasks", 1), 2, "holds 2 tasks already")


LONG = "x" * 300  # more than a file system takes


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["predict", "{full}", "--task", "1", f"/{LONG}/x.png"], 6),
        (["add-task", "{packed}", "--data", f"/{LONG}"], 6),
        (["add-task", "{packed}", "--data", f"/{LONG}.csv"], 6),
        (["eval", "{full}", "--task", "1", "--data", f"/{LONG}"], 6),
        (["prune", "{full}", "--task", "blue", "--prune", "0.5", "--distill", f"/{LONG}"], 6),
        (["init", "{new}", "--arch", "test_resnet", "--weights", f"/{LONG}"], 7),
        (["init", "{new}", "--arch", "test_resnet", "--no-pretrained", "--config", f"/{LONG}"], 2),
        (["extract", "{full}", "--task", "1", "-o", f"{LONG}.pt"], 3),
        (["extract", "{full}", "--task", "1", "-o", LONG], 3),
        (["info", LONG], 3),
        (["rename", LONG, "--task", "1", "--name", "new"], 3),
        (["plot", "{full}", "-o", f"{LONG}.png"], 3),
        (["add-task", "{packed}", "--data", "/", "--log", f"/{LONG}"], 3),
    ],
)
def test_a_path_that_is_too_long(full, packed, tmp_path, packnet, arguments, exit_code):
    """Wherever a path may stand."""
    result = packnet(*(a.format(full=full, packed=packed, new=tmp_path / "new.st") for a in arguments))
    assert result.exit_code == exit_code and result.stdout == ""
    assert all(line.startswith("error: ") for line in result.stderr.splitlines()) and result.stderr


def test_whatever_else_the_system_refuses_is_one_line(full, packnet, monkeypatch):
    """With the path, if there is one."""

    def fail(path):
        raise PermissionError(errno.EACCES, "Permission denied", "/secret")

    monkeypatch.setattr(verify, "verify", fail)
    refused(packnet("verify", full), 2, "cannot use /secret: Permission denied")


def test_a_working_folder_that_is_gone(full, tmp_path, packnet, monkeypatch):
    """Neither relative paths nor torch can do without."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    refused(packnet("verify", full), 2, "the folder that this was started in no longer exists")


def test_a_working_folder_that_may_not_be_read(full, packnet, monkeypatch):
    """Some systems, such as macOS, then do not tell its name."""

    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "getcwd", refuse)
    refused(packnet("verify", full), 2, "the folder that this was started in cannot be used (Permission denied)")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("cp1252", "\\u65e5\\u672c é \\ud83d\\ude00".encode("cp1252")), ("utf-8", "日本 é 😀".encode())],
)
def test_an_encoding_that_lacks_a_character(full, encoding, shown):
    """It is written as JSON would, so that JSON stays what it is."""
    edit.rename(full, 1, "日本 é 😀")
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for form in ([], ["--json"]):
        command = [sys.executable, "-m", "packnet_cli", "info", full, *form]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0 and shown in done.stdout, done.stderr
    assert json.loads(done.stdout.decode(encoding))["tasks"][0]["name"] == "日本 é 😀"


def test_names_are_not_markup(packed, tmp_path, packnet):
    """A folder's name reaches the terminal as it is, with no colour, link or error."""
    folder = make_folder(tmp_path / "[bold]x[", classes=2)
    result = packnet("add-task", packed, "--data", folder, *FLAGS)
    assert result.exit_code == 0 and "[bold]x[" in result.stdout
    assert "[bold]x[" in packnet("info", packed).stdout


def test_ctrl_c_leaves_the_file_and_exits_130(packed, tmp_path):
    """In a terminal of its own, interrupted in the midst of training."""
    folder, before = make_folder(tmp_path / "data"), packed.read_bytes()
    command = [sys.executable, "-m", "packnet_cli", "add-task", packed, "--data", folder, "--epochs", "100000"]
    screen, terminal = pty.openpty()
    with subprocess.Popen([*command, "--workers", "1"], stderr=terminal, start_new_session=True) as process:
        os.close(terminal)
        shown = read_until(screen, "epoch")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        shown += read_until(screen, None)
    os.close(screen)
    assert process.returncode == 130
    assert "error: interrupted" in shown and "--resume" in shown and "Traceback" not in shown
    assert packed.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["data", "packed.st", "packed.st.resume"]


TERMINATED = """
import os, signal, sys
from packnet_cli.__main__ import main
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGTERM)
sys.argv[0] = "packnet"
main()
"""


@pytest.mark.parametrize(
    "command",
    [
        "extract {} --task 1 -o {}/out",
        "compact {} -o {}/out.st",
        "plot {} -o {}/out.svg",
        "rename {} --task 1 --name new",
    ],
)
def test_a_command_ended_by_the_system_leaves_no_half_of_a_file(full, tmp_path, command):
    """SIGTERM, here when all is written and not yet in place, is heeded as Ctrl-C is."""
    before = full.read_bytes()
    arguments = command.format(full, tmp_path).split()
    done = subprocess.run([sys.executable, "-c", TERMINATED, *arguments], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.startswith("error: interrupted"), done.stderr
    assert os.listdir(tmp_path) == ["full.st"] and full.read_bytes() == before


def test_ctrl_c_at_the_very_end(full, packnet, monkeypatch):
    """The message does not claim that the file is the old one."""
    monkeypatch.setattr(report, "renamed", Mock(side_effect=KeyboardInterrupt))
    refused(packnet("rename", full, "--task", 1, "--name", "new"), 130, "or already with the result")
    assert format.load_header(full).task(1).name == "new"


def test_ctrl_c_while_the_program_is_still_being_loaded(monkeypatch, capsys):
    """One line too."""
    monkeypatch.setitem(sys.modules, "packnet_cli.cli", Interrupted("packnet_cli.cli"))
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was written\n"


class Interrupted(ModuleType):
    def __getattr__(self, name):
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["--help", "info {}"])
def test_a_terminal_of_unknown_width(full, command):
    """Some say that it has no columns."""
    line = [sys.executable, "-m", "packnet_cli", *command.format(full).split()]
    assert len(subprocess.check_output(line, text=True, env=os.environ | {"COLUMNS": "0"})) > 500


def read_until(screen, word):
    """What a terminal shows until `word` comes, or with None until the program has ended."""
    shown = ""
    while word is None or word not in shown:
        try:
            shown += os.read(screen, 4096).decode(errors="replace")
        except OSError:  # the program has closed the terminal
            break
    return shown


class Panic(BaseException):
    """As safetensors raises it."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. can't allocate memory: 3\n at"),
        RuntimeError("could not create a primitive 3"),
        Panic("PyObject pointer is null 3"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object 3"),
    ],
)
def test_memory_that_is_not_enough_is_one_line(full, packnet, monkeypatch, error):
    """Wherever it runs out: numpy's, torch's, oneDNN's or safetensors'."""

    def fail(path):
        raise error

    monkeypatch.setattr(verify, "verify", fail)
    result = packnet("verify", full)
    assert "alloc_cpu" not in result.stderr
    refused(result, 2, "this machine's memory is not enough", "3")


def test_quiet_is_not_silent_about_what_may_be_lost(capsys, monkeypatch):
    monkeypatch.setattr(report.talk, "quiet", True)
    report.say("all is well")
    report.say("no checkpoint could be kept", warning=True)
    assert capsys.readouterr().err == "warning: no checkpoint could be kept\n"


@pytest.mark.parametrize(("command", "suffix"), [(["extract", "--task", 1], ".safetensors"), (["plot"], ".svg")])
def test_nothing_is_written_over_a_packed_model(full, tmp_path, packnet, command, suffix):
    """Another one, or, by a link to it, the same: all tasks would be lost."""
    other, link, before = shutil.copy(full, tmp_path / f"other{suffix}"), tmp_path / f"link{suffix}", full.read_bytes()
    link.symlink_to(full)
    refused(packnet(*command, full, "-o", other), 2, "is a packed model")
    refused(packnet(*command, full, "-o", link), 2, "a packed model, whose tasks would be lost")
    newer = shutil.copy(full, tmp_path / f"newer{suffix}")
    rewrite(newer, lambda tensors, fields: fields.update(format=3))
    refused(packnet(*command, full, "-o", newer), 2, "a packed model, whose tasks would be lost")
    (circle := tmp_path / f"circle{suffix}").symlink_to(circle)
    refused(packnet(*command, full, "-o", circle), 3, "cannot use the path")
    assert other.read_bytes() == full.read_bytes() == before


def test_a_dry_run_of_init_names_the_task_as_init_does(tmp_path, packnet):
    """By its classes or images; and refuses what is no name."""
    init = ("init", tmp_path / "a.st", "--arch", "test_resnet", "--prune", 0.5, "--dry-run")
    assert answer(packnet(*init, "--json"))["tasks"][0]["name"] == "imagenet"
    for wrong in ("3", ""):
        refused(packnet(*init, "--name", wrong), 4, f"'{wrong}' cannot be")
    for wrong in ("--data", "--class-names"):  # of a task that is named, too
        refused(packnet(*init, "--name", "mine", wrong, tmp_path / "none"), 6, str(tmp_path / "none"))
    refused(packnet(*init, "--distill", tmp_path / "none"), 6, "none is not a folder; name a folder of images")
    assert "shown is what --rank layer would" in packnet(*init, "--rank", "global").stderr
    (tmp_path / "a.st").touch()
    refused(packnet(*init), 3, "exists already")


def test_a_dry_run_of_init_refuses_what_has_no_classifier(tmp_path, packnet):
    """Or weights, to keep; without asking the hub."""
    init = ("init", tmp_path / "a.st", "--prune", 0.5, "--dry-run", "--arch")
    refused(packnet(*init, "test_resnet", "--no-pretrained"), 2, "random weights can do nothing")
    refused(packnet(*init, "vit_small_patch14_dinov2.lvd142m"), 2, "has no classifier of its own")
    refused(packnet(*init, "resnet10t.none"), 7, "resnet10t.none")


def test_a_dry_run_of_init_looks_at_the_weights(tmp_path, folders, packnet):
    """They say how many classes there are."""
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.pth")
    init = ("init", tmp_path / "a.st", "--arch", "test_resnet", "--prune", 0.5, "--data", folders[0], "--dry-run")
    assert packnet(*init, "--weights", tmp_path / "w.pth").exit_code == 0
    (tmp_path / "names.txt").write_text("class0\nclass1\nother\n")
    named = ("--weights", tmp_path / "w.pth", "--class-names", tmp_path / "names.txt")
    refused(packnet(*init, *named), 6, "1 class(es) unknown to the task: class2")
    refused(packnet(*init, "--weights", tmp_path / "none.pth"), 7, "none.pth does not exist; check the path")
    refused(packnet(*init, "--weights", tmp_path / "w.pt"), 7, "w.pt does not exist; did you mean", "w.pth?")


def test_talk_that_nobody_hears(monkeypatch):
    """Is left, and whatever it is about goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as stream:
        monkeypatch.setattr(sys, "stderr", streams._Expendable(stream, line_buffering=True))
        for name in ("talk", "err"):
            monkeypatch.setattr(console, name, Console(**console.PLAIN, stderr=True))
        console.say("something")
        console.say("something", warning=True)
        console.print_json_on_stderr({"epoch": 1})
        with pytest.raises(BrokenPipeError):
            stream.write(b"something")


def test_a_dry_run_refuses_what_the_run_would(full, packed, folders, packnet):
    """A name that is taken, images that are not there, and a task that takes no weights."""
    for none in ("/none", "/none.csv"):
        refused(packnet("add-task", packed, "--data", none, "--dry-run"), 6, none, "does not exist; name a folder")
    near = folders[0].with_name(folders[0].name + "s")
    refused(packnet("add-task", packed, "--data", near, "--dry-run"), 6, f"did you mean {folders[0]}?")
    image = next((folders[0] / "train").glob("*/*"))
    refused(packnet("add-task", packed, "--data", image, "--dry-run"), 6, "is no folder")
    (archive := packed.with_name("cars.tar.gz")).touch()
    refused(packnet("add-task", packed, "--data", archive, "--dry-run"), 6, "is no folder", "unpack it first")
    refused(packnet("add-task", packed, "--data", "torch/cifar11", "--dry-run"), 6, "cannot open the dataset")
    refused(packnet("add-task", full, "--data", folders[0], "--dry-run"), 5, "no free weights")
    assert packnet("remove-task", full, "--task", "blue", "--yes").exit_code == 0
    refused(packnet("add-task", full, "--data", folders[0], "--dry-run"), 4, "red")
    ranked = packnet("add-task", packed, "--data", folders[0], "--rank", "global", "--prune", 0.5, "--dry-run")
    assert ranked.exit_code == 0 and "shown is what --rank layer would" in ranked.stderr
    refused(packnet("add-task", packed, "--data", folders[0], "--head-only", "--dry-run"), 2, "--head-only")
    refused(packnet("add-task", packed, "--data", folders[0], "--opt", "AdamW", "--dry-run"), 2, "AdamW")


def test_removing_a_head_says_nothing_of_weights(full, folders, packnet):
    """It had none."""
    assert packnet("add-task", full, "--data", folders[0], "--name", "head", "--head-only", *FLAGS).exit_code == 0
    result = packnet("remove-task", full, "--task", "head", "--yes")
    assert result.stdout.endswith("task 4 (head) removed\n")


def test_a_compact_file_cannot_be_measured_on_images_that_it_does_not_remember(full, tmp_path, packnet):
    """To say that it is whole would be to say too much."""
    packnet("compact", full, "-o", tmp_path / "ship.st")
    refused(packnet("verify", tmp_path / "ship.st", "--data"), 2, "--data DIR")


def test_predict_refuses_what_add_task_refuses(full, tmp_path, packnet):
    """Pixels of unknown range, and what is not a regular file; the others go on."""
    Image.fromarray(np.random.default_rng(0).random((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    names = [tmp_path / name for name in ("float.tif", "pipe.png", "good.png")]
    result = packnet("predict", full, "--task", 1, *names, "--csv", "--device", "cpu")
    assert result.exit_code == 6
    assert "unknown range" in result.stderr and "pipe.png: not a regular file" in result.stderr
    assert "good.png" in result.stdout and "float.tif" not in result.stdout


def test_a_number_too_large_for_any(packed, folders, tmp_path, packnet):
    (tmp_path / "c.toml").write_text("lr = 1" + 400 * "0")
    arguments = ("add-task", packed, "--data", folders[0], "--config", tmp_path / "c.toml")
    refused(packnet(*arguments), 2, "lr is too large")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stdout_that_takes_nothing(packed, monkeypatch, unbuffered):
    """A full disk, say: one line on stderr, with --json too."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for arguments in (["info", packed], ["info", packed, "--json"], ["--help"], ["--version"]):
        line = [sys.executable, "-m", "packnet_cli", *arguments]
        with open("/dev/full", "w") as full:
            done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 3
        reason = "No space left on device; send it elsewhere (files are written all the same)"
        assert done.stderr == f"error: cannot write the output: {reason}\n"
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "packnet_cli", "info", packed / "none", "--json"]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3 and done.stderr.count("\n") == 1 and "none" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_is_gone(packed, monkeypatch, unbuffered):
    """Ends the program without a word."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for arguments in (["info", packed], ["--help"], ["--version"]):
        reading, writing = os.pipe()
        os.close(reading)
        line = [sys.executable, "-m", "packnet_cli", *arguments]
        with open(writing, "w") as gone:
            done = subprocess.run(line, stdout=gone, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (1, "")


def test_a_stderr_that_takes_nothing(packed, folders):
    """No command ends because of it, and none ends otherwise."""
    program = [sys.executable, "-m", "packnet_cli"]
    add_task = ["add-task", packed, "--data", folders[0], *map(str, FLAGS)]
    for arguments, exit_code in ((["info", packed / "none"], 3), (add_task, 0), (["verify", packed], 0)):
        with open("/dev/full", "w") as full:
            assert subprocess.run([*program, *arguments], stderr=full, stdout=subprocess.PIPE).returncode == exit_code


def test_streams_that_are_closed(full, folders):
    """Are empty, or take nothing."""
    program, picture = f"'{sys.executable}' -m packnet_cli", folders[0] / "val" / "class0" / "0.png"
    for command, exit_code in (
        (f"remove-task {full} --task red <&-", 2),
        (f"predict {full} --task red {picture} --csv --device cpu >&-", 0),
        (f"verify {full} >&- 2>&- <&-", 0),
    ):
        done = subprocess.run(f"{program} {command}", shell=True, stderr=subprocess.PIPE, text=True)
        assert done.returncode == exit_code and "Traceback" not in done.stderr


def test_a_loop_of_links_is_one_line(packed, folders, tmp_path, packnet):
    """Wherever a path can stand."""
    for name in ("loop", "loop.csv"):
        (tmp_path / name).symlink_to(name)
    for arguments in (
        ("add-task", packed, "--data", tmp_path / "loop"),
        ("add-task", packed, "--data", tmp_path / "loop.csv"),
        ("add-task", packed, "--data", folders[0], "--log", tmp_path / "loop"),
        ("init", tmp_path / "new.st", "--arch", "test_resnet", "--weights", tmp_path / "loop"),
    ):
        result = packnet(*arguments)
        assert result.exit_code in (3, 6, 7) and result.stderr.count("\n") == 1 and "loop?" not in result.stderr
