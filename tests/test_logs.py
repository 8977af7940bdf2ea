"""The log of a training: lines of JSON, TensorBoard's events, and lines read again."""

import io
import json
import os
import time

import pytest
from rich.console import Console

from packnet_cli import extras, metrics
from packnet_cli.engine import pack
from packnet_cli.errors import UsageError
from packnet_cli.machine import Machine
from packnet_cli.progress import Step
from packnet_cli.recipe import Recipe
from packnet_cli.report import console, logs, passes, training

QUICK = ("--epochs", 2, "--opt", "momentum", "--retrain-epochs", 1)
QUICK += ("--batch-size", 8, "--workers", 0, "--device", "cpu")


def lines_of(log):
    return [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]


def test_metrics_as_lines_of_json(packed, tmp_path, folders, packnet):
    """One for each epoch and each measured accuracy: added to the log, and on stderr in place of the bar."""
    log = tmp_path / "new" / "log"
    again = (*QUICK[2:], "--log", log, "--progress", "json")
    result = packnet("add-task", packed, "--json", "--data", folders[0], "--epochs", 2, "--prune", 0.5, *again)
    lines = lines_of(log)
    assert lines == [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    events = [(line["event"], line["phase"], line.get("epoch")) for line in lines]
    epochs = [("epoch", "train", 1), ("epoch", "train", 2), ("accuracy", "dense", None)]
    assert events == [*epochs, ("accuracy", "pruned", None), ("epoch", "retrain", 1), ("accuracy", "retrained", None)]
    numbers = {"epoch", "epochs", "loss", "accuracy", "images_per_second", "lr"}
    assert set(lines[0]) == {"event", "task", "phase"} | numbers
    assert {line["task"] for line in lines} == {"red"}
    assert (lines[0]["lr"], lines[1]["lr"], lines[4]["lr"]) == pytest.approx((1e-3, 1e-4, 1e-4))
    told = json.loads(result.stdout)["task"]
    assert {line["phase"]: line["top1"] for line in lines if line["event"] == "accuracy"} == told["accuracy"]
    result = packnet("-q", "prune", packed, "--task", "red", "--prune", 0.5, *again)
    assert result.stderr == "" and len(lines_of(log)) == 6 + 3


def test_events_for_tensorboard(packed, tmp_path, folders, packnet):
    """A run for each task, a scalar for each number and phase; a name from outside makes a folder in the log's."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log, name = tmp_path / "log", "../\u9ce5 v1.0"
    train = ("--data", folders[0], "--name", name, *QUICK)
    result = packnet("add-task", packed, *train, "--log", log)
    assert result.exit_code == 0 and "tensorboard" not in result.stderr
    assert sorted(os.listdir(log)) == ["%2E%2E%2F\u9ce5%20v1%2E0", "metrics.jsonl"]
    events = accumulator.EventAccumulator(str(log / logs.folder_name(name))).Reload()
    scalars = {tag: [(at.step, at.value) for at in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for line in lines_of(log):
        for number in {"loss", "lr", "top1"} & line.keys():
            value = pytest.approx(line[number])
            assert (line.get("epoch", 0), value) in scalars[f"{line['phase']}/{number}"]
    assert len(scalars["train/loss"]) == 2 and "train/epochs" not in scalars


def test_long_names_that_begin_alike_are_folders_of_their_own():
    names = [logs.folder_name(60 * "\u9ce5" + end) for end in "ab"]
    assert len(set(names)) == 2 and all(len(name.encode()) <= 240 for name in names)
    assert logs.folder_name(60 * "a") == 60 * "a"


@pytest.mark.parametrize(
    ("what", "found", "said"),
    [
        ("find_spec", lambda name: None, "packnet-cli[tensorboard]"),
        (
            "import_module",
            lambda name: 1 / 0,
            "tensorboard, which is installed but cannot be imported: division by zero",
        ),
    ],
)
def test_without_tensorboard_there_are_the_lines(packed, tmp_path, folders, packnet, monkeypatch, what, found, said):
    """And one that says why."""
    if what == "import_module":
        pytest.importorskip("tensorboard")
    monkeypatch.setattr(extras, what, found)
    result = packnet("add-task", packed, "--data", folders[0], *QUICK, "--log", tmp_path / "log")
    assert result.exit_code == 0 and result.stderr.count(said) == 1
    assert os.listdir(tmp_path / "log") == ["metrics.jsonl"] and len(lines_of(tmp_path / "log")) == 3


def test_a_log_that_cannot_be_written(packed, tmp_path, folders, packnet):
    """Is one clear error before training; once training is on it is a warning, and the task is kept."""
    add = ("add-task", packed, "--data", folders[0], "--epochs", 1, "--workers", 0, "--device", "cpu")
    before, log = packed.read_bytes(), tmp_path / "log"
    log.touch()
    result = packnet(*add, "--log", log)
    assert result.exit_code == 3 and "cannot write the log" in result.stderr and result.stderr.count("\n") == 1
    assert packnet(*add, "--log", packed).exit_code == 2
    assert packed.read_bytes() == before
    log.unlink()
    log.mkdir()
    (log / "metrics.jsonl").symlink_to("/dev/full")
    result = packnet("-q", *add, "--log", log)
    assert result.exit_code == 0 and f"warning: cannot write the log {log} any more: No space" in result.stderr
    assert result.stderr.count("warning: cannot write") == 1


def test_a_run_that_goes_on_takes_the_place_of_what_it_repeats(packed, tmp_path, folders, packnet):
    """Read again, the log of a run that was killed after its checkpoint has each epoch once, and in order."""
    recipe, log = Recipe(epochs=4, batch_size=8), tmp_path / "log"

    def stop(task, phase, at):
        if at.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack.add_task(packed, folders[0], recipe=recipe, machine=Machine("cpu"), progress=stop, checkpoint_minutes=0)
    with logs.log_to(log) as write:
        for epoch in (1, 2, 3):  # the last two after the checkpoint
            write(
                {"event": "epoch", "task": "red", "phase": "train", "epoch": epoch, "loss": 9, "accuracy": 0, "lr": 1}
            )
    assert (tmp_path / "packed.st.resume").is_dir()
    go_on = ("--recipe", "sgd", "--epochs", 4, "--batch-size", 8, "--device", "cpu", "--checkpoint-minutes", 0)
    assert packnet("add-task", packed, "--data", folders[0], *go_on, "--resume", "--log", log).exit_code == 0
    found = metrics.read(log)["red"]
    assert [(line["event"], line.get("epoch")) for line in found] == [
        *(("epoch", n) for n in (1, 2, 3, 4)),
        ("accuracy", None),
    ]
    assert [line.get("loss") == 9 for line in found] == [True, False, False, False, False]


def test_a_torn_line_takes_no_other_with_it(tmp_path):
    """A full disk leaves one without an end."""
    (tmp_path / "metrics.jsonl").write_text('{"event": "epo')
    line = {"event": "accuracy", "task": "red", "phase": "dense", "top1": 50.0}
    for _ in range(2):
        with logs.log_to(tmp_path) as write:
            write(line)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[1:] == 2 * [json.dumps(line)]


def test_another_run_takes_the_place_of_the_last_one(tmp_path):
    """In the order of its own lines, though weights are released in fewer steps now."""

    def log(*phases):
        for number, phase in enumerate(phases):
            seen = {"epoch": int(phase[-1]), "loss": 1, "accuracy": 1, "lr": 1} if phase[-1].isdigit() else {"top1": 1}
            event = "epoch" if "epoch" in seen else "accuracy"
            lines.append({"event": event, "task": "red", "phase": phase.split()[0], "number": number, **seen})

    lines = []
    log("train 1", "dense", "retrain 1", "retrain 2", "pruned", "retrain 3", "retrained")
    log(*(again := ["pruned", "retrain 1", "retrain 2", "retrained"]))
    (tmp_path / metrics.FILE).write_text("\n".join(map(json.dumps, lines)))
    found = metrics.read(tmp_path)["red"]
    assert found == [*lines[:2], *lines[-len(again) :]]


def test_what_is_no_metric_is_passed_over(tmp_path):
    """Torn lines, lines of others; no log at all is an error that says how to get one."""
    good = {"event": "accuracy", "task": "red", "phase": "dense", "top1": 50.0}
    epoch = {"event": "epoch", "task": "red", "phase": "train", "epoch": 1, "loss": 1.0, "accuracy": None, "lr": 0.1}
    bad = ["", "{", "[]", "3", '{"event": "mine"}', json.dumps(good | {"top1": "x"}), json.dumps(good | {"task": 3})]
    bad += [json.dumps(good | strange) for strange in ({"event": []}, {"top1": 10**400}, {"top1": float("nan")})]
    bad += [json.dumps(epoch | {"accuracy": "x"}), json.dumps(epoch | {"loss": None})]
    lines = [*bad, json.dumps(epoch), json.dumps(good), json.dumps(good)[:-9]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert metrics.read(tmp_path) == {"red": [epoch, good]}
    with pytest.raises(UsageError, match="cannot read the log .*--log DIR"):
        metrics.read(tmp_path / "none")


def test_the_bar_makes_room_for_a_warning(monkeypatch):
    """It is drawn again below, and would otherwise stay above, and cover the end of a long warning."""
    screen = io.StringIO()
    for name in ("err", "talk"):
        monkeypatch.setattr(console, name, Console(file=screen, force_terminal=True, width=80, **console.PLAIN))
    with training() as show:
        show("cubs", "train", Step(1, 1, 1, 1, 0.5, 50, 100, 1e-3))
        console.say("nothing was learnt", warning=True)
    before, _ = screen.getvalue().split("nothing was learnt")
    assert before.count("train") > 0 and before.rpartition("train")[2].count("\r\x1b[2K") == 1  # erases the line


@pytest.mark.parametrize(("patience", "progress", "shown"), [(-1, "bar", 1), (1e9, "bar", 0), (-1, "json", 0)])
def test_a_long_pass_over_images_has_a_bar(packed, folders, packnet, monkeypatch, patience, progress, shown):
    """On a terminal, until it is over: that of each command that checks images or measures on them."""
    screen = io.StringIO()
    monkeypatch.setattr(console, "talk", Console(file=screen, force_terminal=True, width=80, **console.PLAIN))
    monkeypatch.setattr(passes, "PATIENCE", patience)
    how = ("--epochs", 1, "--progress", progress, *QUICK[2:])
    assert packnet("add-task", packed, "--data", folders[0], *how).exit_code == 0
    assert ("checking images" in screen.getvalue()) == shown
    screen.truncate(0)
    assert packnet("eval", packed, "--device", "cpu", "--workers", 0).exit_code == 0
    assert ("measuring" in screen.getvalue()) == (patience < 0)


def test_a_pass_within_training_has_a_bar_below(monkeypatch):
    """Which goes with its end, and leaves the other."""
    screen = io.StringIO()
    monkeypatch.setattr(console, "talk", Console(file=screen, force_terminal=True, width=80, **console.PLAIN))
    monkeypatch.setattr(passes, "PATIENCE", -1)
    with training() as show:
        show("cubs", "train", Step(1, 1, 1, 1, 0.5, 50, 100, 1e-3))
        with passes.passing("measuring", 2) as passed:
            passed()
            until = time.monotonic() + 10
            while "measuring" not in screen.getvalue() and time.monotonic() < until:
                time.sleep(0.05)  # a thread draws, ten times a second
    assert "measuring" in screen.getvalue()
    assert "measuring" not in screen.getvalue().rpartition("train epoch 1/1")[2]
