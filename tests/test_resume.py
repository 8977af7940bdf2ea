"""A stopped run goes on where it was, and ends in the same bytes."""

import copy
import dataclasses
import errno
import gc
import json
import os
import random
import shutil
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from conftest import CPU, QUICK, make_folder, noting
from safetensors.torch import save_file
from test_faults import STEPS, count_steps
from timm.optim import create_optimizer_v2

from packnet_cli.artifact import atomic, format
from packnet_cli.engine import pack, result
from packnet_cli.engine.claim import claim_nothing
from packnet_cli.engine.data import pictures
from packnet_cli.engine.session import describe_run
from packnet_cli.engine.training import checkpoint, freezer, state, train
from packnet_cli.errors import ArtifactError, CapacityError, ConflictError, DataError, InterruptedRun
from packnet_cli.progress import Step
from packnet_cli.recipe import Recipe

RECIPE = dataclasses.replace(
    QUICK, epochs=2, retrain_epochs=3, distill_weight=0.5, rank="adaptive", lr=0.01, layer_decay=0.9
)
PHASES = [("train", 1, 1), ("train", 2, 2), ("retrain", 1, 2), ("retrain", 3, 2)]  # of two batches
MORE_PHASES = [("train", 1, 2), ("train", 2, 1), ("retrain", 1, 1), ("retrain", 2, 2)]
RECIPES = {
    "momentum": RECIPE,
    "adamw": dataclasses.replace(RECIPE, opt="adamw"),
    "one schedule": dataclasses.replace(RECIPE, sched="cosine", anneal="once"),
}


def stop_at(phase, epoch, step, number=signal.SIGINT):
    """A progress callback that asks the process to stop, as a user or the system does."""

    def progress(task, running, at):
        if isinstance(at, Step) and (running, at.epoch, at.step) == (phase, epoch, step):
            os.kill(os.getpid(), number)

    return progress


def init(path, **changes):
    """A network with dropout, whose random numbers must go on too."""
    usual = {"data_config": {"img_size": 32}, "model_kwargs": {"drop_rate": 0.5}}
    pack.init(path, "test_resnet", pretrained=False, **(usual | changes))


def add(path, folder, recipe=RECIPE, prune=0.5, **how):
    return pack.add_task(path, folder, prune=prune, recipe=recipe, machine=CPU, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, folders):
    """The bytes of two tasks from a run that was not stopped: (after the first, after the second), by recipe."""
    results = {}
    for name, recipe in RECIPES.items():
        path = tmp_path_factory.mktemp(name) / "packed.st"
        init(path)
        add(path, folders[0], recipe)
        first = path.read_bytes()
        add(path, folders[1], recipe)
        results[name] = first, path.read_bytes()
    return results


@pytest.mark.parametrize(
    ("name", "phase", "epoch", "step"),
    [(name, *phase) for name in RECIPES for phase in PHASES] + [("momentum", *phase) for phase in MORE_PHASES],
)
def test_same_bytes(tmp_path, folders, whole, name, phase, epoch, step):
    """Stopped at any step of either phase, between epochs too, it ends as if it had not been."""
    recipe = RECIPES[name]
    path = tmp_path / "packed.st"
    before, after = whole[name]
    path.write_bytes(before)
    with pytest.raises(InterruptedRun, match="as it was before; go on with --resume"):
        add(path, folders[1], recipe, progress=stop_at(phase, epoch, step))
    assert path.read_bytes() == before and (tmp_path / "packed.st.resume" / "checkpoint.safetensors").exists()
    (tmp_path / "link.st").symlink_to(path)
    add(tmp_path / "link.st", folders[1], recipe, resume=True)
    assert path.read_bytes() == after
    assert not (tmp_path / "packed.st.resume").exists()


