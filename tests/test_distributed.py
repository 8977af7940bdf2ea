"""Two processes train as one does, and fail as one."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from conftest import CPU, QUICK, make_folder
from PIL import Image

from packnet_cli.artifact import format, verify
from packnet_cli.engine import distributed, pack
from packnet_cli.engine.data import feed, splits
from packnet_cli.engine.data.augment import Augmentation
from packnet_cli.engine.training.freezer import Freezer
from packnet_cli.errors import DataError, DivergedError, InterruptedRun, ToldElsewhere, UsageError
from packnet_cli.progress import Step

# Processes that start from one which has imported everything, with no threads to copy.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["packnet_cli.engine.pack", "packnet_cli.cli"])

ADD = ["--epochs", "2", "--retrain-epochs", "2", "--batch-size", "8", "--prune", "0.5", "--device", "cpu", "--no-amp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, told apart by their shade: 20 training images and 10 held-out ones."""
    return make_folder(tmp_path_factory.mktemp("images") / "two", classes=2, train=10, val=5)


def process(rank, port, log, lines, event, home, only):
    """One of torchrun's processes; at its fourth step the second has something happen to it.

    `only` are arguments that only the second is given.
    """
    os.chdir(home)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "a run"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    torch.set_num_threads(1)
    from packnet_cli.cli import main

    write_back, steps = Freezer.write_back, []

    def step(freezer):
        write_back(freezer)
        steps.append(None)
        if rank == 1 and len(steps) == 4:
            event()

    if event:
        Freezer.write_back = step
    for line in lines:
        sys.argv = ["packnet", *map(str, line), *(only if rank else ())]
        with suppress(SystemExit) if line is not lines[-1] else nullcontext():
            main()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def diverge():
    raise DivergedError("training diverged")


def run(folder, *arguments, **how):
    """Run a command line in two processes: their exit codes, and all that they say."""
    return run_all(folder, [arguments], **how)


def run_all(folder, lines, event=None, homes=None, only=()):
    """Several command lines, one after the other in the same two processes; each may start in a folder of its own."""
    # In torchrun, too, it is the parent that keeps what the processes tell each other.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [folder / f"{rank}.log" for rank in (0, 1)]
    each_has = zip((0, 1), logs, homes or (folder, folder), strict=True)
    how = [(n, store.port, log, lines, event, at, only) for n, log, at in each_has]
    both = [PROCESSES.Process(target=process, args=each) for each in how]
    for each in both:
        each.start()
    for each in both:
        each.join(100)
        each.kill()  # which one that has ended does not notice
    said = "".join(log.read_text() for log in logs)
    for log in logs:
        log.unlink()
    return [each.exitcode for each in both], said


@pytest.fixture(scope="module")
def alone(tmp_path_factory, folder):
    """What one process trains: a network without batch norm, so that the parts of a batch make up the whole."""
    path = tmp_path_factory.mktemp("alone") / "packed.st"
    pack.init(path, "test_vit", pretrained=False, data_config={"img_size": 32})
    before = path.read_bytes()
    recipe = dataclasses.replace(QUICK, epochs=2, batch_size=8, lr=1e-3, retrain_lr=1e-3)
    steps = []
    after = pack.add_task(
        path, folder, prune=0.5, recipe=recipe, machine=CPU, progress=lambda task, phase, at: steps.append(at)
    )
    return before, after, [(at.loss, at.accuracy) for at in steps if isinstance(at, Step) and at.step == at.steps]


LIKE_ALONE = [*ADD, "--opt", "momentum", "--lr", "1e-3", "--retrain-lr", "1e-3", "--prune-steps", "2"]
LIKE_ALONE += ["--rank", "layer", "--distill-weight", "0"]


