"""The loop: what is frozen stays, what diverges stops, what is counted is right."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import noting
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from packnet_cli.artifact import masks
from packnet_cli.engine.checks import check_optimizer
from packnet_cli.engine.data import splits
from packnet_cli.engine.measure import evaluate
from packnet_cli.engine.result import warn_of_guesses
from packnet_cli.engine.training import freezer as freezer_module
from packnet_cli.engine.training import optimize
from packnet_cli.engine.training import train as train_module
from packnet_cli.engine.training.freezer import Freezer
from packnet_cli.engine.training.optimize import Optimization
from packnet_cli.engine.training.release import smallest
from packnet_cli.engine.training.train import train
from packnet_cli.errors import DivergedError, UsageError
from packnet_cli.recipe import Recipe

OPTIMIZERS = ["momentum", "sgd", "adamw", "lion", "rmsprop", "adafactor", "lamb", "nadam", "adopt"]


def tiny(seed=0):
    """A convolution, batch norm and a head, and two batches of four 3 x 6 x 6 pictures."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    images, labels = torch.randn(8, 3, 6, 6), torch.arange(8) % 2
    return model, DataLoader(TensorDataset(images, labels), 4)


def epochs_of(model, batches, freezer, **changes):
    optimizing = {"opt": "momentum", "lr": 0.1, "sched": "step", "weight_decay": 0.1}
    settings = {"epochs": 2, "train_norm": True, "amp": False, "progress": lambda step: None} | changes
    names = [field.name for field in fields(Optimization)]
    optimizing |= {name: settings.pop(name) for name in names if name in settings}
    return train(model, batches, freezer, Optimization(**optimizing), **settings)


def run(model, batches, freezer, **changes):
    seen = []
    for _ in epochs_of(model, batches, freezer, progress=seen.append, **changes):
        pass
    return seen


@pytest.mark.parametrize("count", [0, 1, 20, 47, 60])
@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_are_those_that_numpy_releases(seed, count):
    """The same weights to the last, with ties, zeros of both signs and channels last."""
    rng = np.random.default_rng(seed)
    values = (rng.integers(-3, 4, (5, 4, 3, 3)) * rng.choice([-0.25, 1e-42, 1e38], (5, 4, 3, 3))).astype(np.float32)
    mask = (rng.random(values.shape) < 0.6).astype(np.uint8)
    weights = torch.from_numpy(values).contiguous(memory_format=torch.channels_last)
    found = smallest(weights, torch.from_numpy(mask == 1), count)
    assert np.array_equal(mask * ~found.numpy(), masks.release_smallest(mask, values, 1, count))


@pytest.mark.parametrize("count", [-1, 4])
def test_no_more_is_released_than_is_owned(count):
    """Else another task's weights would go."""
    with pytest.raises(ValueError, match=f"cannot release {count} of 3 weights"):
        smallest(torch.ones(5), torch.tensor([True, True, True, False, False]), count)


def test_bounds_that_are_infinite_are_no_divergence():
    """Some networks keep such as buffers."""
    model, batches = tiny()
    model.register_buffer("bound", torch.tensor(float("inf")))
    run(model, batches, Freezer(model, "momentum"))


@pytest.mark.parametrize("train_norm", [True, False])
def test_a_frozen_norm_leaves_stochastic_depth_at_work(train_norm):
    """Only what keeps running statistics stops, not every module that has a buffer, such as a table of positions."""
    model, batches = tiny()
    model.append(nn.Sequential(nn.Dropout()))
    model[-1].register_buffer("table", torch.arange(3))
    modes = []
    model.register_forward_hook(lambda *_: modes.append((model[1].training, model[-1][0].training)))
    run(model, batches, Freezer(model, "momentum"), train_norm=train_norm)
    assert set(modes[:-1]) == {(train_norm, True)}


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_frozen_weights_stay_under_every_optimizer(opt):
    """With weight decay, after a phase that left momentum behind: the frozen half keeps its bits, the rest moves."""
    model, batches = tiny()
    freezer = Freezer(model, opt)
    weight = model[0].weight
    run(model, batches, freezer, opt=opt, lr=0.01)
    before = weight.detach().clone()
    trainable = np.zeros(weight.shape, bool)
    trainable[:2] = True
    freezer.hold({"0.weight": trainable})
    run(model, batches, freezer, opt=opt, lr=0.01)
    assert weight[2:].detach().numpy().tobytes() == before[2:].numpy().tobytes()
    assert (weight[:2] != before[:2]).all()