def test_the_means_of_an_epoch_are_those_of_all_its_steps(packed, folders):
    """Of those before it was stopped, too."""
    start, seen = packed.read_bytes(), []

    def note(task, phase, at):
        if isinstance(at, Step):
            seen.append((phase, at.epoch, at.step, at.loss, at.accuracy))

    add(packed, folders[0], progress=note)
    packed.write_bytes(start)
    with pytest.raises(InterruptedRun):
        add(packed, folders[0], progress=stop_at("retrain", 2, 2))
    whole, seen = seen, []
    add(packed, folders[0], progress=note, resume=True)
    assert seen[0][:3] == ("retrain", 2, 3) and seen == whole[-len(seen) :]


def test_what_was_measured_is_not_measured_again(packed, folders):
    """Half-way through its first epoch of retraining the network is no longer what it was when it was pruned."""
    recipe, phases = dataclasses.replace(RECIPE, prune_steps=1), set()
    with pytest.raises(InterruptedRun):
        add(packed, folders[0], recipe, progress=stop_at("retrain", 1, 1))
    add(packed, folders[0], recipe, resume=True, progress=lambda task, phase, at: phases.add(phase))
    assert phases == {"retrain", "retrained"}


@pytest.mark.parametrize("later", [0, 1])
def test_an_optimizer_goes_on_with_what_it_had(tmp_path, folders, whole, later, monkeypatch):
    """Parts of the weights or all of them, though where it goes on this would be decided otherwise."""
    path = tmp_path / "packed.st"
    path.write_bytes(whole["adamw"][0])
    monkeypatch.setattr(freezer, "LARGEST_PART", 1 - later)
    with pytest.raises(InterruptedRun):
        add(path, folders[1], RECIPES["adamw"], progress=stop_at("retrain", 2, 1))
    monkeypatch.setattr(freezer, "LARGEST_PART", later)
    add(path, folders[1], RECIPES["adamw"], resume=True)
    stopped = format.load(path)
    path.write_bytes(whole["adamw"][0])
    monkeypatch.setattr(freezer, "LARGEST_PART", 1 - later)
    assert format.digest(add(path, folders[1], RECIPES["adamw"]).state(2)) == format.digest(stopped.state(2))


def test_a_run_that_is_not_over_is_not_called_interrupted(packed, folders):
    """Nor is it said that it will be replaced."""
    say, checkpoint_file = Mock(), atomic.checkpoint(packed)
    checkpoint_file.parent.mkdir()
    checkpoint_file.touch()
    with atomic.locked(packed), pytest.raises(ConflictError, match="is being written by process"):
        add(packed, folders[0], say=say)
    say.assert_not_called()
    add(packed, folders[0], say=say)
    assert any("holds an interrupted run" in call.args[0] for call in say.call_args_list)


@pytest.mark.parametrize("epochs, held", [(2, "this run, interrupted, which --resume"), (3, "run of task 'red'; ")])
def test_a_run_that_will_be_replaced_is_named(packed, folders, epochs, held):
    """In a warning, as it may have taken hours."""
    with pytest.raises(InterruptedRun):
        add(packed, folders[0], RECIPE, progress=stop_at("train", 1, 1))
    say = Mock()
    add(packed, folders[0], dataclasses.replace(RECIPE, epochs=epochs), say=say)
    assert any(held in call.args[0] and call.kwargs["warning"] for call in say.call_args_list)


def test_what_else_is_in_the_folder_stays(tmp_path, folders):
    """A checkpoint goes when the run has ended; its folder only if it is empty."""
    path, notes = tmp_path / "packed.st", tmp_path / "packed.st.resume" / "notes.txt"
    init(path)
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(InterruptedRun):
        add(path, folders[0], progress=stop_at("train", 1, 1))
    (notes.parent / ".checkpoint.safetensors.abcd1234.tmp").mkdir()  # left by one that was killed
    add(path, folders[0], resume=True)
    assert os.listdir(notes.parent) == ["notes.txt"]


def test_stopped_twice_by_the_system(tmp_path, folders, whole):
    """SIGTERM is heeded as Ctrl-C is, and a resumed run can be stopped again."""
    path = tmp_path / "packed.st"
    path.write_bytes(whole["momentum"][0])
    for phase in ("train", "retrain"):
        with pytest.raises(InterruptedRun):
            add(path, folders[1], progress=stop_at(phase, 2, 1, signal.SIGTERM), resume=True)
    add(path, folders[1], resume=True)
    assert path.read_bytes() == whole["momentum"][1]


