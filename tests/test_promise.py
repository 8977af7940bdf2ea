"""The promise: whatever is added later, an earlier task stays the same to the bit."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import CPU, QUICK, make_folder

from packnet_cli.artifact import edit, format, masks, verify
from packnet_cli.engine import network, pack
from packnet_cli.engine.claim import claim_free
from packnet_cli.engine.training import freezer, parts
from packnet_cli.engine.using.packed import Packed
from packnet_cli.errors import ForgettingError, NetworkError
from packnet_cli.recipe import Recipe

OPTIMIZERS = [("momentum", 0.0, 0.01), ("momentum", 5e-4, 0.01), ("adamw", 1e-2, 1e-3)]  # name, decay, rate


def bits(state):
    """Every tensor of a state dict as bytes."""
    return {name: array.tobytes() for name, array in state.items()}


def logits(path, index):
    """What task `index` answers to fixed random pictures."""
    artifact = format.load(path)
    model = Packed(artifact).model(index)
    with torch.inference_mode():
        return model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).numpy().tobytes()


def add(path, folder, prune, **changes):
    """Add a task in a second or so."""
    recipe = dataclasses.replace(QUICK, **changes)
    return pack.add_task(path, folder, prune=prune, recipe=recipe, machine=CPU)


NETWORKS = [("test_resnet", "task"), ("test_resnet", "frozen"), ("test_vit", "task"), ("test_vit", "frozen")]
NETWORKS += [("test_efficientnet", "task")]  # batch norm; attention; depthwise filters


@pytest.mark.parametrize(("opt", "weight_decay", "lr"), OPTIMIZERS)
@pytest.mark.parametrize(("arch", "norm"), NETWORKS)
def test_remember(tmp_path, folders, arch, norm, opt, weight_decay, lr):
    """After two more tasks, each with a save and a load, a task's weights, statistics and logits have the same bits."""
    path = tmp_path / "packed.st"
    pack.init(path, arch, pretrained=False, data_config={"img_size": 32})
    start = format.load(path)
    seen, ranks = {}, {1: "layer", 2: "adaptive", 3: "global"}
    for index, (folder, prune) in enumerate(zip(folders, (0.5, 0.5, 0), strict=True), start=1):
        settings = dict(opt=opt, weight_decay=weight_decay, lr=lr, retrain_lr=lr / 2, norm=norm, layer_decay=1 / index)
        add(path, folder, prune, **settings, rank=ranks[index], distill_weight=0.5 * (index == 2), head_lr=index)
        artifact = format.load(path)
        seen[index] = bits(artifact.state(index)), logits(path, index)
        for earlier, (state, answer) in seen.items():
            assert bits(artifact.state(earlier)) == state
            assert logits(path, earlier) == answer
            assert format.digest(artifact.state(earlier)) == artifact.header.task(earlier).digest
        for layer, mask in artifact.mask.items():
            never_owned = mask == masks.FREE
            dormant, pretrained = artifact.shared[layer][never_owned], start.shared[layer][never_owned]
            assert dormant.tobytes() == pretrained.tobytes()
        assert bits(artifact.own[0]) == bits(start.own[0])


@pytest.mark.parametrize("restart", ["pretrained", "zero"])
def test_prune_is_exact_and_hides_what_it_releases(packed, folders, restart):
    """round(P * n) of each layer's own weights go, in however many steps; for every task that does not own them: +0."""
    free = {layer: mask.size for layer, mask in format.load(packed).mask.items()}
    for index, prune in ((1, 0.37), (2, 0.61)):
        artifact = add(packed, folders[index - 1], prune, restart=restart, prune_steps=2)
        for layer, mask in artifact.mask.items():
            released = round(prune * free[layer])
            assert masks.count_owned(mask, masks.FREE) == released
            assert artifact.header.tasks[-1].owned[layer] == free[layer] - released
            free[layer] = released
            for k in range(1, index + 1):
                hidden = artifact.state(k)[layer][(mask == masks.FREE) | (mask > k)]
                assert not hidden.view(np.uint32).any()