def test_parameters_learn_at_their_own_multiples_of_the_rate():
    """After one step of plain SGD each has moved by its multiple; the rate that is shown is the plain one."""
    moves = []
    for rates in ({}, {"0.weight": 4.0, "4.weight": 0.5}):
        model, batches = tiny()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        [step, *_] = run(
            model, list(batches)[:1], Freezer(model, "momentum"), epochs=1, opt="sgd", weight_decay=0, rates=rates
        )
        assert step.lr == 0.1
        moves.append({name: parameter.detach() - before[name] for name, parameter in model.named_parameters()})
    for name, plain in moves[0].items():
        torch.testing.assert_close(moves[1][name], plain * {"0.weight": 4.0, "4.weight": 0.5}.get(name, 1.0))


def test_all_learn_at_the_raised_rate_and_with_the_papers_momentum():
    model = tiny()[0]
    raised = Optimization("momentum", 0.1, "none", 0.5, lr_scale=4)
    groups = raised.optimizer(model, dict(model.named_parameters())).param_groups
    assert {(group["lr"], group["momentum"]) for group in groups} == {(0.4, 0.9)}


def test_matrices_and_filters_alone_decay():
    """Not biases and norms, nor a table of positions, which is a matrix only by its shape."""
    model = timm.create_model("test_vit")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = Optimization("adamw", 0.1, "none", 0.5).optimizer(model, dict(model.named_parameters()))
    decayed = [names[id(each)] for group in optimizer.param_groups if group["weight_decay"] for each in group["params"]]
    layers = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    assert set(decayed) == layers and len(names) > len(layers)


@torch.no_grad()
def release(freezer, keep):
    """Set to 0 what is not to be kept of some parameters, and hold it there."""
    for name, where in keep.items():
        freezer.parameters[name].mul_(torch.from_numpy(where))
    freezer.hold(keep)


def test_holding_more_between_epochs():
    """As gradual pruning does: what is released stays 0 from then on, momentum or not."""
    model, batches = tiny()
    freezer, weight = Freezer(model, "momentum"), model[0].weight
    epochs = epochs_of(model, batches, freezer, epochs=3, weight_decay=0, sched="none")
    for epoch in epochs:
        if epoch:
            keep = np.ones(weight.shape, bool)
            keep[:epoch] = False
            release(freezer, {"0.weight": keep})
    assert not weight[:2].any() and weight[2:].all()


@pytest.mark.parametrize("largest", [0, 1])
def test_what_is_no_longer_held_moves_again(largest, monkeypatch):
    """As in a search, which goes back to where nothing was released; parts of weights or whole ones."""
    monkeypatch.setattr(freezer_module, "LARGEST_PART", largest)
    model, batches = tiny()
    freezer, weight = Freezer(model, "momentum"), model[0].weight
    for trainable in (np.arange(weight.numel()).reshape(weight.shape) % 2 == 0, np.ones(weight.shape, bool)):
        before = weight.detach().clone()
        freezer.hold({"0.weight": trainable})
        run(model, batches, freezer)
        assert np.array_equal((weight != before).numpy(), trainable)


def test_each_epoch_has_an_order_of_its_own():
    """Which follows from the seed and the epoch's number alone."""
    orders = []
    for seed in (1, 1, 2):
        model, batches = tiny()
        shuffled, seen = DataLoader(batches.dataset, 8, shuffle=True), []
        model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].numpy().tobytes()))
        run(model, shuffled, Freezer(model, "momentum"), epochs=3, seed=seed)
        orders.append(seen[:3])
    first, again, other = orders
    assert first == again and len(set(first)) == 3 and other[:2] == first[1:]