def test_checkpoints_by_the_clock(tmp_path, folders):
    """One is written as soon as the last is old enough; a run that is killed without warning goes on from there."""
    path = tmp_path / "packed.st"
    init(path)

    def crash(task, phase, at):
        if (phase, at.epoch) == ("train", 2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add(path, folders[0], progress=crash, checkpoint_minutes=0)
    seen = []
    add(path, folders[0], progress=lambda *told: seen.append(told), resume=True)
    task, phase, at = seen[0]
    assert (task, phase, at.epoch, at.step) == ("red", "train", 2, 1)


def test_none_is_written_before_it_is_due(packed, folders, monkeypatch):
    """Each takes as long as the network is large."""
    written = Mock()
    monkeypatch.setattr(checkpoint.Checkpointer, "save", written)
    add(packed, folders[0])
    written.assert_not_called()


def test_every_random_generator_goes_on():
    """Python's, numpy's and torch's, by way of a checkpoint's JSON."""

    def draw():
        numbers = random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal()
        return *numbers, torch.rand(3).tolist()

    device = torch.device("cpu")
    draw()  # of two normal numbers that come together, the second is kept
    kept = json.loads(json.dumps(state.random_state(device)))
    drawn = draw()
    state.set_random_state(kept, device)
    assert draw() == drawn


def test_who_owns_the_weights_is_part_of_what_a_run_is_of(full):
    """Between stop and resume others may have been freed, with the values that they had."""
    claim, images = claim_nothing(format.load(full)), SimpleNamespace(fingerprint="")
    other = dataclasses.replace(claim, mask={layer: mask * (mask < 3) for layer, mask in claim.mask.items()})
    runs = [describe_run(each, "new", images, RECIPE) for each in (claim, other)]
    assert checkpoint.difference(*runs) == "the weights differ"


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("recipe: lr 0.01, not 0.02", {"recipe": dataclasses.replace(RECIPE, lr=0.02)}),
        ("prune 0.5, not 0.25", {"prune": 0.25}),
        ("task 'red', not 'other'", {"name": "other"}),
        ("of another run: the images differ. Repeat", {"folder": "another"}),
        ("of another run: the weights differ. Repeat", {"again": {"recipe": Recipe(seed=7)}}),
        (r"preprocessing: input_size \[3, 32, 32\], not \[3, 48, 48\]", {"again": {"data_config": {"img_size": 48}}}),
        ("network: drop_rate 0.5, not None", {"again": {"model_kwargs": {}}}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, folders, what, changes):
    """By the name of what differs; and it is still there afterwards."""
    path = tmp_path / "packed.st"
    init(path)
    with pytest.raises(InterruptedRun):
        add(path, folders[0], progress=stop_at("train", 1, 1))
    folder = folders[0]
    if changes.pop("folder", None):
        folder = make_folder(tmp_path / "red", seed=9)
    if again := changes.pop("again", None):
        init(path, force=True, **again)
    with pytest.raises(ConflictError, match=what):
        add(path, folder, resume=True, **changes)
    assert (tmp_path / "packed.st.resume" / "checkpoint.safetensors").exists()


def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path, folders):
    """It says what to remove; one of another version is not called damaged."""
    path = tmp_path / "packed.st"
    init(path)
    (tmp_path / "packed.st.resume").mkdir()
    (tmp_path / "packed.st.resume" / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="damaged .*; remove .*packed.st.resume and start anew"):
        add(path, folders[0], resume=True)
    lacking = {checkpoint.NOTES: '{"run": {}}'}
    save_file({"x": torch.zeros(1)}, tmp_path / "packed.st.resume" / "checkpoint.safetensors", lacking)
    with pytest.raises(ArtifactError, match="damaged .*; remove .*packed.st.resume and start anew"):
        add(path, folders[0], resume=True)
    older = {"packnet_resume.0": "{}"}
    save_file({"x": torch.zeros(1)}, tmp_path / "packed.st.resume" / "checkpoint.safetensors", older)
    with pytest.raises(ConflictError, match="written by another version of packnet"):
        add(path, folders[0], resume=True)


