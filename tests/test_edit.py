"""Tasks are removed and renamed, and nothing else is."""

import dataclasses
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from conftest import CPU, QUICK
from test_cli import answer, read_until, refused

from packnet_cli.artifact import atomic, edit, format, masks, verify
from packnet_cli.engine import pack
from packnet_cli.errors import ConflictError, DamageError, ForgettingError


def kept(artifact, *indices):
    """What must not change of these tasks: entry and every tensor, as bytes."""
    return {
        index: (artifact.header.task(index), {name: array.tobytes() for name, array in artifact.state(index).items()})
        for index in indices
    }


def test_the_newest_task_gives_its_weights_back(full):
    """They keep what it left there; the earlier ones keep every bit."""
    before, after = format.load(full), edit.remove_task(full, 3)
    assert kept(after, 1, 2) == kept(before, 1, 2) and verify.verify(full) == []
    assert [task.name for task in after.header.tasks] == ["red", "green"] and after.header.removed == {}
    for layer, mask in after.mask.items():
        np.testing.assert_array_equal(mask == masks.FREE, before.mask[layer] == 3)
        assert after.shared[layer].tobytes() == before.shared[layer].tobytes()
    assert after.free_count() == sum(before.header.tasks[2].owned.values())


def test_an_older_task_leaves_its_weights_to_the_later_ones(full):
    """Its head and its own tensors go; no weight changes hands."""
    before, after = format.load(full), edit.remove_task(full, "green")
    assert kept(after, 1, 3) == kept(before, 1, 3) and verify.verify(full) == []
    assert after.header.removed == {2: before.header.tasks[1].owned} and after.own[2] == {}
    assert not [key for key in format.load_shapes(full)[1] if key.startswith("task.2.")]
    assert after.free_count() == 0 and format.load(full).header == after.header


def test_removed_tasks_that_nobody_sees_any_more_become_free(full):
    """In any order of removal; in the end everything is."""
    edit.remove_task(full, 2)
    after = edit.remove_task(full, 3)
    assert after.header.removed == {} and after.header.last_index == 1
    assert after.free_count() == sum(mask.size for mask in after.mask.values()) - sum(
        after.header.tasks[0].owned.values()
    )
    empty = edit.remove_task(full, "red")
    assert empty.header.tasks == () and not any(mask.any() for mask in empty.mask.values())
    assert verify.verify(full) == []


@pytest.mark.parametrize("norm", ["task", "frozen"])
def test_a_task_is_added_after_removals(full, folders, norm):
    """It takes the next index, also where the first task is gone, whose norm a frozen one would take over."""
    edit.remove_task(full, 1)
    before = edit.remove_task(full, 3)
    recipe = dataclasses.replace(QUICK, norm=norm)
    after = pack.add_task(full, folders[2], name="new", prune=0.5, recipe=recipe, machine=CPU)
    assert [task.index for task in after.header.tasks] == [2, 3] and set(after.header.removed) == {1}
    assert kept(after, 2) == kept(before, 2) and verify.verify(full) == []


def test_rename_changes_nothing_but_the_name(full):
    """Every digest stays; the old name is free for another."""
    before = format.load(full)
    edit.rename(full, "red", "ροζ 2")
    after = format.load(full)
    assert after.header.task("ροζ 2") == dataclasses.replace(before.header.tasks[0], name="ροζ 2")
    assert after.header.tensors == before.header.tensors and kept(after, 2, 3) == kept(before, 2, 3)
    edit.rename(full, 2, "red")
    assert verify.verify(full) == []


def test_a_file_that_changed_while_the_user_was_asked_is_left_alone(full):
    """What was agreed to was said of another file."""
    stamp = atomic.stamp(full)
    edit.rename(full, 3, "other")
    with pytest.raises(ConflictError, match="changed by another program"):
        edit.remove_task(full, 3, unchanged_since=stamp)


EDITS = [lambda path: edit.remove_task(path, 3), lambda path: edit.rename(path, 3, "other")]


