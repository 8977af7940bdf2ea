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
from test_resume import raiser
from torch import nn

from packnet_cli.artifact import format, masks
from packnet_cli.artifact.header import is_of_head
from packnet_cli.engine import device, pack
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
            assert not done.code, capsys.readouterr().err
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
    with pytest.raises(AssertionError, match="^error: interrupted; the same command goes on"):
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
    assert [json.loads(line)["task"] for line in whole.splitlines()] == ["own", "red"]  # and of no way not asked for
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


def test_a_network_of_unknown_accuracy_is_refused_before_anything_is_trained(tmp_path, folders, run, kept, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # the line stays one, however long the path in it is
    start = kept()
    with pytest.raises(AssertionError, match="keeps no task of known accuracy"):
        run("paper_table.py", tmp_path / "out", start, folders[0], *QUICK)
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


def test_the_paper_table_does_not_mix_networks_in_one_folder(tmp_path, folders, packed, kept, run):
    """Nor those of the same weights on larger images, nor two files given as --base for the same way."""
    arguments = (folders[0], "--way", "classifier", *QUICK)
    run("paper_table.py", tmp_path / "out", packed, *arguments)
    larger = tmp_path / "larger.st"
    pack.init(larger, "test_resnet", pretrained=False, data_config={"img_size": 64})
    with pytest.raises(AssertionError, match="^error: .*out is of other settings .START.;"):
        run("paper_table.py", tmp_path / "out", larger, *arguments)
    start, weights, bases = kept(folders[2]), tmp_path / "weights.pt", [tmp_path / "base.st", tmp_path / "other.st"]
    for base, seed in zip(bases, (0, 1), strict=True):
        recipe = Recipe(seed=seed, retrain_epochs=1, batch_size=8)
        config = {"img_size": 32}
        pack.init(base, "test_resnet", weights=weights, data_config=config, prune=0.5, data=folders[2], recipe=recipe)
    arguments += ("--prune", "0.5", "--base")
    run("paper_table.py", tmp_path / "kept", start, *arguments, bases[0])
    with pytest.raises(AssertionError, match="^error: .*kept is of other settings .--base of packnet 0.5/0.5.;"):
        run("paper_table.py", tmp_path / "kept", start, *arguments, bases[1])


def test_a_task_that_could_not_be_measured_is_refused_before_anything_is_trained(tmp_path, folders, packed, run):
    """With one image in each class there is none to hold out."""
    for label in "ab":
        (tmp_path / "one" / label).mkdir(parents=True)
        shutil.copy(folders[0] / "val" / "class0" / "0.png", tmp_path / "one" / label)
    with pytest.raises(AssertionError, match="^error: .*one has one image in each class"):
        run("paper_table.py", tmp_path / "out", packed, folders[0], tmp_path / "one", *QUICK)
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


@pytest.mark.parametrize(
    "example, arguments, told",
    [
        ("cifar20.py", ["empty", "new.st"], "error: empty holds no folder for a task;"),
        ("cifar20.py", ["file", "new.st"], "'data': dir 'file' is a file"),
        ("cifar20.py", ["empty", "new.st", "--tasks", "0"], "'--tasks'.* 1"),
        ("digits.py", ["file"], "error: cannot use file/.*: Not a directory"),
        ("paper_table.py", ["file", "packed.st", "red"], "error: cannot use file: File exists"),
        ("paper_table.py", ["out", "packed.st", "red", "--order", "1,1"], "numbers, 1 to 1, each once"),
        ("paper_table.py", ["out", "packed.st", "red", "--seeds", "0"], "'--seeds'.* 1"),
        ("benchmark.py", ["--repeats", "0"], "'--repeats'.* 1"),
        ("benchmark.py", ["--json", "none/figures.json"], "error: cannot write none/figures.json: .*does not exist"),
        ("benchmark.py", ["--opt", "nosuch"], "error: timm knows no optimizer 'nosuch'"),
    ],
)
def test_what_an_example_cannot_use_is_told_before_it_begins(
    tmp_path, folders, packed, run, monkeypatch, example, arguments, told
):
    """In one line, and nothing is left behind."""
    if example == "digits.py":
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    (tmp_path / "red").symlink_to(folders[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(os.listdir())
    with pytest.raises(AssertionError, match=told):
        run(example, *arguments)
    assert sorted(os.listdir()) == before


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


def test_what_the_library_cannot_use_is_one_line(folders, full, packed, tmp_path, run):
    """A file without tasks, of which no table is begun; a picture that is none, alone or in a folder."""
    [picture, *_] = folders[0].rglob("*.png")
    table, broken = tmp_path / "labels.csv", tmp_path / "images" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    with pytest.raises(AssertionError, match="^error: .*packed.st holds no task yet"):
        run("library.py", packed, picture)
    with pytest.raises(AssertionError, match="^error: .*packed.st holds no task yet"):
        run("label_folder.py", packed, picture.parent, table)
    with pytest.raises(AssertionError, match="^error: cannot use .*: No such file or directory"):
        run("label_folder.py", full, picture.parent, tmp_path / "none" / "labels.csv")
    assert not table.exists()
    with pytest.raises(AssertionError, match="^error: .* is a packed model, whose tasks would be lost"):
        run("label_folder.py", full, picture.parent, full)
    with pytest.raises(AssertionError, match="^error: cannot read the image .*broken.png: cannot identify"):
        run("library.py", full, picture, broken)
    with pytest.raises(AssertionError, match="broken.png: not an image.*\n *error: 1 images could not be read"):
        run("label_folder.py", full, broken.parent, table)
    assert len(table.read_text().splitlines()) == 1


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
    """Also where Ctrl-C meets a training, which ends by an error of its own; the plain one met a last batch of one."""
    add, figures = pack.add_task, tmp_path / "figures.json"
    monkeypatch.setattr(pack, "add_task", partial(add, progress=stop))
    sizes = ["--arch", "test_resnet", "--img-size", 32, "--batch-size", 4, "--repeats", 1, "--threads", 1]
    sizes += ["--images", 25, "--file-size", 32, "--epochs", 1]
    run("benchmark.py", *sizes, "--parts", "prune,whole", "--json", figures)
    assert json.loads(figures.read_text())["seconds"].keys() == {"prune"}
    monkeypatch.setattr(device, "choose_device", raiser(KeyboardInterrupt))  # before it has begun
    figures.unlink()
    with pytest.raises(AssertionError, match="SystemExit.130."):
        run("benchmark.py", *sizes, "--json", figures)
    assert not figures.exists()