def test_what_cannot_be_written_is_kept(tmp_path, folders, whole, monkeypatch):
    """The disk is full when training is done: with room again, --resume writes the result without training again."""
    path = tmp_path / "packed.st"
    path.write_bytes(whole["momentum"][0])
    with monkeypatch.context() as patched:
        patched.setattr(format, "save", raiser(ArtifactError("cannot write: No space left on device")))
        with pytest.raises(ArtifactError, match="No space left.*What was trained is kept.*--resume"):
            add(path, folders[1])
    assert path.read_bytes() == whole["momentum"][0]
    seen = []
    add(path, folders[1], resume=True, progress=lambda task, phase, at: isinstance(at, Step) and seen.append(at))
    assert path.read_bytes() == whole["momentum"][1] and not seen


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (ArtifactError, "once that is fixed"),
        (CapacityError, "once that is fixed"),
        (ConflictError, "with the old file back"),
    ],
)
def test_how_to_write_what_is_kept(monkeypatch, error, how):
    """If it is: else the error alone is told."""
    monkeypatch.setattr(result, "save", raiser(error("no room")))
    for kept, told in ((True, f"no room. What was trained is kept: {how}, --resume writes it"), (False, "no room")):
        with pytest.raises(error) as raised:
            result.write(None, None, SimpleNamespace(keep_result=lambda kept=kept: kept), None)
        assert str(raised.value) == told


def test_an_error_at_each_step_of_a_training_run(packed, folders):
    """That of a checkpoint is said, and the training goes on; that of the result leaves the file as it was."""
    steps = [*STEPS[:-1], (checkpoint, "save_file")]  # a folder that cannot be removed is left
    run = dict(recipe=dataclasses.replace(QUICK, batch_size=32), machine=CPU)
    old, seen = packed.read_bytes(), []
    new = pack.add_task(packed, folders[0], **run) and packed.read_bytes()
    for number in range(1, 100, 2):
        packed.write_bytes(old)
        say, reached = Mock(), []

        def fail(done, number=number, reached=reached):
            reached.append(done)
            if done == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.MonkeyPatch.context() as patch:
            count_steps(patch.setattr, before=fail, steps=steps)
            try:
                pack.add_task(packed, folders[0], say=say, checkpoint_minutes=0, **run)
            except ArtifactError as error:
                assert "No space left" in str(error) and "--resume writes it" in str(error)
                assert packed.read_bytes() == old
                seen.append("error")
            else:
                assert packed.read_bytes() == new
                warned = [call.args[0] for call in say.call_args_list if call.kwargs == {"warning": True}]
                seen.append(next((line for line in warned if "checkpoint" in line), "new file"))
        if seen[-1] == "error":
            pack.add_task(packed, folders[0], resume=True, **run)
            assert packed.read_bytes() == new
        if max(reached) < number:
            break
    assert seen.count("error") == sum("no checkpoint could be kept" in what for what in seen) == 5


def test_a_stopped_search_starts_again_after_training(tmp_path, folders):
    """From the network before pruning, which is kept however short the training was; it comes to the same bytes."""
    path, expected = tmp_path / "packed.st", tmp_path / "expected.st"
    for each in (path, expected):
        init(each)
    add(expected, folders[0], prune=0.0, max_drop=99.0)
    with pytest.raises(InterruptedRun, match="go on with --resume"):
        add(path, folders[0], prune=0.0, max_drop=99.0, progress=stop_at("retrain at 0.5", 1, 1))
    phases = set()
    add(path, folders[0], prune=0.0, max_drop=99.0, resume=True, progress=lambda task, phase, at: phases.add(phase))
    assert "retrain at 0.5" in phases and "train" not in phases
    assert path.read_bytes() == expected.read_bytes()


