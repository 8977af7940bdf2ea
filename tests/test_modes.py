"""Torch's modes of the whole process: as training needs them, and then again the caller's."""

import os
import platform
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, QUICK

from packnet_cli.engine import modes, pack
from packnet_cli.engine.using import evaluate
from packnet_cli.errors import UsageError
from packnet_cli.machine import Machine


def add(path, folder):
    return pack.add_task(path, folder, prune=0.5, recipe=QUICK, machine=CPU)


def test_settings_of_the_process_are_put_back():
    """Whatever ends the training; what has no deterministic way is one line."""
    with pytest.raises(KeyError), modes.training_on(Machine("cpu", deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UsageError, match="--deterministic: .*put_.* leave it out"):
        with modes.training_on(Machine("cpu", deterministic=True)):
            raise RuntimeError("put_ does not have a deterministic implementation, but you set ...")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_that_is_freed_while_training_is_kept_until_its_end():
    """So that large arrays, too, are not mapped anew in each step."""

    def held():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    before = held()
    with modes.training_on(Machine("cpu")):
        large = torch.ones(2**26)  # 268 MB
        del large
        assert held() > before + 250
    assert held() < before + 50


def test_the_precision_of_training_is_not_that_of_measuring():
    """What is measured after training is what eval measures."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with modes.matmul_precision("highest"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older torch")
def test_a_caller_may_use_torchs_newer_switches():
    """One for each backend; after one of them is set, the one for all may not even be read."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with modes.matmul_precision("highest"):
            assert switch.fp32_precision == "ieee"
        assert switch.fp32_precision == "tf32"
    finally:
        switch.fp32_precision = before
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("turn", "turn_back"),
    [
        (partial(torch.set_grad_enabled, False), partial(torch.set_grad_enabled, True)),
        (partial(torch.set_default_dtype, torch.float64), partial(torch.set_default_dtype, torch.float32)),
        (partial(torch.set_default_device, "meta"), partial(torch.set_default_device, None)),
    ],
)
def test_a_callers_modes_are_not_those_of_training(tmp_path, folders, turn, turn_back):
    """Nor are its inference mode and autocast: the file has the same bytes, and the modes are there again."""

    def made(path):
        pack.init(path, "test_resnet", pretrained=False, data_config={"img_size": 32})
        add(path, folders[0])
        pack.prune_task(path, "red", prune=0.5, machine=CPU)
        return path.read_bytes()

    def present():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return *modes, torch.ones(1).dtype, torch.ones(1).device

    expected = made(tmp_path / "plain.st")
    turn()
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            before = present()
            assert made(tmp_path / "turned.st") == expected
            assert present() == before
    finally:
        turn_back()


def test_older_torchs_word_on_the_default_device_is_not_needed(tmp_path, monkeypatch):
    """It does not know of a device that is a context, and fails after set_default_device(None)."""
    monkeypatch.delattr(torch, "get_default_device")
    with torch.device("meta"):
        artifact = pack.init(tmp_path / "packed.st", "test_resnet", pretrained=False, data_config={"img_size": 32})
    assert artifact.shared


def test_an_evaluation_leaves_the_callers_random_numbers_alone(full):
    """It needs none, and may stand in the middle of a training of theirs."""
    before = torch.get_rng_state()
    assert next(evaluate.evaluate_tasks(full, 1, device="cpu", workers=0)).accuracy.images == 9
    assert torch.equal(torch.get_rng_state(), before)


def test_a_callers_random_numbers_go_on(packed, folders):
    """A program that compares seeds of its own would else draw the same numbers after each run."""

    def numbers():
        return random.random(), np.random.random(), torch.rand(1).item()

    def after(seed, run):
        for start in (random.seed, np.random.seed, torch.manual_seed):
            start(seed)
        run()
        return numbers()

    expected = after(1, int)
    assert after(1, lambda: add(packed, folders[0])) == expected
    assert after(1, lambda: pack.prune_task(packed, "red", prune=0.5, machine=CPU)) == expected


def test_a_gpu_that_is_not_in_use_yet_keeps_the_callers_seed(monkeypatch):
    """It has drawn nothing from it; torch seeds it when it is first used."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(7)
    with modes.own_modes():
        torch.manual_seed(500)
    assert seeds == [7, 500, 7]


def test_a_caller_that_is_only_warned_stays_so():
    """Of what is not deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with modes.training_on(Machine("cpu", deterministic=True)):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
