"""`--batch-size auto` finds what fits, and is from then on what was found."""

import dataclasses

import pytest
import timm
import torch
from conftest import CPU, QUICK, noting
from test_cli import answer, refused
from test_resume import raiser, stop_at

from packnet_cli.artifact import format
from packnet_cli.engine import network, pack
from packnet_cli.engine.training import rates as rates_module
from packnet_cli.engine.training.task import TaskInTraining
from packnet_cli.errors import InterruptedRun, UsageError
from packnet_cli.recipe import ADAMW, AtMost

RECIPE = dataclasses.replace(QUICK, distill_weight=0.5, opt="adamw", lr=0.01)
RUN = dict(prune=0.5, machine=CPU)
FLAGS = ["--epochs", 1, "--retrain-epochs", 1, "--workers", 0, "--device", "cpu"]


@pytest.fixture
def room_for(monkeypatch):
    """Let every network run out of memory in training by more than so many images; with none, by any."""
    build = network.build

    def limit(most):
        def check(model, arguments):
            if model.training and len(arguments[0]) > most:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")

        def build_small(*arguments):
            model = build(*arguments)
            model.register_forward_pre_hook(check)
            return model

        monkeypatch.setattr(network, "build", build_small)

    return limit


def with_size(size):
    return dataclasses.replace(RECIPE, batch_size=size)


def test_the_result_is_that_of_the_size_that_was_found(packed, folders, room_for):
    """To the byte, recipe and all; and it is said."""
    before, said = packed.read_bytes(), []
    room_for(5)
    pack.add_task(packed, folders[0], recipe=with_size(AtMost(8)), say=noting(said), **RUN)
    found = packed.read_bytes()
    packed.write_bytes(before)
    artifact = pack.add_task(packed, folders[0], recipe=with_size(4), **RUN)
    assert packed.read_bytes() == found and artifact.header.task(1).recipe["batch_size"] == 4
    assert "batches of 4: for 8 the device's memory is not enough" in said


@pytest.mark.parametrize(("given", "rates"), [({}, (1e-3 / 3, 1e-3 / 3)), ({"lr": 2e-3}, (2e-3, 1e-3 / 3))])
def test_a_recipes_own_rates_are_lowered_for_a_network_such_as_vgg(packed, folders, monkeypatch, given, rates):
    """And only there; a rate that was given is taken as it is. What is recorded is what was used."""
    before, said = packed.read_bytes(), []
    recipe = dataclasses.replace(ADAMW, epochs=1, retrain_epochs=1, **given)
    usual = pack.add_task(packed, folders[0], recipe=recipe, say=noting(said), **RUN).header.task(1).recipe
    assert (usual["lr"], usual["retrain_lr"]) == (given.get("lr", 1e-3), 1e-3)
    assert not any("third" in line for line in said)
    packed.write_bytes(before)
    monkeypatch.setattr(rates_module, "ends_without_norm", lambda *_: True)
    lowered = pack.add_task(packed, folders[0], recipe=recipe, say=noting(said), **RUN).header.task(1).recipe
    assert (lowered["lr"], lowered["retrain_lr"]) == rates
    named = "--retrain-lr" if given else "--lr and --retrain-lr"
    assert f"{named} a third of the usual, 0.000333: no norm follows this network's last layers" in said


def test_they_are_lowered_without_batch_norm_too(tmp_path, folders):
    """And left as they are where both were given."""
    pack.init(tmp_path / "packed.st", "test_vit", pretrained=False, data_config={"img_size": 32})
    recipe, said = dataclasses.replace(ADAMW, epochs=1), []
    task = pack.add_task(tmp_path / "packed.st", folders[0], recipe=recipe, say=noting(said), **RUN).header.task(1)
    assert task.recipe["lr"] == 1e-3 / 3
    assert "--lr and --retrain-lr a third of the usual, 0.000333: this network has no batch norm" in said
    assert rates_module.settle_rates(format.load(tmp_path / "packed.st"), QUICK, said.append) is QUICK


def test_what_fits_at_once_is_left_as_it_is(packed, folders):
    """A size that was given is not even tried."""
    before, said = packed.read_bytes(), []
    pack.add_task(packed, folders[0], recipe=with_size(AtMost(8)), say=noting(said), **RUN)
    assert said.count("batches of 8") == 1
    after = packed.read_bytes()
    packed.write_bytes(before)
    pack.add_task(packed, folders[0], recipe=with_size(8), say=noting(said), **RUN)
    assert packed.read_bytes() == after and said.count("batches of 8") == 1


def test_the_moments_and_the_teacher_count_too(packed, folders, monkeypatch):
    """Both must be there when the batch is tried; a teacher only if there will be one."""
    seen = []

    class Told(TaskInTraining):
        def _epochs(self, phase, epochs, lr, teacher=None):
            seen.append((epochs, teacher is not None))
            return super()._epochs(phase, epochs, lr, teacher)

    monkeypatch.setattr("packnet_cli.engine.fit.TaskInTraining", Told)
    pack.add_task(packed, folders[0], recipe=with_size(AtMost(8)), **RUN)
    alone = dataclasses.replace(with_size(AtMost(8)), distill_weight=0.0)
    pack.add_task(packed, folders[1], recipe=alone, **RUN)
    pack.add_task(packed, folders[2], recipe=with_size(AtMost(8)), **(RUN | {"prune": 0.0}))
    assert seen == [(2, True), (2, False), (2, False)]


def test_without_labels_and_a_teacher_nothing_is_tried(packed, folders):
    """Where nothing is trained, every size fits."""
    pack.add_task(packed, folders[0], recipe=with_size(8), **RUN)
    recipe = dataclasses.replace(with_size(AtMost(8)), retrain_epochs=0)
    artifact = pack.prune_task(packed, "1", prune=0.5, distill=folders[1], recipe=recipe, machine=CPU)
    assert artifact.header.task(1).recipe["batch_size"] == 8