def test_two_train_what_one_trains(tmp_path, folder, alone):
    """The same weights but for rounding; and stopped at one of them, both go on to the same bytes."""
    before, expected, means = alone
    path = tmp_path / "packed.st"
    path.write_bytes(before)
    codes, said = run(tmp_path, "add-task", path, "--data", folder, *LIKE_ALONE, "--log", folder.parent / "log")
    assert codes == [0, 0] and said.count("top-1 retrained") == 1, said
    lines = (folder.parent / "log" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 + 2 + 3  # each epoch and each accuracy once
    told = [(line["loss"], line["accuracy"]) for line in map(json.loads, lines) if line["event"] == "epoch"]
    assert np.array(told) == pytest.approx(np.array(means), abs=1e-3)
    found = format.load(path)
    for layer, values in expected.shared.items():
        np.testing.assert_allclose(found.shared[layer], values, atol=2e-4)
    whole = path.read_bytes()
    path.write_bytes(before)
    log = folder.parent / "log-of-two"
    codes, said = run(tmp_path, "add-task", path, "--data", folder, *LIKE_ALONE, "--log", log, event=interrupt)
    assert codes == [130, 130] and said.count("error: interrupted") == 1, said
    assert path.read_bytes() == before and (tmp_path / "packed.st.resume" / "checkpoint.safetensors").exists()
    codes, said = run(tmp_path, "add-task", path, "--data", folder, *LIKE_ALONE, "--log", log, "--resume")
    assert codes == [0, 0] and path.read_bytes() == whole, said
    lines = map(json.loads, (log / "metrics.jsonl").read_text().splitlines())
    assert told == [(line["loss"], line["accuracy"]) for line in lines if line["event"] == "epoch"]
    assert os.listdir(tmp_path) == ["packed.st"]


def test_earlier_tasks_and_accuracy(tmp_path, full):
    """With batch norm: a task is pruned further and its accuracy is near one process's; the others keep every bit."""
    alone = full.with_name("alone.st")
    alone.write_bytes(full.read_bytes())
    before = format.load(full)
    how = ["--prune", "0.5", "--device", "cpu", "--no-amp", "--batch-size", "8", "--retrain-epochs", "8"]
    recipe = dataclasses.replace(QUICK, retrain_epochs=8)
    expected = pack.prune_task(alone, "blue", prune=0.5, recipe=recipe, machine=CPU)
    codes, said = run(tmp_path, "prune", full, "--task", "blue", *how)
    assert codes == [0, 0], said
    after = format.load(full)
    assert verify.verify(full) == []
    for index in (1, 2):
        assert all(np.array_equal(value, after.state(index)[name]) for name, value in before.state(index).items())
    assert abs(after.header.tasks[-1].top1 - expected.header.tasks[-1].top1) <= 25


def test_a_warning_is_said_once(tmp_path, folder, full):
    artifact = format.load(full)
    *_, newest = tasks = list(artifact.header.tasks)
    tasks[-1] = dataclasses.replace(newest, data=str(tmp_path / "nowhere"))
    format.save(dataclasses.replace(artifact, header=dataclasses.replace(artifact.header, tasks=tuple(tasks))), full)
    how = ["--prune", "0.5", "--distill", folder, "--device", "cpu", "--retrain-epochs", "1"]
    codes, said = run(tmp_path, "prune", full, "--task", newest.name, *how)
    assert codes == [0, 0] and said.count("warning: its images are no longer at") == 1, said


@pytest.mark.parametrize(
    ("event", "codes", "message"),
    [
        (die, [130, -signal.SIGKILL], "another process of this run has ended"),
        (diverge, [130, 10], "training diverged"),
        (None, [6, 6], "nowhere does not exist"),
    ],
)
def test_one_failure_ends_all(tmp_path, folder, alone, event, codes, message):
    """With one message and nothing written, be it the end of a process, an error in one or the same in both."""
    path = tmp_path / "packed.st"
    path.write_bytes(alone[0])
    where = folder if event else tmp_path / "nowhere"
    found, said = run(tmp_path, "add-task", path, "--data", where, *ADD, event=event)
    assert found == codes, said
    [line] = [line for line in said.splitlines() if "error" in line]
    assert re.search(message, line)
    assert path.read_bytes() == alone[0] and os.listdir(tmp_path) == ["packed.st"]


def test_a_batch_is_shared_out(folder, monkeypatch):
    """Each image goes to one process, with the crop it would have had; none gets less than two."""
    split = splits.open_training(folder, val_split=0.2, seed=0).train
    config = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}

    def batches(size, rank=0, world=1):
        monkeypatch.setattr(feed.distributed, "rank", lambda: rank)
        monkeypatch.setattr(feed.distributed, "world", lambda: world)
        torch.manual_seed(0)
        how = dict(augmentation=Augmentation(), batch_size=size, workers=0, device=torch.device("cpu"))
        return [images for images, _ in feed.batches(split, config, **how)]

    parts = [batches(8, rank, 3) for rank in range(3)]
    for number, whole in enumerate(batches(8)[:2]):
        assert all(torch.equal(whole[rank::3], parts[rank][number]) for rank in range(3))
    assert [len(part) for part in parts] == [2, 2, 2]  # the last four images are too few for three
    with pytest.raises(UsageError, match="11 processes cannot share a batch of 20 images"):
        batches(64, 0, 11)