def test_a_layer_with_nothing_trainable_needs_no_gradient():
    """It costs neither a gradient nor optimizer state, and does not move."""
    model, batches = tiny()
    freezer, weight = Freezer(model, "momentum"), model[0].weight
    before = weight.detach().clone()
    freezer.hold({"0.weight": np.zeros(weight.shape, bool)})
    run(model, batches, freezer)
    assert weight.grad is None
    assert torch.equal(weight, before)


@pytest.mark.parametrize("train_norm", [True, False])
def test_statistics_move_only_when_norm_trains(train_norm):
    """Also after a measurement, in eval mode; `model.train()` alone would put frozen batch norm back into training."""
    model, batches = tiny()
    model.eval()
    before = model[1].running_mean.clone()
    run(model, batches, Freezer(model, "momentum"), train_norm=train_norm)
    assert torch.equal(model[1].running_mean, before) != train_norm


def test_a_loss_that_is_not_finite_stops():
    """The message names epoch and step."""
    model, batches = tiny()
    batches.dataset.tensors[0][5] = float("nan")
    with pytest.raises(DivergedError, match="loss is nan in epoch 1, step 2"):
        run(model, batches, Freezer(model, "momentum"))


def test_looking_now_and_then_tells_the_same(monkeypatch):
    """As on a GPU: one call an epoch, with the means of all its steps, and a bad loss by the step that it was in."""
    model, batches = tiny()
    each = run(model, batches, Freezer(model, "momentum"))
    monkeypatch.setattr(train_module._Meter, "is_due", lambda self: False)
    model, batches = tiny()
    seldom = run(model, batches, Freezer(model, "momentum"))
    same = ("epoch", "step", "loss", "accuracy")
    assert [[getattr(s, n) for n in same] for s in seldom] == [[getattr(s, n) for n in same] for s in each[1::2]]
    images, labels = batches.dataset.tensors
    images[3] = float("nan")
    with pytest.raises(DivergedError, match="loss is nan in epoch 1, step 2;"):
        run(model, DataLoader(TensorDataset(images, labels), 2), Freezer(model, "momentum"))


@pytest.mark.parametrize("opt", ["momentum", "adamw"])
def test_fused_optimizers_learn_the_same(opt, monkeypatch):
    """Also where weights are laid out with channels last."""
    cpu, fused = torch.device("cpu"), {"fused": True}
    assert optimize.fused(opt, torch.device("cuda")) == fused == optimize.fused("adam", cpu)
    assert not optimize.fused("lion", cpu) and not optimize.fused(opt, torch.device("mps"))
    assert optimize.fused(opt, cpu) == (fused if opt == "adamw" else {})
    weights = []
    for arguments in (fused, {}):
        monkeypatch.setattr(optimize, "fused", lambda *_, arguments=arguments: arguments)
        model, batches = tiny()
        run(model.to(memory_format=torch.channels_last), batches, Freezer(model, "momentum"), opt=opt, lr=0.01)
        weights.append(model[0].weight.detach())
    torch.testing.assert_close(*weights)


def test_what_is_held_takes_a_copy_and_a_byte_for_each_weight():
    """And nothing where a layer is frozen whole, or not at all."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3))
    trainable = {name: np.zeros(p.shape, bool) for name, p in model.named_parameters() if p.ndim == 4}
    trainable["0.weight"][:40], trainable["1.weight"][:] = True, True
    freezer = Freezer(model, "momentum")
    freezer.hold(trainable)
    assert sum(t.nbytes for _, *kept in freezer.held.values() for t in kept) == 5 * model[0].weight.numel()
    assert not freezer.parts


def gradually(freezer, model, batches, opt):
    """Train half of a layer, of which some is released after the first epoch; the optimizer's state for it at last."""
    torch.manual_seed(1)
    weight = model[0].weight
    parts = torch.rand(weight.shape).numpy()
    freezer.hold({"0.weight": parts < 0.5})
    optimizers = []
    epochs = epochs_of(
        model,
        batches,
        freezer,
        epochs=3,
        lr=0.01,
        opt=opt,
        sched="none",
        after_step=lambda position, optimizer, looked: optimizers.append(optimizer),
    )
    for epoch in epochs:
        release(freezer, {"0.weight": parts < 0.5 - 0.1 * epoch})
    return parts < 0.3, optimizers[-1].state[freezer.trained()["0.weight"]]