def test_not_even_one_image_fits(packed, folders, room_for):
    """One clear error; and any other error is no reason to try a smaller batch."""
    before = packed.read_bytes()
    with pytest.raises(RuntimeError, match="spatial"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("packnet_cli.engine.training.train.F.cross_entropy", raiser(RuntimeError("spatial")))
        pack.add_task(packed, folders[0], recipe=with_size(AtMost(8)), **RUN)
    room_for(0)
    with pytest.raises(UsageError, match="not enough for one image"):
        pack.add_task(packed, folders[0], recipe=with_size(AtMost(8)), **RUN)
    assert packed.read_bytes() == before


def test_a_batch_of_one_may_be_too_small_for_batch_norm(tmp_path, folders, room_for):
    """One clear error here too: more do not fit, and of one there are no statistics."""
    path = tmp_path / "small.st"
    pack.init(path, "test_resnet", pretrained=False, data_config={"img_size": 16})
    room_for(1)
    with pytest.raises(UsageError, match="batch norm needs two images"):
        pack.add_task(path, folders[0], recipe=with_size(AtMost(8)), **RUN)


def test_a_stopped_run_goes_on_with_its_own_size(packed, folders, room_for):
    """Even if more, or less, would fit by now."""
    start = packed.read_bytes()
    pack.add_task(packed, folders[0], recipe=with_size(4), **RUN)
    whole = packed.read_bytes()
    packed.write_bytes(start)
    room_for(4)
    with pytest.raises(InterruptedRun):
        pack.add_task(packed, folders[0], recipe=with_size(AtMost(8)), progress=stop_at("retrain", 1, 1), **RUN)
    room_for(100)
    said = []
    pack.add_task(packed, folders[0], recipe=with_size(AtMost(8)), resume=True, say=noting(said), **RUN)
    assert packed.read_bytes() == whole and "batches of" not in "".join(said)


@pytest.mark.parametrize("way", ["flag", "config", "environment"])
def test_the_commands_take_auto(packed, folders, packnet, room_for, tmp_path, monkeypatch, way):
    """On the command line, in a file and in the environment; at most what the file says, or 32."""
    room_for(9)
    add = ["add-task", packed, "--data", folders[0], "--prune", 0.5, "--json", *FLAGS]
    (tmp_path / "c.toml").write_text("batch_size = 12" if way == "flag" else "batch_size = 'auto'")
    if way == "environment":
        monkeypatch.setenv("PACKNET_ADD_TASK_BATCH_SIZE", "auto")
    else:
        add += ["--config", tmp_path / "c.toml", *(["--batch-size", "auto"] if way == "flag" else [])]
    result = packnet(*add)
    assert answer(result)["task"]["index"] == 1
    most = 12 if way == "flag" else 32
    assert f"batches of 8: for {most} the device's memory" in result.stderr
    monkeypatch.delenv("PACKNET_ADD_TASK_BATCH_SIZE", raising=False)
    room_for(3)
    result = packnet("prune", packed, "--task", 1, "--prune", 0.5, "--batch-size", "auto", *FLAGS[2:])
    assert result.exit_code == 0 and "batches of 3: for 8" in result.stderr
    assert answer(packnet("info", packed, "--task", 1, "--json"))["task"]["recipe"]["batch_size"] == 3


def test_init_takes_auto(folders, packnet, room_for, tmp_path):
    """Where it retrains; where it does not, there is nothing to try."""
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "w.pt")
    init = ["init", "--arch", "test_resnet", "--weights", tmp_path / "w.pt", "--img-size", 32, "--batch-size", "auto"]
    init += [*FLAGS[2:], "--prune", 0.5]
    room_for(5)
    result = packnet(*init, "--data", folders[2], tmp_path / "a.st")
    assert result.exit_code == 0 and "batches of 4: for 32" in result.stderr
    result = packnet(*init, tmp_path / "b.st")
    assert result.exit_code == 0 and "batches" not in result.stderr
    told = answer(packnet("info", tmp_path / "b.st", "--task", 1, "--json"))
    assert told["task"]["recipe"]["batch_size"] == 32


def test_what_to_try_are_options_that_the_command_has(full, folders, packnet, monkeypatch):
    """Only what trains has an optimizer."""
    memory = raiser(RuntimeError("CUDA out of memory"))
    monkeypatch.setattr("packnet_cli.engine.using.evaluate.evaluate", memory)
    monkeypatch.setattr("packnet_cli.engine.using.auto.answers", memory)
    for task in ("all", "auto"):
        result = packnet("eval", full, "--task", task, "--batch-size", 8, *FLAGS[4:])
        refused(result, 2, "try --batch-size 4")
        assert "--opt" not in result.stderr
    monkeypatch.setattr("packnet_cli.engine.training.train.F.cross_entropy", memory)
    add = ("add-task", full, "--data", folders[0], "--name", "more", "--head-only", "--batch-size", 8)
    assert "try --batch-size 4, or an --opt" in packnet(*add, *FLAGS).stderr


@pytest.mark.parametrize("size", ["Auto", "0", "1.5", "", "-3"])
def test_sizes_that_are_none(packed, folders, packnet, size, tmp_path):
    """Refused before any work, in a file too."""
    result = packnet("add-task", packed, "--data", folders[0], "--batch-size", size)
    assert result.exit_code == 2 and "batch-size" in result.stderr and result.stdout == ""
    (tmp_path / "c.toml").write_text(f'batch_size = "{size}"\n')
    refused(packnet("add-task", packed, "--data", folders[0], "--config", tmp_path / "c.toml"), 2, "batch_size")
