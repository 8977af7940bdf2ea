"""Shares of the weights, before anything runs."""

import dataclasses
import json

import numpy as np
import pytest

from packnet_cli.artifact import format, masks, plan
from packnet_cli.artifact.format import Artifact, Header
from packnet_cli.errors import CapacityError, UsageError
from packnet_cli.recipe import Recipe


def empty(**sizes):
    """An artifact without tasks, of layers with so many weights."""
    shared = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    mask = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}
    return Artifact(Header("net", {}, ("fc",), "random", {}), shared, mask, ({"bias": np.zeros(3, np.float32)},))


@pytest.mark.parametrize(
    ("text", "hint"), [("1", ""), ("1.5", "; 1.5 % are 0.015"), ("100", ""), ("-5", ""), ("nan", ""), ("1e9", "")]
)
def test_fractions_that_are_none(text, hint):
    """A percentage is told from what is none either: all of the weights cannot go."""
    with pytest.raises(UsageError) as refused:
        plan.fraction_of(text, "auto")
    assert str(refused.value) == f"--prune must be at least 0 and less than 1, not {float(text):g}{hint}"


def test_minus_zero_is_zero():
    """On record, too."""
    assert str(plan.fraction_of("-0", "auto")) == "0.0"


def test_release_counts_round():
    """round(p * n), as the command line promises."""
    counts = plan.release_counts({str(n): n for n in (0, 1, 2, 3, 1000)}, 0.75, Recipe())
    assert list(counts.values()) == [0, 1, 2, 2, 750]


def test_release_counts_spare_layers():
    """A floor that a small layer cannot go below, and layers left out by name."""
    owned = {"stem.weight": 10, "blocks.0.weight": 100, "blocks.1.weight": 100}
    assert list(plan.release_counts(owned, 0.5, Recipe(keep_at_least=8)).values()) == [2, 50, 50]
    assert list(plan.release_counts(owned, 0.5, Recipe(keep_at_least=20)).values()) == [0, 50, 50]
    assert list(plan.release_counts(owned, 0.5, Recipe(skip_layers="stem*, blocks.1.*")).values()) == [0, 50, 0]
    names = "stem.weight, blocks.0.weight, blocks.1.weight"
    with pytest.raises(UsageError, match=f"'stems' matches no packed layer; there are {names}"):
        plan.release_counts(owned, 0.5, Recipe(skip_layers="blocks.*,stems"))


@pytest.mark.parametrize(
    ("prune", "changes", "why"),
    [
        (0.5, {"keep_at_least": 9}, "--skip-layers and --keep-at-least spare all"),
        (0.5, {"skip_layers": "*"}, "--skip-layers and --keep-at-least spare all"),
        (0.01, {}, "it is less than one weight of each layer"),
    ],
)
def test_why_nothing_would_be_released(prune, changes, why):
    """Which is no mistake where nothing is to be."""
    with pytest.raises(UsageError, match=why):
        plan.check_release({"a": 9, "b": 3}, prune, Recipe(**changes))
    plan.check_release({"a": 9, "b": 3}, 0, Recipe(**changes))


@pytest.mark.parametrize("tasks", [1, 2, 3, 20])
def test_equal_shares_are_equal(tasks):
    """By p_k = (T - k) / (T - k + 1) every task gets as much, to the rounding of each step, and nothing is left."""
    artifact = empty(a=1000, b=7000)
    planned = plan.share_out(artifact, plan.equal_shares(artifact, tasks), Recipe())
    for layer, size in (("a", 1000), ("b", 7000)):
        assert all(abs(share.owned[layer] - size / tasks) <= 1 for share in planned.shares)
        assert planned.free[layer] == 0
    assert planned.file_bytes == 5 * 8000 + 12 * (1 + tasks)