def test_ties_are_pruned_exactly(packed, folders):
    """Weights of one magnitude, at a rate of 0, are all tied at the cutoff; no more of them go than were asked for."""
    start = format.load(packed)
    alike = {layer: np.full_like(array, 0.5) for layer, array in start.shared.items()}
    format.save(format.make(start.header, alike, start.mask, start.own), packed)
    artifact = add(packed, folders[0], 0.5, retrain_epochs=0, lr=0.0)
    for layer, mask in artifact.mask.items():
        assert masks.count_owned(mask, masks.FREE) == round(mask.size / 2)
        assert (artifact.shared[layer] == 0.5).all()


@pytest.mark.parametrize(("restart", "expected"), [("pretrained", True), ("zero", False)])
def test_restart(packed, folders, restart, expected):
    """A task finds the free weights at their dormant values, or at 0."""
    add(packed, folders[0], 0.5)
    before = format.load(packed)
    # One step at a rate of 0 shows what training started from.
    after = add(packed, folders[1], 0, restart=restart, lr=0.0)
    for layer, mask in after.mask.items():
        own = after.shared[layer][mask == 2]
        dormant = before.shared[layer][before.mask[layer] == masks.FREE]
        assert (own.tobytes() == dormant.tobytes()) == expected
        assert expected or not own.any()


def test_frozen_norm_stays_as_the_first_task_left_it(packed, folders):
    """The paper's way: biases, affine and statistics of every later task are task 1's; only the head is new."""
    first = add(packed, folders[0], 0.5, norm="frozen")
    second = add(packed, folders[1], 0.5, norm="frozen")
    of_first = {name: array for name, array in first.own[1].items() if not name.startswith("fc.")}
    of_second = {name: array for name, array in second.own[2].items() if not name.startswith("fc.")}
    assert bits(of_first) == bits(of_second)
    assert bits(first.own[0]) != bits(of_first)  # and the first task did train them


@pytest.mark.parametrize(("norm", "source"), [("task", 0), ("frozen", 1)])
def test_where_a_tasks_norms_start(full, norm, source):
    """At the starting point's, or at those of the first task, whatever later ones made of them; no head comes along."""
    artifact = format.load(full)
    claim = claim_free(artifact, dataclasses.replace(QUICK, norm=norm))
    start = {name: array for name, array in artifact.own[source].items() if not name.startswith("fc.")}
    assert bits(start) == bits({name: array for name, array in claim.state.items() if name not in claim.mask})


@pytest.mark.parametrize("in_parts", [False, True])
def test_without_write_back_nothing_is_written(packed, folders, monkeypatch, in_parts):
    """The proof that the promise is checked: take out what keeps it, and the file stays as it was.

    Of parts that would be to write nothing at all; they are written one place further.
    """
    add(packed, folders[0], 0.5)
    before = packed.read_bytes()
    monkeypatch.setattr(freezer, "LARGEST_PART", 1 if in_parts else 0)

    def write(part):
        values = parts.flat(part.parameter.detach(), part.parameter)
        values[(part.index + 1) % len(values)] = part.vector.detach()

    if in_parts:
        monkeypatch.setattr(parts.Part, "write", write)
    else:
        monkeypatch.setattr(freezer.Freezer, "write_back", lambda self: None)
    with pytest.raises(ForgettingError, match="frozen weights"):
        add(packed, folders[1], 0.5)
    assert packed.read_bytes() == before