@pytest.fixture
def machines(tmp_path, folder, packed):
    """Two folders, as of machines without a common disk: each with the same packed model and images."""
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        shutil.copytree(folder, home / "two")
        shutil.copy(packed, home / "packed.st")
    return homes


def test_machines_without_a_common_disk(tmp_path, machines):
    """The first one's file has the task; the other's is as before, and nobody misses the task there."""
    before = (machines[1] / "packed.st").read_bytes()
    codes, said = run(tmp_path, "add-task", "packed.st", "--data", "two", *ADD, homes=machines)
    assert codes == [0, 0] and said.count("task 1: two") == 1 and "Traceback" not in said, said
    assert format.load_header(machines[0] / "packed.st").tasks[0].name == "two"
    assert (machines[1] / "packed.st").read_bytes() == before


def other_pixels(home):
    Image.new("RGB", (40, 40)).save(home / "two" / "train" / "class0" / "0.png")


def fewer_images(home):
    (home / "two" / "train" / "class1" / "9.png").unlink()


def another_model(home):
    pack.add_task(home / "packed.st", home / "two", name="more", prune=0.5, recipe=QUICK, machine=CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_pixels, "would not train the same: the images differ"),
        (fewer_images, "find 30, 29 images"),
        (another_model, "would not train the same: the weights differ"),
    ],
)
def test_machines_that_differ_are_told_apart(tmp_path, machines, change, message):
    """Before training: the processes would wait for each other in vain, or mix two runs."""
    change(machines[1])
    before = (machines[0] / "packed.st").read_bytes()
    codes, said = run(tmp_path, "add-task", "packed.st", "--data", "two", *ADD, homes=machines)
    assert 0 not in codes and "train epoch" not in said, said
    [line] = [line for line in said.splitlines() if "error" in line]
    assert message in line
    assert (machines[0] / "packed.st").read_bytes() == before and len(os.listdir(machines[0])) == 2


def test_only_one_is_told_to_resume(tmp_path, folder, packed):
    """It would tell the other how far its checkpoint has come, and be told of gradients."""
    codes, said = run(tmp_path, "add-task", packed, "--data", folder, *ADD, only=["--resume"])
    assert 0 not in codes and said.count("error") == 1 and "train epoch" not in said, said
    assert re.search("resume (True|False), not (True|False)", said) and "Repeat one command" in said