@pytest.mark.parametrize("opt", ["momentum", "adamw", "lion", "nadam"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_part_learns_what_the_whole_would(opt, layout, threads, monkeypatch):
    """The optimizer has the trainable weights alone, and state for them alone; each moves as it would among all."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weights = []
    for in_parts in (True, False):
        monkeypatch.setattr(freezer_module, "LARGEST_PART", 1 if in_parts else 0)
        model, batches = tiny()
        model, freezer = model.to(memory_format=layout), Freezer(model, opt)
        trainable, state = gradually(freezer, model, batches, opt)
        assert set(freezer.parts) == {"0.weight"} if in_parts else set(freezer.held) == {"0.weight"}
        sizes = {value.numel() for value in state.values() if isinstance(value, torch.Tensor)} - {1}
        assert sizes == {trainable.sum() if in_parts else trainable.size}
        weights.append(model[0].weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("opt", ["momentum", "adamw"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_copies_learn_the_same_bits(opt, layout, monkeypatch):
    """In bfloat16, of two layers, while more of them is released; and the head is at last released whole."""
    monkeypatch.setattr(freezer_module, "LARGEST_PART", 1)
    found = []
    for copied in (True, False):
        model, batches = tiny()
        model, freezer = model.to(memory_format=layout), Freezer(model, opt, copied=copied)
        layers = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
        drawn = {name: np.random.default_rng(1).random(layer.shape) for name, layer in layers.items()}
        epochs = epochs_of(model, batches, freezer, epochs=4, opt=opt, amp=True, sched="none", lr=0.01)
        for epoch in epochs:
            keep = {name: numbers < (0.8, 0.7, 0.6, 0.6 * (name[0] == "0"))[epoch] for name, numbers in drawn.items()}
            release(freezer, keep)
        assert (freezer.network is not model) == copied and set(freezer.parts) == {"0.weight"}
        if copied:  # there is but one index
            assert freezer.parts["0.weight"].index.data_ptr() == freezer.copied.index.data_ptr()
        found.append([value.numpy().tobytes() for value in model.state_dict().values()])
    assert found[0] == found[1]


def test_a_part_that_a_checkpoint_brings_is_not_copied():
    """From a CPU, where weights may be in part of which a GPU does not know what is done with them."""

    class Standardized(nn.Conv2d):
        def forward(self, images):
            return self._conv_forward(images, self.weight - self.weight.mean(), self.bias)

    found = []
    for copied in (True, False):
        model, batches = tiny()
        model[0].__class__ = Standardized
        freezer = Freezer(model, "momentum", copied=copied)
        freezer.in_part = {"0.weight": True}
        drawn = np.random.default_rng(1)
        freezer.hold({f"{n}.weight": drawn.random(model[n].weight.shape) < 0.4 for n in (0, 4)})
        run(model, batches, freezer, amp=True, lr=0.01)
        found.append([value.numpy().tobytes() for value in model.state_dict().values()])
    assert found[0] == found[1]


def test_a_part_that_is_released_whole_is_left_alone():
    """Half-way through a phase, by pruning."""
    model, batches = tiny()
    freezer, weight = Freezer(model, "adamw"), model[0].weight
    half = np.arange(weight.numel()).reshape(weight.shape) % 2 == 0
    freezer.hold({"0.weight": half})
    epochs = epochs_of(model, batches, freezer, opt="adamw", sched="none")
    for epoch in epochs:
        if epoch:
            before = weight.detach().numpy().copy()
            freezer.hold({"0.weight": np.zeros_like(half)})
    assert weight.detach().numpy().tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("opt", "alone"),
    [
        *((opt, True) for opt in ("sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "lion", "rmsprop")),
        *((opt, False) for opt in ("adafactor", "adamp", "cadamw", "cadopt", "lamb", "lars", "muon", "novograd")),
    ],
)
def test_which_optimizers_can_have_a_part_of_a_weight(opt, alone):
    """Those that look at the shape, a norm or a mean of the whole have the whole."""
    assert freezer_module.is_elementwise(opt) == alone


def test_weights_that_are_not_finite_after_the_last_step_are_noticed(monkeypatch):
    """No loss has seen them."""
    model, batches = tiny()
    freezer = Freezer(model, "momentum")
    monkeypatch.setattr(freezer, "write_back", lambda: model[0].weight.data.fill_(float("inf")))
    with pytest.raises(DivergedError, match="0.weight is no longer finite"):
        run(model, DataLoader(batches.dataset, 8), freezer, epochs=1)


def test_a_forward_pass_has_the_memory_of_gradients():
    """When it ends, activations take the most."""
    model, batches = tiny()
    seen = []
    model.register_forward_hook(lambda *_: seen.extend(each.grad for each in model.parameters()))
    run(model, batches, Freezer(model, "momentum"))
    assert seen == [None] * len(seen) != []


def test_progress_counts_every_step():
    """Epochs and steps from 1, accuracies in percent."""
    model, batches = tiny()
    seen = run(model, batches, Freezer(model, "momentum"))
    assert [(s.epoch, s.epochs, s.step, s.steps) for s in seen] == [
        (1, 2, 1, 2),
        (1, 2, 2, 2),
        (2, 2, 1, 2),
        (2, 2, 2, 2),
    ]
    assert all(0 <= s.accuracy <= 100 and s.images_per_second > 0 for s in seen)


@pytest.mark.parametrize(
    ("sched", "rates"),
    [
        *(("step", rates) for rates in ([1], [1, 0.1], [1, 1, 0.1], [1, 1, 0.1, 0.1], [1, 1, 1, 0.1, 0.1])),
        ("none", [1] * 4),
        ("cosine", [1, 0.854, 0.5, 0.146]),
        ("poly", [1, 0.75, 0.5, 0.25]),
    ],
)
def test_schedules(sched, rates, monkeypatch):
    """The learning rate at each epoch's start, one step an epoch, relative to the first."""
    model, batches = tiny()
    used, freezer = [], Freezer(model, "momentum")  # which tries the optimizer out
    sgd_step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o, *a: used.append(o.param_groups[0]["lr"]) or sgd_step(o, *a))
    run(model, DataLoader(batches.dataset, 8), freezer, epochs=len(rates), lr=0.01, sched=sched)
    assert used == pytest.approx([0.01 * rate for rate in rates], rel=1e-2)


def test_evaluate_counts_exactly():
    """Against a plain count, over batches of unequal size; of two classes, the top five hold both."""
    model, batches = tiny()
    images, labels = batches.dataset.tensors
    model.eval()
    right = int((model(images).argmax(1) == labels).sum())
    accuracy = evaluate(model, DataLoader(batches.dataset, 3))
    assert (accuracy.top1, accuracy.top5, accuracy.images) == (100 * right / 8, 100.0, 8)


def test_unknown_optimizer():
    """The nearest of timm's are named, in whatever case it is written."""
    check_optimizer(Recipe(opt="adamw"))
    with pytest.raises(UsageError, match="did you mean .*radam"):
        check_optimizer(Recipe(opt="adamv"))
    for name in ("AdamW", "SGD"):
        with pytest.raises(UsageError, match=f"did you mean {name.lower()}[,?]"):
            check_optimizer(Recipe(opt=name))
    with pytest.raises(UsageError, match="Lookahead is not supported; take adamw alone"):
        check_optimizer(Recipe(opt="lookahead_adamw"))


@pytest.mark.parametrize("piece", [8, 80, freezer_module.PIECE])
def test_write_back_is_exact_whatever_stands_there(piece, monkeypatch):
    """Frozen -0, NaN's neighbours and tiny numbers come back by their bits; trainable ones keep theirs, NaN too.

    In pieces of one row, of some, or of all.
    """
    monkeypatch.setattr(freezer_module, "LARGEST_PART", 0)
    monkeypatch.setattr(freezer_module, "PIECE", piece)
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    frozen = np.random.default_rng(0).standard_normal(model.weight.shape).astype(np.float32)
    frozen.reshape(-1)[:4] = -0.0, 1e-42, -1e38, 0.0
    trainable = np.zeros(frozen.shape, bool)
    trainable[:, 2] = True
    freezer = Freezer(model, "momentum")
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(frozen))
        freezer.hold({"weight": trainable})
        model.weight.copy_(torch.tensor([float("nan"), float("inf"), -0.0, 3.0]).view(1, 4, 1, 1))
    freezer.write_back()
    expected = np.where(trainable, np.float32(-0.0), frozen)
    assert model.weight.detach().numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("wrong", [{"opt": "adahessian"}, {"opt": "bnbadamw"}, {"opt": "madgrad", "retrain_lr": 0}])
