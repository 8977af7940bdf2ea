"""What is promised holds on a GPU too, where there is one."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import QUICK
from test_data import CONFIG
from test_resume import init, stop_at

from packnet_cli.artifact import format, verify
from packnet_cli.engine import compute, modes, pack
from packnet_cli.engine.data import feed, splits
from packnet_cli.engine.data.augment import Augmentation
from packnet_cli.engine.training.release import release_in_steps
from packnet_cli.engine.using import evaluate
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import InterruptedRun
from packnet_cli.machine import Machine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = Machine("cuda", workers=2, amp=True)


def add(path, folder, machine=GPU, recipe=QUICK, **how):
    return pack.add_task(path, folder, prune=0.5, recipe=recipe, machine=machine, **how)


@pytest.mark.parametrize("opt", ["momentum", "adamw"])
@pytest.mark.parametrize("arch", ["test_resnet", "test_vit"])
def test_earlier_tasks_stay_the_same_to_the_bit(tmp_path, folders, arch, opt):
    path, recipe = tmp_path / "packed.st", dataclasses.replace(QUICK, opt=opt, weight_decay=0.05)
    pack.init(path, arch, pretrained=False, data_config={"img_size": 32})
    before = add(path, folders[0], recipe=recipe)
    after = add(path, folders[1], recipe=recipe)
    assert verify.verify(path) == []
    for name, array in before.state(1).items():
        assert after.state(1)[name].tobytes() == array.tobytes()


def test_releasing_there_is_releasing_here():
    """In steps, and to the last weight; what is released is 0 in the network, too."""
    rng = np.random.default_rng(0)
    values = np.round(rng.standard_normal((64, 32, 3, 3)), 1).astype(np.float32)  # with many ties
    found = []
    for device in ("cpu", "cuda"):
        weights = torch.from_numpy(values.copy()).to(device).contiguous(memory_format=torch.channels_last)
        mask, layers = {"a": np.ones(values.shape, np.uint8)}, {"a": torch.nn.Parameter(weights)}
        for done in (0.5, 1.0):
            release_in_steps(mask, layers, 1, {"a": (values.size, 7000)}, done, {"a": np.eye(3, dtype=bool)})
        found.append((mask["a"].tobytes(), layers["a"].detach().cpu().contiguous().numpy().tobytes()))
    assert found[0] == found[1]


def test_deterministic_runs_make_the_same_bytes(packed, folders):
    """Wherever the images are kept, and whether a run is stopped half-way."""
    start, made = packed.read_bytes(), []
    for cache in ("device", "ram", "off"):
        packed.write_bytes(start)
        add(packed, folders[0], dataclasses.replace(GPU, deterministic=True, cache=cache))
        made.append(packed.read_bytes())
    assert made[0] == made[1] == made[2]


def test_graphs_change_no_bit(packed, folders):
    """The same kernels, only launched at once; teacher and released weights included."""
    start, made = packed.read_bytes(), []
    recipe = dataclasses.replace(QUICK, distill_weight=0.5, batch_size=5)
    for compiled in (None, False):
        packed.write_bytes(start)
        add(packed, folders[0], dataclasses.replace(GPU, deterministic=True, compile=compiled), recipe)
        made.append(packed.read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("phase", ["train", "retrain"])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, folders, phase):
    path, machine = tmp_path / "packed.st", dataclasses.replace(GPU, deterministic=True)
    recipe = dataclasses.replace(QUICK, epochs=2, distill_weight=0.5)
    init(path)
    start = path.read_bytes()
    add(path, folders[0], machine, recipe)
    whole = path.read_bytes()
    path.write_bytes(start)
    with pytest.raises(InterruptedRun):
        add(path, folders[0], machine, recipe, progress=stop_at(phase, 1, 3))
    add(path, folders[0], machine, recipe, resume=True)
    assert path.read_bytes() == whole


class Awkward(torch.nn.Module):
    """A network that looks at its own numbers, which no CUDA graph can."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)

    def forward(self, images):
        found = self.drop(self.norm(self.layer(images.flatten(1))))
        return found if found.sum().item() < 1e9 else found + 1


class Plain(Awkward):
    def forward(self, images):
        return self.drop(self.norm(self.layer(images.flatten(1))))


@pytest.mark.parametrize(("kind", "captured"), [(Awkward, False), (Plain, True)])
def test_capturing_leaves_nothing_behind(kind, captured, caplog):
    """Neither statistics nor random numbers; and what cannot be captured runs as it is."""
    caplog.set_level("INFO", "packnet")
    model = kind().to("cuda").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.cuda.get_rng_state()
    shape = (8, 1, 2, 2)
    with modes.training_on(GPU):
        forward = compute.forward_of(model, wanted=None, device=torch.device("cuda", 0), shape=shape, amp=True)()
    assert (forward.captured is not model) == captured, caplog.text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.cuda.get_rng_state(), random)
    seen = []
    for size in (8, 8, 3, 8):
        images = torch.rand(size, *shape[1:], device="cuda", generator=torch.Generator("cuda").manual_seed(size))
        with compute.in_precision(images.device, True):
            loss = forward(images).float().square().mean()
        model.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        seen.append(loss.item())
    assert len(set(seen)) == 4  # each with other units dropped
    assert model.norm.num_batches_tracked == 4


def test_what_was_measured_in_training_eval_measures(packed, folders):
    added = add(packed, folders[0]).header.tasks[0]
    [found] = evaluate.evaluate_tasks(packed, "all", device="cuda")
    assert found.accuracy.top1 == added.top1


def test_batches_are_those_of_a_cpu(folders):
    """To within one of 255 in training, and to the bit in evaluation."""
    split = splits.open_training(folders[0], val_split=0.2, seed=0).train
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for training in (True, False):
        found = []
        for device in (cpu, gpu):
            torch.manual_seed(0)
            budgets = feed.budgets("auto", 1, device)
            augmentation = Augmentation(crop_scale=0.3, vflip=0.5) if training else None
            how = dict(augmentation=augmentation, batch_size=5, workers=2, device=device, budgets=budgets)
            found.append([(images, labels) for images, labels in feed.batches(split, CONFIG, **how)])
        step = 1 / 255 / min(CONFIG["std"]) if training else 0
        for (images, labels), (others, other_labels) in zip(*found, strict=True):
            assert others.device.type == "cuda" and torch.equal(labels, other_labels)
            assert (images - others.cpu()).abs().max() <= 1.001 * step


@pytest.mark.filterwarnings("default")  # torch warns of itself there
def test_compiled_training_keeps_the_promise(packed, folders):
    before = add(packed, folders[0])
    after = add(packed, folders[1], dataclasses.replace(GPU, compile=True))
    assert verify.verify(packed) == []
    assert all(after.state(1)[name].tobytes() == array.tobytes() for name, array in before.state(1).items())


def test_the_file_is_that_of_any_machine(packed, folders):
    """What a GPU trained a CPU evaluates: the same weights, and answers that are close."""
    add(packed, folders[0])
    artifact = format.load(packed)
    images = torch.rand(4, 3, 32, 32)
    model = Packed(artifact).model(1)
    with torch.inference_mode():
        here, there = model(images), model.to("cuda")(images.to("cuda")).cpu()
    assert torch.allclose(here, there, atol=1e-3)
