"""How a network computes: number formats; and a compiled step keeps the promise."""

import copy
import dataclasses
from functools import partial

import pytest
import timm
import torch
from conftest import CPU, QUICK

from packnet_cli.artifact import format, verify
from packnet_cli.engine import compute, pack
from packnet_cli.errors import UsageError

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
