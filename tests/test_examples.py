"""The examples run, at a tiny size."""

import csv
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from packnet_cli.artifact import format, masks
from packnet_cli.artifact.header import is_of_head
from packnet_cli.engine import pack
from packnet_cli.engine.using import evaluate
from packnet_cli.recipe import Recipe

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = ["--epochs", "1", "--retrain-epochs", "1", "--batch-size", "8", "--threads", "1"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example in this process, which has imported torch already; its standard output."""

    def run(example, *arguments):
        monkeypatch.setattr(sys, "argv", [example, *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / example), run_name="__main__")
        except SystemExit as done:
            assert not done.code, done.code
        return capsys.readouterr().out

    return run


def test_paper_table_fills_its_cells_and_resumes(tmp_path, folders, run):
    """A base and two tasks, in every way, one by a link; the second run measures nothing again."""
    (tmp_path / "link").symlink_to(folders[0])
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "weights.pt")
    for name, prune in (("start", 0.0), ("base", 0.5)):
        pack.init(
            tmp_path / f"{name}.st",
            "test_resnet",
            weights=tmp_path / "weights.pt",
            data_config={"img_size": 32},
            prune=prune,
            data=folders[2],
        )
    folders = tmp_path / "link", folders[1]
    arguments = (tmp_path / "out", tmp_path / "start.st", *folders, "--base", tmp_path / "base.st", *QUICK)
    first = run("paper_table.py", *arguments, "--prune", "0.75", "--order", "1,2", "--order", "2,1")
    measured = [json.loads(line) for line in first.splitlines() if line.startswith("{")]
    assert len(measured) == 2 + 2 + 2 + 6 + 6  # the base twice, two classifiers, two networks, two orders of three
    with (tmp_path / "out" / "table.csv").open() as file:
        [header, *rows] = csv.reader(file)
    assert header[1:] == ["classifier", "lwf", "packnet 0.5/0.75", "individual"]
    assert [row[0] for row in rows] == ["blue", "link", "green", "mean", "MB"]
    assert all(0 <= float(cell.split()[0]) <= 100 for row in rows for cell in row[1:])
    assert float(rows[-1][3]) < float(rows[-1][4])  # one file is smaller than three networks
    again = run("paper_table.py", *arguments, "--prune", "0.75", "--order", "1,2", "--order", "2,1")
    assert again.splitlines() == [line for line in first.splitlines() if not line.startswith("{")]


def stop(*_):
    """A progress callback like a user's Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("example, more", [("cifar20.py", ["--arch", "test_resnet"]), ("paper_table.py", [])])
def test_a_training_that_is_stopped_goes_on_by_the_same_command(
    tmp_path, folders, packed, monkeypatch, run, example, more
):
    """These have no --resume to go on with; what the stopped training had done is not done again."""
    add, steps = pack.add_task, []
    data, model = tmp_path / "data", tmp_path / "new.st"
    data.mkdir()
    shutil.copytree(folders[0], data / "red")
    places = (data, model) if more else (tmp_path / "out", packed, data / "red", "--way", "individual")
    arguments = (*places, *QUICK, *more)
    monkeypatch.setattr(pack, "add_task", partial(add, progress=stop))
    with pytest.raises(AssertionError, match="^interrupted; the same command goes on"):
        run(example, *arguments)
    monkeypatch.setattr(pack, "add_task", partial(add, progress=lambda *step: steps.append(step)))
    run(example, *arguments)
    assert steps[0][2].step == 2


@pytest.fixture
def kept(tmp_path, folders):
    """Make START of paper_table.py: a network that keeps its own task, retrained on these images if there are any."""

    def make(data=None):
        torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "weights.pt")
        recipe = Recipe(seed=7, retrain_epochs=1, retrain_lr=0.01, batch_size=8)
        start = tmp_path / "start.st"
        pack.init(
            start,
            "test_resnet",
            weights=tmp_path / "weights.pt",
            data_config={"img_size": 32},
            prune=0.0,
            data=data,
            recipe=recipe,
        )
        return start

    return make


