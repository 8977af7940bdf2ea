"""What is promised holds on a GPU too, where there is one."""

import dataclasses

import pytest
import torch
from conftest import QUICK
from test_data import CONFIG

from packnet_cli.artifact import format, verify
from packnet_cli.engine import data, feed, pack, unpack
from packnet_cli.engine.compute import Machine

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


def test_deterministic_runs_make_the_same_bytes(packed, folders):
    """Wherever the images are kept, and whether a run is stopped half-way."""
    start, made = packed.read_bytes(), []
    for cache in ("device", "ram", "off"):
        packed.write_bytes(start)
        add(packed, folders[0], dataclasses.replace(GPU, deterministic=True, cache=cache))
        made.append(packed.read_bytes())
    assert made[0] == made[1] == made[2]


def test_what_was_measured_in_training_eval_measures(packed, folders):
    added = add(packed, folders[0]).header.tasks[0]
    [found] = unpack.evaluate_tasks(packed, "all", machine=GPU)
    assert found.accuracy.top1 == added.top1


def test_batches_are_those_of_a_cpu(folders):
    """To within one of 255 in training, and to the bit in evaluation."""
    split = data.open_training(folders[0], val_split=0.2, seed=0).train
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for training in (True, False):
        found = []
        for device in (cpu, gpu):
            torch.manual_seed(0)
            rooms = feed.rooms("auto", 1, device)
            how = dict(training=training, batch_size=5, workers=2, device=device, crop_scale=0.3, rooms=rooms)
            found.append([(images, labels) for images, labels in feed.batches(split, CONFIG, **how)])
        step = 1 / 255 / min(CONFIG["std"]) if training else 0
        for (images, labels), (others, other_labels) in zip(*found, strict=True):
            assert others.device.type == "cuda" and torch.equal(labels, other_labels)
            assert (images - others.cpu()).abs().max() <= 1.001 * step


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
    model = unpack.task_network(artifact, artifact.header.task(1)).eval()
    with torch.inference_mode():
        here, there = model(images), model.to("cuda")(images.to("cuda")).cpu()
    assert torch.allclose(here, there, atol=1e-3)