def test_an_interrupted_run_is_resumed_on_all_machines(tmp_path, machines):
    """The first process keeps the checkpoint, and whichever tells knows; the others need a copy of it."""
    add = ["add-task", "packed.st", "--data", "two", *ADD]
    codes, said = run(tmp_path, *add, event=interrupt, homes=machines)
    assert codes == [130, 130] and said.count("error: interrupted") == 1 and "go on with --resume" in said, said
    codes, said = run(tmp_path, *add, "--resume", homes=machines)
    assert 0 not in codes and said.count("error") == 1 and "packed.st.resume is not the same on every" in said, said
    shutil.copytree(machines[0] / "packed.st.resume", machines[1] / "packed.st.resume")
    codes, said = run(tmp_path, *add, "--resume", homes=machines)
    assert codes == [0, 0] and format.load_header(machines[0] / "packed.st").tasks, said


def test_one_verb_after_the_other(tmp_path, folder):
    """In the same processes, as a program of one's own has it."""
    path = tmp_path / "packed.st"
    init = ["init", "--arch", "test_resnet", "--no-pretrained", "--img-size", 32, path]
    wrong = ["add-task", path, "--data", folder / "none", *ADD]
    auto = ["eval", path, "--task", "auto", "--json", "--device", "cpu"]
    codes, said = run_all(tmp_path, [init, wrong, wrong, ["add-task", path, "--data", folder, *ADD], auto])
    assert codes == [0, 0] and format.load_header(path).tasks[0].name == "two", said
    assert said.count("does not exist") == 2
    assert said.count('"right_task"') == 2 and '"images": 10' in said  # by the first, which looks at all of them


def test_a_single_process_of_torchruns_is_as_any_other(packed, folder, monkeypatch):
    """It joins no group. A Ctrl-C reaches it twice, by torchrun too, and ends it after the step, with a checkpoint."""
    for name, value in {"TORCHELASTIC_RUN_ID": "a run", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InterruptedRun, match="--resume"):
        pack.add_task(packed, folder, recipe=QUICK, machine=CPU, progress=lambda *_: [interrupt(), interrupt()])
    assert pack.add_task(packed, folder, recipe=QUICK, machine=CPU, resume=True).header.tasks[0].name == "two"


def test_what_another_process_finds_is_not_said_to_be_kept(tmp_path, folder, packed):
    """The first alone writes checkpoints. The one that fails prints the document."""
    codes, said = run(tmp_path, "add-task", packed, "--data", folder, *ADD, "--json", event=gone)
    assert codes == [130, 6] and "0.png is gone" in said and "--resume" not in said, said
    [document] = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert document["exit_code"] == 6 and "0.png is gone" in document["error"]


def test_a_process_that_ends_when_all_is_written(tmp_path, folder, packed):
    """Takes nothing away, and nobody says that it did."""
    codes, said = run(tmp_path, "add-task", packed, "--data", folder, *ADD, event=die_at_the_end)
    assert codes == [0, -signal.SIGKILL] and "error" not in said, said
    assert format.load_header(packed).tasks[0].name == "two"


def test_each_attempt_of_torchruns_has_its_message(monkeypatch):
    """With --max-restarts processes start anew, and the store still knows who failed before."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "a run"}
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process is to go on
    for attempt in ("0", "1"):
        for name, value in (where | {"TORCHELASTIC_RESTART_COUNT": attempt}).items():
            monkeypatch.setenv(name, value)
        for told in (DataError, ToldElsewhere):
            monkeypatch.setattr(distributed, "_verbs", iter([0]))
            with pytest.raises(told), distributed._one_message():
                raise DataError("0.png is gone")


def test_a_process_that_cannot_join_says_why(monkeypatch):
    """As where gloo has no address at which the other machines reach this one."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (where | {"RANK": "0", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "nowhere"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"\(.*nowhere\).* GLOO_SOCKET_IFNAME"), distributed._joined("cpu"):
        pytest.fail("it joined")


def die_at_the_end():
    distributed.wait_for_all = die


def gone():
    raise DataError("0.png is gone; nothing was written")