def test_lwf_measures_the_networks_own_task_on_what_it_was_not_trained_on(tmp_path, folders, run, kept, monkeypatch):
    """Under another seed than that of START, too; and a run that was stopped between two tasks notes none twice."""
    seen, measured = [], evaluate.held_out_images
    monkeypatch.setattr(evaluate, "held_out_images", lambda *asked: seen.append(measured(*asked)) or seen[-1])
    own = tmp_path / "own"
    shutil.copytree(folders[2] / "train", own)  # without val/: some are held out, by lot
    arguments = (tmp_path / "out", kept(own), folders[0], "--way", "lwf", *QUICK)
    first = run("paper_table.py", *arguments)
    assert [held_out.digest for held_out in seen] == [format.load_header(tmp_path / "start.st").tasks[0].held_out]
    results = tmp_path / "out" / "results.jsonl"
    whole = results.read_text()
    assert [json.loads(line)["task"] for line in whole.splitlines()] == ["own", "own", "own", "red"]
    results.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    again = run("paper_table.py", *arguments)
    assert results.read_text() == whole and again.splitlines()[-5:] == first.splitlines()[-5:]


def test_all_ways_of_the_paper_table_start_from_the_same_network(tmp_path, folders, kept):
    """Of a network that was kept, and retrained for that: its weights with its norms, in networks of their own, too."""
    module = runpy.run_path(str(EXAMPLES / "paper_table.py"), run_name="paper_table")
    bench = module["Bench"](tmp_path / "out", kept(folders[2]), [folders[0]], Recipe())
    free = bench.all_free.shared | bench.all_free.own[0]
    assert free.keys() == {name for name in bench.start if not is_of_head(name, bench.header.head)}
    assert all(masks.same_bits(free[name], bench.start[name]) for name in free)


def test_a_network_of_unknown_accuracy_is_refused_before_anything_is_trained(
    tmp_path, folders, run, kept, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "500")  # the line stays one, however long the path in it is
    start = kept()
    with pytest.raises(AssertionError, match="2"):
        run("paper_table.py", tmp_path / "out", start, folders[0], *QUICK)
    assert "keeps no task of known accuracy" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_the_paper_table_does_not_mix_settings_in_one_folder(tmp_path, folders, packed, run):
    """Results of others are not shown as those of the settings asked for."""
    arguments = (tmp_path / "out", packed, folders[0], "--way", "classifier", *QUICK)
    run("paper_table.py", *arguments)
    with pytest.raises(AssertionError, match="^error: .*out is of other settings .epochs, lr.;"):
        run("paper_table.py", *arguments, "--epochs", 2, "--lr", 0.5)


def test_the_paper_table_refuses_what_it_could_not_compare(tmp_path, folders, packed, full, run):
    """Two tasks of one name, of which the second would get the first one's figures; and another START."""
    (tmp_path / "red").symlink_to(folders[1])
    with pytest.raises(AssertionError, match="^error: several tasks are called 'red'"):
        run("paper_table.py", tmp_path / "out", packed, folders[0], tmp_path / "red", *QUICK)
    with pytest.raises(AssertionError, match="^error: .*full.st is not as init makes it"):
        run("paper_table.py", tmp_path / "out", full, folders[0], *QUICK)
    pack.add_task(packed, folders[1], prune=0.5, recipe=Recipe(epochs=1, retrain_epochs=0))
    with pytest.raises(AssertionError, match="^error: .*packed.st is not as init makes it"):
        run("paper_table.py", tmp_path / "out", packed, folders[0], *QUICK)
    assert not (tmp_path / "out").exists()


def test_learning_without_forgetting_leaves_the_norms_statistics():
    """Those of the new images would undo what the old heads know."""
    lwf_train = runpy.run_path(str(EXAMPLES / "paper_table.py"), run_name="paper_table")["lwf_train"]
    model, old = timm.create_model("test_resnet", num_classes=2), nn.ModuleList([nn.Linear(96, 3)])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = model.state_dict()["conv1.0.weight"].clone()
    batches = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))]
    lwf_train(model, old, batches, Recipe(epochs=1), ("fc",))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not torch.equal(model.state_dict()["conv1.0.weight"], weights)


def test_the_mean_of_the_paper_table_counts_each_task_once():
    """However many seeds each was measured under: the network's own task has one in some ways."""
    module = runpy.run_path(str(EXAMPLES / "paper_table.py"), run_name="paper_table")
    measured = {"base": [40], "cubs": [90, 80, 70]}
    rows = [
        {"way": "individual", "task": task, "top1": top1, "bytes": 1} for task in measured for top1 in measured[task]
    ]
    bench = SimpleNamespace(base=SimpleNamespace(name="base"), folders=[Path("cubs")], rows=rows, start={})
    assert dict(module["table"](bench))["mean"] == "40.0"  # of 60 and 20