@pytest.mark.parametrize("room", ["shared", "dormant", "mask", "own"])
def test_training_that_reaches_into_what_was_loaded_is_found(full, room):
    """The earlier tasks' arrays in memory, too, must be what the file holds; of the oldest task as of the newest."""
    edit.remove_task(full, 3)
    before = format.load(full)
    layer = "conv1.0.weight"
    claimed = masks.claim_free(before.mask[layer], 3)
    trained = {name: masks.keep_visible(before.shared[name], mask, 3) for name, mask in before.mask.items()}
    arrays = {"shared": before.shared[layer], "dormant": before.shared[layer], "mask": before.mask[layer]}
    array = (arrays | {"own": before.own[1]["fc.bias"]})[room]
    where = int(np.flatnonzero(before.mask[layer] == (0 if room == "dormant" else 1))[0]) if room != "own" else 0
    array.reshape(-1)[where] = 2
    new = dataclasses.replace(before.header.tasks[0], index=3)
    with pytest.raises(ForgettingError, match="what earlier tasks are made of; nothing was written"):
        edit.with_task(before, new, trained | before.own[2], before.mask | {layer: claimed})


def test_a_weight_that_changes_hands_is_found(full):
    """Though it has the value that it had."""
    edit.remove_task(full, 3)
    before = format.load(full)
    mask = {name: np.where(array == 1, array, 3).astype(np.uint8) for name, array in before.mask.items()}
    task = dataclasses.replace(before.header.tasks[0], index=3)
    with pytest.raises(ForgettingError, match="changed hands; nothing was written"):
        edit.with_task(before, task, before.shared | before.own[2], mask)


def test_more_than_the_new_tasks_weights_is_not_taken_over(full, monkeypatch):
    """The last proof: an earlier task's weight that moved, and would be written, shows in the digest."""
    edit.remove_task(full, 3)
    before = format.load(full)
    mask = {name: masks.claim_free(array, 3) for name, array in before.mask.items()}
    trained = {name: array.copy() for name, array in before.shared.items()}
    trained["conv1.0.weight"][before.mask["conv1.0.weight"] == 1] += 1
    monkeypatch.setattr(masks, "take_owned", lambda values, trained, mask, task: trained.copy())
    with pytest.raises(ForgettingError, match=r"training changed task 2 \(green\)"):
        edit.with_task(before, dataclasses.replace(before.header.tasks[0], index=3), trained | before.own[2], mask)


def test_a_hidden_buffer_that_moves_is_refused(packed, folders, monkeypatch):
    """What the state dict leaves out would be lost with the process, and the task with it."""
    before = packed.read_bytes()

    class Counting(torch.nn.Module):
        """Passes everything on, and counts, in a buffer that is not saved, how often."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    build = network.build

    def build_counting(header, num_classes):
        model = build(header, num_classes)
        model.global_pool = Counting(model.global_pool)
        return model

    monkeypatch.setattr(network, "build", build_counting)
    with pytest.raises(NetworkError, match="global_pool.calls"):
        add(packed, folders[0], 0.5)
    assert packed.read_bytes() == before


def test_an_altered_task_is_noticed(packed, folders):
    """A digest covers every weight that the task sees and every tensor of its own."""
    artifact = add(packed, folders[0], 0.5)
    assert verify.altered_tasks(artifact) == []
    for arrays in (artifact.shared, artifact.own[1]):
        for name, array in arrays.items():
            flat = array.reshape(-1).view(np.uint8)
            where = int(np.flatnonzero(artifact.mask[name] == 1)[0]) * 4 if name in artifact.mask else 0
            flat[where] ^= 1
            assert verify.altered_tasks(artifact), name
            flat[where] ^= 1
    assert verify.altered_tasks(artifact) == []


def test_same_seed_same_bytes(tmp_path, folders):
    """On one machine a command line determines the file."""
    for name in "ab":
        path = tmp_path / name
        pack.init(path, "test_resnet", pretrained=False, data_config={"img_size": 32}, recipe=Recipe(seed=3))
        add(path, folders[0], 0.5, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_task_with_a_lone_image_at_the_end(packed, tmp_path):
    """A last batch of one image, of which batch norm cannot take statistics, is left out of training."""
    add(packed, make_folder(tmp_path / "odd", classes=3, train=3), 0.5, batch_size=8)