@pytest.mark.parametrize("change", EDITS)
def test_a_file_that_changes_as_it_is_edited_is_left_alone(full, monkeypatch, change):
    """Between its being read and its being replaced."""
    load, other = verify.load_verified, full.read_bytes() + b"other"

    def load_and_let_change(path):
        artifact = load(path)
        path.write_bytes(other)
        return artifact

    monkeypatch.setattr(verify, "load_verified", load_and_let_change)
    with pytest.raises(ConflictError, match="changed by another program"):
        change(full)
    assert full.read_bytes() == other


@pytest.mark.parametrize("change", EDITS)
def test_a_damaged_file_is_not_edited(full, change):
    """New digests would hide the damage."""
    damaged = format.load(full)
    damaged.own[1]["fc.bias"].view(np.uint8)[1] ^= 16
    format.save(damaged, full)
    before = full.read_bytes()
    with pytest.raises(DamageError, match="task.1.fc.bias is not what was written"):
        change(full)
    assert full.read_bytes() == before


def test_a_removal_that_would_change_another_task_is_refused(full, monkeypatch):
    """The proof that each is checked: free what an earlier task sees, too, and the file stays as it was."""
    before = full.read_bytes()
    monkeypatch.setattr(masks, "free_unseen", lambda mask, task: mask * (mask < task))
    with pytest.raises(ForgettingError, match=r"that would change task 2 \(green\)"):
        edit.remove_task(full, 3)
    assert full.read_bytes() == before


# --- commands -------------------------------------------------------------------------------------------------------


def test_remove_task_with_yes(full, packnet):
    """One line, or one document; info goes on to tell what the removed task owns."""
    result = packnet("remove-task", full, "--task", 1, "--yes")
    assert result.exit_code == 0 and "task 1 (red) removed; later tasks keep its weights" in result.stdout
    assert answer(packnet("info", full, "--json"))["removed_fraction"] == pytest.approx(0.5, abs=1e-3)
    assert "(removed)" in packnet("info", full).stdout
    told = answer(packnet("remove-task", full, "--task", "blue", "--yes", "--json"))
    assert told["removed"] == {"index": 3, "name": "blue"} and told["freed_weights"] > 0
    told = answer(packnet("info", full, "--json"))
    assert told["free_fraction"] == pytest.approx(0.25, abs=1e-3) and len(told["tasks"]) == 1


def test_remove_task_never_goes_ahead_unasked(full, packnet):
    """Without a terminal it must be told --yes."""
    before = full.read_bytes()
    refused(packnet("remove-task", full, "--task", 3), 2, "--yes")
    refused(packnet("remove-task", full, "--task", 9), 4, "9")
    assert full.read_bytes() == before


@pytest.mark.parametrize(("task", "reply", "words"), [(3, "y", "become free"), (1, "", "2 (green), 3 (blue)")])
def test_remove_task_asks(full, task, reply, words):
    """After it has said what will happen; an empty answer is no."""
    before = full.read_bytes()
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "packnet_cli", "remove-task", full, "--task", str(task)]
    with subprocess.Popen(command, stdin=terminal, stderr=terminal, stdout=subprocess.DEVNULL) as process:
        os.close(terminal)
        shown = read_until(screen, "[y/N]")
        os.write(screen, f"{reply}\n".encode())
        shown += read_until(screen, None)
    os.close(screen)
    assert process.returncode == 0 and words in " ".join(shown.split())
    assert (full.read_bytes() == before) == (reply == "") == ("nothing was written" in shown)


@pytest.mark.parametrize("name", ["7", "all", "auto", "green", "red", " ", "", "a\nb", "\x1b[31m", "\u202e", "\ud800"])
def test_names_that_no_task_can_have(full, packnet, name):
    """Numbers, 'all', 'auto', those that are taken, and what a terminal would act upon."""
    before = full.read_bytes()
    why = "has a task" if name in ("red", "green") else "(no number, 'all' or 'auto', nothing blank or unprintable)"
    refused(packnet("rename", full, "--task", 1, "--name", name), 4, why, "--name")
    assert full.read_bytes() == before


def test_rename(full, packnet):
    """One line, or one document."""
    assert "task 1 is now rouge" in packnet("rename", full, "--task", "red", "--name", "rouge").stdout
    told = answer(packnet("rename", full, "--task", "rouge", "--name", "[red]", "--json"))
    assert told["task"] == {"index": 1, "name": "[red]"}
    assert "[red]" in packnet("info", full).stdout