def test_a_layer_that_runs_dry_is_named():
    """A layer of three weights has none for a fourth task."""
    artifact = empty(small=3, large=1000)
    planned = plan.share_out(artifact, plan.equal_shares(artifact, 4), Recipe())
    assert [share.dry for share in planned.shares].count(["small"]) == 1
    assert not any(planned.is_thin(share) for share in planned.shares)
    for prune, thin in ((0.98, False), (0.981, True)):  # which leave 2 % and 1.9 %
        planned = plan.share_out(empty(large=1000), {"greedy": prune}, Recipe())
        assert planned.is_thin(planned.shares[0]) == thin


def test_shares_go_on_from_the_tasks_that_are_there(full):
    """What earlier tasks own is what the file says."""
    artifact = format.load(full)
    planned = plan.share_out(artifact, plan.equal_shares(artifact, 4), Recipe())
    assert [share.name for share in planned.shares] == ["red", "green", "blue", "task 4"]
    assert [share.name for share in planned.planned] == ["task 4"] and planned.planned[0].total == 0
    for index, share in enumerate(planned.shares[:3], start=1):
        assert share.owned == {layer: masks.count_owned(mask, index) for layer, mask in artifact.mask.items()}
    assert planned.removed == 0
    start = sum(array.nbytes for array in artifact.own[0].values())
    assert planned.file_bytes == sum(array.nbytes for array in artifact.tensors().values()) + start


def test_a_table_is_never_cut(packed, packnet, monkeypatch):
    """A narrow terminal gets longer lines, not fewer numbers."""
    told = json.loads(packnet("plan", packed, "--tasks", 20, "--json").stdout)
    monkeypatch.setenv("COLUMNS", "40")
    shown = packnet("plan", packed, "--tasks", 20, "--layers").stdout
    assert "\u2026" not in shown and all(layer in shown for layer in told["free"])
    assert all(f"{count:,}" in shown for count in told["tasks"][0]["owned"].values())


def test_no_more_tasks_than_there_are_indices(full):
    """Those that removed tasks had count, too."""
    artifact = format.load(full)
    newest_alone = dataclasses.replace(
        artifact, header=dataclasses.replace(artifact.header, tasks=artifact.header.tasks[2:])
    )
    with pytest.raises(CapacityError, match="has used 3 of its 255 task indices"):
        plan.check_capacity(full, newest_alone, more=253)
    with pytest.raises(CapacityError, match="no free weights"):
        plan.check_capacity(full, newest_alone, more=252)


def test_room_is_made_by_the_newest_if_it_has_weights(full):
    artifact = format.load(full)
    with pytest.raises(CapacityError, match="make room with `packnet prune .* --task 3 --prune 0.5`, or train a"):
        plan.check_capacity(full, artifact)
    *earlier, newest = artifact.header.tasks
    tasks = (*earlier, dataclasses.replace(newest, owned=dict.fromkeys(newest.owned, 0)))
    head_alone = dataclasses.replace(artifact, header=dataclasses.replace(artifact.header, tasks=tasks))
    with pytest.raises(CapacityError, match="no free weights are left in [^;]*; train a classifier alone"):
        plan.check_capacity(full, head_alone)
    plan.check_capacity(full, head_alone, head_only=True)


def test_what_removed_tasks_left_is_in_the_plan(full, packnet):
    """So that the planned add up; a task that is not there has no line of its own."""
    assert packnet("remove-task", full, "--task", "red", "--yes").exit_code == 0
    result = packnet("plan", full, "--tasks", 3)
    assert result.exit_code == 5 and "no free weights are left" in result.stderr
    assert packnet("remove-task", full, "--task", "blue", "--yes").exit_code == 0
    told = json.loads(packnet("plan", full, "--tasks", 3, "--json").stdout)
    names = [(2, "green"), (3, "task 3"), (4, "task 4")]
    assert [(task["index"], task["name"]) for task in told["tasks"]] == names
    planned = [task["owned_fraction"] for task in told["tasks"]]
    whole = sum(planned) + told["free_fraction"] + told["removed_fraction"]
    assert told["removed_fraction"] > 0.2 and whole == pytest.approx(1)
    assert "(removed)" in packnet("plan", full, "--tasks", 3).stdout
