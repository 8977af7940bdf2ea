"""How certain a task is: its temperature, and how often `auto` picks the right task by it."""

import json
import shutil

import pytest
import torch
from conftest import CPU, QUICK

from packnet_cli.artifact import format
from packnet_cli.engine import calibrate, pack
from packnet_cli.engine.calibrate import entropies, fit_temperature
from packnet_cli.engine.data import pictures

RUN = ("--device", "cpu", "--workers", 0, "--json")


def noisy(images=200, classes=5, right=0.8):
    """Logits (N, classes) with labels (N,) of which about the part `right` are those of the greatest logit."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, classes, generator=generator)
    others = torch.randint(classes, (images,), generator=generator)
    labels = torch.where(torch.rand(images, generator=generator) < right, logits.argmax(1), others)
    return logits, labels


def loss(logits, labels, temperature):
    """The slow way: the mean negative log-likelihood, one more image being of every class alike."""
    logs = (logits.double() / temperature).log_softmax(1)
    images = len(labels)
    return -(images * logs[range(images), labels].mean() + logs.mean()) / (images + 1)


def test_the_temperature_has_the_least_loss():
    """Of those near it, and it grows with the logits."""
    logits, labels = noisy()
    found = fit_temperature(logits, labels)
    assert all(loss(logits, labels, found) < loss(logits, labels, factor * found) for factor in (0.98, 1.02))
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * found, rel=1e-3)


def test_a_task_that_is_always_right_is_not_certain_for_ever():
    """The more images say so, the more certain it may be."""
    logits, _ = noisy()
    few, many = (fit_temperature(logits[:count], logits[:count].argmax(1)) for count in (20, 200))
    assert 0.05 < many < few


def test_entropies_of_what_is_certain_and_of_a_guess():
    """From 0 to 1, whatever the number of classes; without a temperature it is 1."""
    logits = torch.tensor([[1000.0, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0]])
    certain, guess, between = entropies(logits, None).tolist()
    assert certain == 0 and guess == pytest.approx(1) and 0 < between < 1
    assert between < entropies(logits, 2.0)[2] < 1
    assert entropies(torch.tensor([[3.0]]), None).tolist() == [0]  # of a single class


def test_the_temperature_is_recorded(full, packed, folders, packnet, tmp_path):
    """With each task that has held-out images; without any there is none, and the file says nothing of it."""
    assert all(0.05 < task.temperature < 20 for task in format.load_header(full).tasks)
    assert f"{format.load_header(full).task('red').temperature:g}" in packnet("info", full, "--task", "red").stdout
    images = tmp_path / "images"
    shutil.copytree(folders[0], images)
    pack.add_task(packed, images, recipe=QUICK, machine=CPU, prune=0.5)
    [before] = format.load_header(packed).tasks
    shutil.rmtree(images)
    pack.prune_task(packed, before.name, prune=0.5, distill=folders[0] / "train", recipe=QUICK, machine=CPU)
    [after] = format.load_header(packed).tasks
    assert before.temperature is not None and after.temperature is None
    assert b"temperature" not in packed.read_bytes()


def test_eval_says_how_often_auto_is_right(full, folders, packnet):
    """As counted from what predict picks for the same images, each opened to see if it can be, and once more."""
    opened, opens = [], pictures.open_picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "open_picture", lambda picture: opened.append(picture) or opens(picture))
        told = json.loads(packnet("eval", full, "--task", "auto", *RUN).stdout)
    assert len(opened) == 2 * told["images"]
    right = 0
    for folder, task in zip(folders, told["tasks"], strict=True):
        answers = packnet("predict", full, "--task", "auto", folder / "val", "--json", "--device", "cpu").stdout
        found = [json.loads(line) for line in answers.splitlines()]
        of_task = [answer for answer in found if answer["tasks"][0]["name"] == folder.name]
        of_class = [answer for answer in of_task if answer["tasks"][0]["top"][0]["class"] in answer["image"]]
        assert (task["name"], task["images"]) == (folder.name, len(found))
        assert task["right_task"] == pytest.approx(100 * len(of_task) / len(found))
        assert task["top1"] == pytest.approx(100 * len(of_class) / len(found))
        right += len(of_task)
    assert told["right_task"] == pytest.approx(100 * right / told["images"])
    assert "right task %" in packnet("eval", full, "--task", "auto", *RUN[:-1]).stdout


def test_eval_auto_refuses(full, packed, tmp_path, packnet):
    """Images of no known task, a file without tasks, and a compact one, which remembers none."""
    result = packnet("eval", full, "--task", "auto", "--data", tmp_path)
    assert result.exit_code == 2 and "leave out --data" in result.stderr
    assert packnet("compact", full, "-o", tmp_path / "ship.st").exit_code == 0
    for path, exit_code, words in ((packed, 4, "holds no task yet"), (tmp_path / "ship.st", 6, "no task in")):
        result = packnet("eval", path, "--task", "auto")
        assert result.exit_code == exit_code and words in result.stderr


def test_a_compact_file_keeps_the_temperature(full, tmp_path, packnet):
    """It is about the task, not about this machine."""
    assert packnet("compact", full, "-o", tmp_path / "ship.st").exit_code == 0
    one, other = (format.load_header(path) for path in (full, tmp_path / "ship.st"))
    assert [task.temperature for task in one.tasks] == [task.temperature for task in other.tasks]


def test_the_temperature_is_that_of_all_processes_images(monkeypatch):
    """Also in one that has none itself."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3))
    images, labels = torch.randn(8, 3, 1, 1), torch.arange(8) % 3
    alone = calibrate.measure_temperature(model, [(images, labels)])
    others = [(model(images).detach(), labels)]
    monkeypatch.setattr(calibrate.distributed, "gathered", lambda here: [others, here])
    assert calibrate.measure_temperature(model, []) == alone