def test_a_search_whose_end_cannot_be_written_is_kept(tmp_path, folders, monkeypatch):
    """With room again, --resume writes what was found, and retrains nothing; however often there is still none."""
    path, seen = tmp_path / "packed.st", []
    init(path)
    how = dict(prune=0.0, max_drop=99.0, progress=lambda task, phase, at: seen.append(at))
    expected = tmp_path / "expected.st"
    init(expected)
    found = add(expected, folders[0], **how).header.tasks[0]
    seen.clear()
    with monkeypatch.context() as patched:
        patched.setattr(format, "save", raiser(ArtifactError("cannot write: No space left on device")))
        for resumed in (False, True):
            with pytest.raises(ArtifactError, match="What was trained is kept"):
                add(path, folders[0], resume=resumed, **how)
            assert bool(seen) != resumed
            seen.clear()
    assert add(path, folders[0], resume=True, **how).header.tasks[0].search == found.search and not seen
    assert path.read_bytes() == expected.read_bytes()


def raiser(error):
    """A function that raises this."""

    def fail(*arguments, **more):
        raise error

    return fail


def test_base_and_prune_resume_too(tmp_path, folders):
    """`init --prune` and `prune` keep checkpoints in the same way."""
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "w.pt")
    how = dict(recipe=RECIPE, machine=CPU, data=folders[2])

    def base(name, **more):
        path = tmp_path / name
        pack.init(
            path, "test_resnet", weights=tmp_path / "w.pt", data_config={"img_size": 32}, prune=0.5, **how, **more
        )
        return path.read_bytes()

    expected = base("whole.st")
    with pytest.raises(InterruptedRun):
        base("stopped.st", progress=stop_at("retrain", 2, 1))
    assert not (tmp_path / "stopped.st").exists()
    assert base("stopped.st", resume=True) == expected

    path = tmp_path / "whole.st"
    again = dict(prune=0.5, machine=CPU)
    with pytest.raises(InterruptedRun):
        pack.prune_task(path, "1", progress=stop_at("retrain", 2, 1), **again)
    pack.prune_task(path, "1", resume=True, **again)
    pack.prune_task(tmp_path / "stopped.st", "1", **again)
    assert path.read_bytes() == (tmp_path / "stopped.st").read_bytes()


@pytest.mark.parametrize("opt", ["momentum", "adamw", "lamb", "adan"])
def test_an_optimizer_goes_on_without_the_layers_that_are_done(opt):
    """One that was released whole is left out by the new optimizer; some optimizers count their steps by group."""

    def steps(model, optimizer, count):
        for number in range(count):
            optimizer.zero_grad()
            model(torch.ones(2, 3) * (number + 1)).square().sum().backward()
            optimizer.step()

    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))

    whole = network()
    optimizer = create_optimizer_v2(whole, opt, lr=0.01, weight_decay=0.1)
    steps(whole, optimizer, 3)
    whole[0].requires_grad_(False)
    tensors, numbers = state.optimizer_state(dict(whole.named_parameters()), optimizer)
    tensors, numbers = copy.deepcopy(tensors), json.loads(json.dumps(numbers))
    stopped = copy.deepcopy(whole)
    steps(whole, optimizer, 3)

    optimizer = create_optimizer_v2(stopped, opt, lr=0.01, weight_decay=0.1)
    state.set_optimizer_state(dict(stopped.named_parameters()), optimizer, tensors, numbers)
    steps(stopped, optimizer, 3)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name]), name


@pytest.mark.parametrize(
    ("first", "second", "rank", "opt"),
    [
        (0.002, 0.8, "layer", "momentum"),  # the first leaves the smallest layers nothing, and the others little
        (0.5, 0.999, "global", "adamw"),  # of some layers the second has a part, and at last nothing
    ],
)
def test_a_layer_released_whole_does_not_keep_a_run_from_going_on(tmp_path, folders, first, second, rank, opt):
    """Its weights left the optimizer half-way through the retraining."""
    recipe = dataclasses.replace(RECIPE, retrain_epochs=4, prune_steps=3, rank=rank, opt=opt)
    ends = []
    for stops in (False, True):
        path = tmp_path / f"{stops}.st"
        init(path)
        add(path, folders[0], recipe, first)
        if stops:
            with pytest.raises(InterruptedRun):
                add(path, folders[1], recipe, second, progress=stop_at("retrain", 4, 1))
        add(path, folders[1], recipe, second, resume=stops)
        ends.append(path.read_bytes())
    assert ends[0] == ends[1]