def test_cifar20_packs_all_folders_and_resumes(tmp_path, folders, run):
    """Three tasks in equal shares, stopped after two."""
    arguments = (folders[0].parent, tmp_path / "packed.st", "--arch", "test_resnet", *QUICK)
    assert run("cifar20.py", *arguments, "--tasks", 2).count("{") == 2 * 2
    last = run("cifar20.py", *arguments).splitlines()
    assert [json.loads(line)["name"] for line in last if line.startswith("{")] == ["red"]
    assert [line.split()[-1] for line in last[-4:-1]] == ["blue", "green", "red"] and last[-1].startswith("mean")
    header = format.load_header(tmp_path / "packed.st")
    shares = [sum(task.owned.values()) for task in header.tasks]
    assert max(shares) / min(shares) < 1.001


def test_a_wrong_argument_of_an_example_is_one_line(tmp_path, run):
    """As it is of a command; and nothing is downloaded first."""
    with pytest.raises(AssertionError, match="^error: --prune takes a fraction from 0 to 1, or equal, not 'half'"):
        run("cifar20.py", tmp_path / "none", tmp_path / "packed.st", "--prune", "half")
    assert not os.listdir(tmp_path)


def test_the_library_and_a_folder_of_labels(full, folders, tmp_path, run):
    """Every task of every image, and both say the same; a file that is no image is named."""
    images = sorted((folders[0] / "val").rglob("*.png"))
    told = [line.split("\t") for line in run("library.py", full, *images).splitlines()]
    assert [(task, path) for task, path, *_ in told] == [
        (task, str(path)) for task in ("red", "green", "blue") for path in images
    ]
    (tmp_path / "all").symlink_to(folders[0] / "val")
    run("label_folder.py", full, tmp_path / "all", tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = {(task, str(folders[0] / "val" / row["path"])): row[task] for row in rows for task in ("red", "green")}
    assert labels == {(task, path): label for task, path, label, _ in told if task != "blue"}


@pytest.mark.parametrize("example, more", [("library.py", []), ("label_folder.py", ["labels.csv"])])
def test_a_packed_model_that_is_not_there(folders, tmp_path, monkeypatch, run, example, more):
    """Is an error in one line, and no table is begun."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="^error: none.st does not exist"):
        run(example, "none.st", folders[0], *more)
    assert not os.listdir(tmp_path)


def test_the_method_in_steps(run):
    """No task is changed by a later one; each gets its share, and in the end nothing is free."""
    first, *steps, one, two, three = run("method.py").splitlines()
    assert all("to the bit" in line for line in (one, two, three))
    owners = [line[38:].partition("error")[0].split() for line in (first, *steps)]
    assert set("".join(owners[0])) == {"."} and [len(layer) for layer in owners[0]] == [48, 6]
    assert [[layer.count(task) for task in "123."] for layer in owners[-1]] == [[16, 16, 16, 0], [2, 2, 2, 0]]


def test_benchmark_prints_a_line_for_each_thing(tmp_path, run, packnet, monkeypatch):
    """Of every thing asked for; the commands that it times as whole processes are run once, and here."""
    codes = []

    def process(line, **_):
        if not codes:
            assert line[1:4] == ["-m", "packnet_cli", "eval"]
            codes.append(packnet(*line[3:]).exit_code)

    monkeypatch.setattr(subprocess, "run", process)
    sizes = ["--arch", "test_resnet", "--img-size", 32, "--batch-size", 4, "--repeats", 1, "--steps", 1, "--threads", 1]
    sizes += ["--images", 25, "--file-size", 32, "--epochs", 2]
    table = run("benchmark.py", *sizes, "--parts", "step,eval,prune,file,growth", "--json", tmp_path / "figures.json")
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert [part.strip() for part, _ in rows] == ["step"] * 3 + ["eval"] * 2 + ["prune"] * 2 + ["file"] * 4 + [
        "growth"
    ] * 6
    assert codes == [0]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["seconds"]["step"].keys() == {"plain", "packed", "textbook"}
    assert all(0 < second for times in figures["seconds"]["file"].values() for second in times)


def test_a_benchmark_that_is_stopped_writes_what_it_has(tmp_path, run, monkeypatch):
    """Also where Ctrl-C meets a training, which ends by an error of its own."""
    add, figures = pack.add_task, tmp_path / "figures.json"
    monkeypatch.setattr(pack, "add_task", partial(add, progress=stop))
    sizes = ["--arch", "test_resnet", "--img-size", 32, "--batch-size", 4, "--repeats", 1, "--threads", 1]
    sizes += ["--images", 24, "--file-size", 32, "--epochs", 1]
    run("benchmark.py", *sizes, "--parts", "prune,whole", "--json", figures)
    assert json.loads(figures.read_text())["seconds"].keys() == {"prune"}
