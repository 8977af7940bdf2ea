"""Whatever befalls a packed model, its other tasks stay as they are; and `lives` would see it if not."""

import dataclasses
from collections import Counter

import lives

from packnet_cli.artifact import edit, format

COMMANDS = ["add", "add", "stop", "prune", "add", "use", "remove", "rename"]


def test_a_life_without_a_fault(tmp_path):
    tally = Counter()
    assert lives.lead(tmp_path / "life", lives.make_images(tmp_path), 16, COMMANDS, tally) == ""
    assert tally == Counter(f"{command}: done" for command in COMMANDS)


def test_a_task_that_is_changed_is_found(tmp_path, monkeypatch):
    """Even by a program that then writes new digests, so that its own `verify` finds nothing."""
    right = edit.with_task

    def wrong(*arguments):
        after = right(*arguments)
        shared = {name: values.copy() for name, values in after.shared.items()}
        for name, owners in after.mask.items():
            shared[name][owners == 1] *= -1
        after = format.make(after.header, shared, after.mask, after.own)
        tasks = tuple(dataclasses.replace(task, digest=after.digest(task.index)) for task in after.header.tasks)
        return dataclasses.replace(after, header=dataclasses.replace(after.header, tasks=tasks))

    monkeypatch.setattr(edit, "with_task", wrong)
    found = lives.lead(tmp_path / "life", lives.make_images(tmp_path), 16, COMMANDS, Counter())
    assert "changed" in found