def test_a_state_that_cannot_be_kept_does_not_end_the_run(tmp_path):
    """Some optimizers have lists of tensors."""
    said = []
    checkpointer = checkpoint.Checkpointer(tmp_path / "packed.st", {}, 1.0, noting(said))
    run_state = Mock(**{"tensors.return_value": {}, "notes.return_value": {"optimizer": [torch.ones(1)]}})
    assert not checkpointer.save(run_state)
    assert "no checkpoint could be kept" in said[0] and not os.listdir(tmp_path)


def test_a_first_checkpoint_that_is_interrupted_leaves_no_folder(packed, folders, monkeypatch):
    """By a second Ctrl-C."""
    monkeypatch.setattr(checkpoint, "save_file", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        add(packed, folders[0], progress=stop_at("train", 1, 1))
    assert not atomic.checkpoint(packed).parent.exists()


def test_the_optimizer_of_a_phase_that_is_over_takes_no_memory(packed, folders):
    """Its moments are as large as the network, twice."""

    def optimizers():
        gc.collect()
        return sum(issubclass(type(each), torch.optim.Optimizer) for each in gc.get_objects())

    alive = {}

    def progress(task, running, at):
        if not isinstance(at, Step) or at.step == at.steps:
            alive[running] = optimizers()

    before = optimizers()
    add(packed, folders[0], progress=progress)
    assert alive["train"] == alive["retrain"] == before + 1 and alive["dense"] == alive["retrained"] == before


def test_an_image_that_is_gone_does_not_take_the_training_with_it(packed, tmp_path):
    """A held-out one is first looked at after the training."""
    folder = make_folder(tmp_path / "some")
    image = folder / "val" / "class0" / "0.png"
    kept = image.read_bytes()

    def progress(task, running, at):
        image.unlink(missing_ok=True)

    with pytest.raises(DataError, match="0.png can no longer be read.*--resume"):
        add(packed, folder, progress=progress)
    image.write_bytes(kept)
    seen = []
    add(packed, folder, resume=True, progress=lambda task, running, at: seen.append(running))
    assert "train" not in seen and "retrain" in seen


UNCACHED = dataclasses.replace(CPU, cache="off")


def opens_only(count):
    """A stand-in for `open_picture` that finds no picture any more after so many."""
    opens, left = pictures.open_picture, iter(range(count))

    def open_picture(picture):
        if next(left, None) is None:
            raise FileNotFoundError(picture)
        return opens(picture)

    return open_picture


@pytest.mark.parametrize(("opt", "steps", "sched"), [("momentum", 1, "tanh"), ("adamw", 3, "step")])
@pytest.mark.parametrize(("after", "gone"), [(a, b) for a in ("dense", "retrain") for b in ("train", "val")])
def test_images_that_are_gone_for_a_while(tmp_path, folders, opt, steps, sched, after, gone):
    """Between the phases, at a measurement, or between two epochs: put back, the run ends as if they had stayed."""
    recipe = dataclasses.replace(RECIPE, opt=opt, prune_steps=steps, sched=sched)
    folder, away = tmp_path / "images", tmp_path / "away"
    shutil.copytree(folders[0], folder)
    init(tmp_path / "whole.st")
    pack.add_task(tmp_path / "whole.st", folder, prune=0.5, recipe=recipe, machine=UNCACHED)

    def take_away(task, phase, seen):
        ends = not isinstance(seen, Step) or seen.step == seen.steps
        if phase == after and ends and not away.exists():
            (folder / gone).rename(away)

    path = tmp_path / "packed.st"
    init(path)
    with pytest.raises(DataError, match="put it back and go on with --resume"):
        pack.add_task(path, folder, prune=0.5, recipe=recipe, machine=UNCACHED, progress=take_away)
    away.rename(folder / gone)
    pack.add_task(path, folder, prune=0.5, recipe=recipe, machine=UNCACHED, resume=True)
    assert path.read_bytes() == (tmp_path / "whole.st").read_bytes()


def test_images_that_are_gone_before_the_first_step(packed, folders):
    """There is nothing yet to go on from, and so it is not said."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="can no longer be read") as raised:
        patch.setattr(pictures, "open_picture", opens_only(27))
        pack.add_task(packed, folders[0], recipe=RECIPE, machine=UNCACHED)
    assert "--resume" not in str(raised.value) and not atomic.checkpoint(packed).exists()


def test_images_that_are_gone_as_a_run_goes_on(tmp_path, folders):
    """The checkpoint that it came from stays: it is of a later step than the first release."""
    recipe = dataclasses.replace(RECIPE, opt="adamw")
    folder, path = tmp_path / "images", tmp_path / "packed.st"
    shutil.copytree(folders[0], folder)
    how = dict(prune=0.5, recipe=recipe, machine=UNCACHED)
    init(tmp_path / "whole.st")
    pack.add_task(tmp_path / "whole.st", folder, **how)
    init(path)
    with pytest.raises(InterruptedRun):
        pack.add_task(path, folder, progress=stop_at("retrain", 1, 2), **how)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="go on with --resume"):
        patch.setattr(pictures, "open_picture", opens_only(27))
        pack.add_task(path, folder, resume=True, **how)
    pack.add_task(path, folder, resume=True, **how)
    assert path.read_bytes() == (tmp_path / "whole.st").read_bytes()


def test_images_that_are_gone_during_a_search(tmp_path, folders):
    """The checkpoint is that of the network before pruning, and stays."""
    folder, away, path = tmp_path / "images", tmp_path / "away", tmp_path / "packed.st"
    shutil.copytree(folders[0], folder)
    how = dict(max_drop=99.0, recipe=RECIPE, machine=UNCACHED)
    init(tmp_path / "whole.st")
    pack.add_task(tmp_path / "whole.st", folder, **how)

    def take_away(task, phase, seen):
        if phase == "pruned at 0.5" and not away.exists():
            (folder / "train").rename(away)

    init(path)
    with pytest.raises(DataError, match="put it back and go on with --resume"):
        pack.add_task(path, folder, progress=take_away, **how)
    away.rename(folder / "train")
    pack.add_task(path, folder, resume=True, **how)
    assert path.read_bytes() == (tmp_path / "whole.st").read_bytes()


def test_what_is_pruned_and_not_retrained_is_not_pruned_again(tmp_path, folders, monkeypatch):
    """The disk is full, and --resume writes what was kept."""
    recipe = dataclasses.replace(RECIPE, retrain_epochs=0)
    init(tmp_path / "whole.st")
    add(tmp_path / "whole.st", folders[0], recipe)
    path = tmp_path / "packed.st"
    init(path)
    with monkeypatch.context() as patched:
        patched.setattr(format, "save", raiser(ArtifactError("cannot write: No space left on device")))
        with pytest.raises(ArtifactError, match="What was trained is kept"):
            add(path, folders[0], recipe)
    add(path, folders[0], recipe, resume=True)
    assert path.read_bytes() == (tmp_path / "whole.st").read_bytes()


@pytest.mark.parametrize("pause", [0.0, 3600.0])
def test_what_is_kept_is_of_the_last_step(tmp_path, folders, monkeypatch, pause):
    """Also where losses are looked at now and then only, as on a GPU."""
    monkeypatch.setattr(train._Meter, "is_due", lambda self: not pause)
    folder, path = tmp_path / "images", tmp_path / "packed.st"
    shutil.copytree(folders[0], folder)
    init(tmp_path / "whole.st")
    pack.add_task(tmp_path / "whole.st", folder, recipe=RECIPE, machine=UNCACHED)
    init(path)
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "open_picture", opens_only(56))
        with pytest.raises(DataError, match="go on with --resume"):
            pack.add_task(path, folder, recipe=RECIPE, machine=UNCACHED)
    pack.add_task(path, folder, recipe=RECIPE, machine=UNCACHED, resume=True)
    assert path.read_bytes() == (tmp_path / "whole.st").read_bytes()