def test_an_optimizer_that_cannot_step_here(wrong):
    """It needs second derivatives, another package, or a rate above 0: better said before training."""
    with pytest.raises(UsageError, match=f"{wrong['opt']}' cannot be used here"):
        check_optimizer(Recipe(**wrong))


def test_the_teachers_loss_is_in_float32():
    """Also where the network computes in bfloat16: a divergence is a sum of small differences.

    Weights that are cast once are what they are if they are cast each time.
    """
    model = tiny()[0].eval()
    images, labels = torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64)
    losses = []
    for amp in (True, False):
        teacher = train_module.Teacher(model, 1.0, lambda model: lambda: model, amp)
        assert (teacher.model[0].weight.dtype == torch.bfloat16) == amp
        teacher.prepare()
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(teacher.loss(images, labels, model(images + 1)))
    assert losses[0].dtype == torch.float32 and torch.equal(*losses) and losses[0] > 0


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_teachers_loss_is_that_of_the_paper(weight):
    """At a temperature of 2, whose square makes up for smaller gradients; the teacher is the network as it was."""
    model, batches = tiny()
    images, labels = next(iter(batches))
    teacher = train_module.Teacher(model, weight, lambda model: lambda: model, amp=False)
    teacher.prepare()
    assert model.training and not teacher.model.training
    wanted = (model.eval()(images) / 2).softmax(1)
    with torch.no_grad():
        model[0].weight.add_(1)
    logits = model(images)
    soft = 4 * (wanted * (wanted.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    hard = -logits.log_softmax(1)[range(4), labels].mean()
    torch.testing.assert_close(teacher.loss(images, labels, logits), (1 - weight) * hard + weight * soft)


@pytest.mark.parametrize(("top1", "told"), [(60.0, False), (40.0, True), (20.0, True), (None, False)])
def test_guessing_is_told_from_learning(top1, told):
    """At too high a rate a network dies, and names one class for every image."""
    held_out = splits.HeldOut(splits.Split([], [0, 0, 1, 1, 2]), "val")
    images = splits.TrainingImages(("a", "b", "c"), splits.Split([], []), held_out)
    task, said = SimpleNamespace(top1=top1), []
    warn_of_guesses(task, images, noting(said))
    assert said == ["one class for all images has top-1 40.00 %, no less: nothing was learnt; try another --lr"] * told
    for labels in ([], [1, 1]):  # where there is nothing to tell apart
        alike = replace(held_out, split=splits.Split([], labels))
        warn_of_guesses(SimpleNamespace(top1=100.0), replace(images, held_out=alike), said.append)
    warn_of_guesses(SimpleNamespace(top1=None), replace(images, held_out=None), said.append)
    assert len(said) == told


def test_what_to_try_after_divergence():
    """The rate; the weight decay, too, where there is one."""
    assert str(Optimization("momentum", 0.1, "none", 0).diverged("so")).endswith("a lower learning rate than 0.1")
    assert "0.1, which was raised 4 times, or --lr-scale none, or a lower weight decay than 5" in str(
        Optimization("momentum", 0.1, "none", 5, lr_scale=4).diverged("so")
    )
