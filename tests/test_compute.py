"""How training computes: what is set is set back, and a compiled step keeps the promise."""

import copy
import dataclasses
import os
import platform
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import CPU, QUICK

from packnet_cli.artifact import format, verify
from packnet_cli.engine import compute, pack
from packnet_cli.errors import UsageError
from packnet_cli.machine import Machine

HERE = torch.device("cpu")
COMPILED = dataclasses.replace(CPU, compile=True)


def ready(model, wanted):
    return compute.forward_of(model, wanted=wanted, device=HERE, shape=(1, 2), amp=False)


def add(path, folder, machine=CPU, **how):
    recipe = dataclasses.replace(QUICK, distill_weight=how.pop("distill_weight", 0.0))
    return pack.add_task(path, folder, prune=0.5, recipe=recipe, machine=machine, **how)


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch's, on Python 3.13.0
def test_a_compiled_step_keeps_the_promise(packed, folders, monkeypatch):
    """Under names of old, with teacher and checkpoints; the earlier task stays the same to the bit."""
    calls = []

    def graph(module, inputs):
        calls.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graph))  # the real one takes a minute
    before = add(packed, folders[0])
    assert not calls
    after = add(packed, folders[1], COMPILED, distill_weight=0.5, checkpoint_minutes=0)
    assert calls and verify.verify(packed) == []
    for name, array in before.state(1).items():
        assert after.state(1)[name].tobytes() == array.tobytes()
    assert after.own[2].keys() == before.own[1].keys()


def test_what_cannot_be_compiled_says_so(monkeypatch):
    """In one line that says what to leave out; another error stays what it is."""

    def fail(graph, inputs):
        raise OSError("no compiler was found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    forward = ready(torch.nn.Linear(2, 2), True)()
    with pytest.raises(UsageError, match="cannot compile this network here.*--no-compile"):
        forward(torch.zeros(1, 2))
    forward(torch.zeros(2, 2))  # another batch than the usual one runs as it is
    with pytest.raises(RuntimeError, match="shape"):
        ready(torch.nn.Linear(2, 2), None)()(torch.zeros(1, 3))


def test_on_a_cpu_nothing_is_compiled_unasked():
    model = torch.nn.Linear(2, 2)
    assert ready(model, None)() is model and ready(model, False)() is model


def test_bfloat16_where_the_processor_and_the_network_are_made_for_it(monkeypatch):
    """Not with depthwise convolutions, nor on a processor without it or whose torch cannot tell."""
    plain, depthwise = (timm.create_model(arch) for arch in ("test_resnet", "test_efficientnet"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert compute.in_bfloat16(None, HERE, plain) and not compute.in_bfloat16(False, HERE, plain)
    assert not compute.in_bfloat16(None, HERE, depthwise) and compute.in_bfloat16(True, HERE, depthwise)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not compute.in_bfloat16(None, HERE, plain)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not compute.in_bfloat16(None, HERE, plain)


def test_depthwise_filters_compute_in_float32():
    """Where the others compute in bfloat16, also in a copy, by its own weights; what the network is stays the same."""
    model = timm.create_model("test_efficientnet").eval()
    before, images = list(model.state_dict()), torch.rand(2, 3, 32, 32)
    plain = model(images)
    for amp in (False, True):
        run = compute.forward_of(model, wanted=None, device=HERE, shape=tuple(images.shape), amp=amp)()
    seen = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, images, out: seen.setdefault(compute.is_depthwise(module), set()).add(out.dtype)
            )
    with compute.in_precision(HERE, True):
        run(images)
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
    assert list(model.state_dict()) == before and torch.equal(model(images), plain)
    copied = copy.deepcopy(model)
    compute.forward_of(copied, wanted=None, device=HERE, shape=tuple(images.shape), amp=True)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(model(images), plain) and not copied(images).any()


def test_settings_of_the_process_are_put_back():
    """Whatever ends the training; what has no deterministic way is one line."""
    with pytest.raises(KeyError), compute.training_on(Machine("cpu", deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UsageError, match="--deterministic: .*put_.* leave it out"):
        with compute.training_on(Machine("cpu", deterministic=True)):
            raise RuntimeError("put_ does not have a deterministic implementation, but you set ...")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_that_is_freed_while_training_is_kept_until_its_end():
    """So that large arrays, too, are not mapped anew in each step."""

    def held():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    before = held()
    with compute.training_on(Machine("cpu")):
        large = torch.ones(2**26)  # 268 MB
        del large
        assert held() > before + 250
    assert held() < before + 50


def test_bfloat16_and_determinism_reach_the_file(packnet, packed, folders):
    """The flags as a user gives them; deterministic or not, a CPU makes the same bytes of one seed."""
    start, made = packed.read_bytes(), []
    sizes = ["--data", folders[0], "--epochs", 1, "--retrain-epochs", 1, "--prune", 0.5, "--lr", 0.01]
    for flags in (["--no-amp", "--deterministic"], ["--no-amp"], ["--amp"]):
        packed.write_bytes(start)
        assert packnet("add-task", packed, *sizes, *flags).exit_code == 0
        made.append(packed.read_bytes())
    assert made[0] == made[1] != made[2]
    assert all(array.dtype.name != "bfloat16" for array in format.load(packed).state(1).values())


def test_the_precision_of_training_is_not_that_of_measuring():
    """What is measured after training is what eval measures."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with compute.matmul_precision("highest"):
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
        with compute.matmul_precision("highest"):
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
    """Nor is its inference mode: the file has the same bytes, and the modes are there again afterwards."""

    def made(path):
        pack.init(path, "test_resnet", pretrained=False, data_config={"img_size": 32})
        add(path, folders[0])
        pack.prune_task(path, "red", prune=0.5, machine=CPU)
        return path.read_bytes()

    def modes():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.ones(1).dtype, torch.ones(1).device

    expected = made(tmp_path / "plain.st")
    turn()
    try:
        with torch.inference_mode():
            before = modes()
            assert made(tmp_path / "turned.st") == expected
            assert modes() == before
    finally:
        turn_back()


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


def test_a_caller_that_is_only_warned_stays_so():
    """Of what is not deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with compute.training_on(Machine("cpu", deterministic=True)):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
