"""Damage is found, all of it, and said to be where it is."""

import dataclasses
import json
import os

import numpy as np
import pytest
from test_format import GOLDEN, rewrite

from packnet_cli.artifact import format, masks, verify
from packnet_cli.artifact.verify import Finding
from packnet_cli.errors import ArtifactError, DamageError


def test_a_whole_file_has_no_findings(full):
    """As it was written."""
    assert verify.verify(full) == verify.verify(GOLDEN) == []


def missed_flips(path, every=1):
    """The bits of a file that may be flipped, one by one, without a finding; one in `every` is tried."""
    whole, missed = path.read_bytes(), []
    with open(path, "r+b", buffering=0) as file:
        for bit in range(0, 8 * len(whole), every):
            os.pwrite(file.fileno(), bytes([whole[bit // 8] ^ 1 << bit % 8]), bit // 8)
            if not verify.verify(path):
                missed.append(bit)
            os.pwrite(file.fileno(), whole[bit // 8 : bit // 8 + 1], bit // 8)
    return missed


def test_every_flipped_bit_is_found(tmp_path):
    """Each bit of a file, one by one: length, header, padding, numbers."""
    (tmp_path / "flipped.st").write_bytes(GOLDEN.read_bytes())
    assert missed_flips(tmp_path / "flipped.st") == []


def test_a_flipped_bit_is_found_in_a_real_network(full):
    """And what is damaged is named: the tensor, and the tasks that see it."""
    artifact = format.load(full)
    for key, task, seen_by in (
        ("shared.conv1.0.weight", None, 3),
        ("task.2.fc.bias", 2, 1),
        ("task.0.conv1.1.weight", None, 0),
    ):
        damaged = format.load(full)
        damaged.tensors()[key].reshape(-1).view(np.uint8)[1] ^= 16
        format.save(damaged, full)
        findings = verify.verify(full)
        assert findings[0] == Finding(f"{key} is not what was written", task, key)
        assert len(findings) <= 1 + seen_by and all("is not what was added" in found.problem for found in findings[1:])
        format.save(artifact, full)
    assert verify.verify(full) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t, f: f["tasks"][0]["owned"].update(w=1), "task 1 owns 2 weights of w, not the recorded 1"),
        (lambda t, f: f["tasks"][1].update(owned={}), "task 2 owns 1 weights of w, not the recorded 0"),
        (lambda t, f: f["tasks"][1]["owned"].update(v=3), "task 2 owns 0 weights of v, not the recorded 3"),
        (lambda t, f: f["tasks"][1].update(digest="sha256:" + 64 * "0"), "task 2 (zwei ☃) is not what was added"),
        (lambda t, f: t.pop("task.1.bias"), "task.1.bias is missing"),
        (lambda t, f: t.update({"task.1.more": t["task.1.bias"]}), "task.1.more was not written with the file"),
        (lambda t, f: t.update({"task.1.bias": t["task.1.bias"].astype("f2")}), "task.1.bias is not what was written"),
    ],
)
def test_what_is_well_sealed_but_wrong_is_found(tmp_path, change, problem):
    """By a program with a fault, not by a fault of the disk."""
    rewrite(tmp_path / "wrong.st", change)
    assert problem in [finding.problem for finding in verify.verify(tmp_path / "wrong.st")]


def test_what_cannot_be_verified(tmp_path):
    """No file, and a format that is not known here, are no findings."""
    with pytest.raises(ArtifactError, match="does not exist"):
        verify.verify(tmp_path / "none.st")
    rewrite(tmp_path / "newer.st", lambda tensors, fields: fields.update(format=3))
    with pytest.raises(ArtifactError, match="newer") as raised:
        verify.verify(tmp_path / "newer.st")
    assert not isinstance(raised.value, DamageError)


def test_a_digest_in_pieces_is_that_of_the_whole(full, monkeypatch):
    """Its slow twin makes the state dict first."""
    artifact = format.load(full)
    for piece in (7, masks.PIECE):
        monkeypatch.setattr(masks, "PIECE", piece)
        for task in artifact.header.tasks:
            assert artifact.digest(task.index) == format.digest(artifact.state(task.index)) == task.digest


def test_a_writer_refuses_to_build_upon_damage(tmp_path):
    """A dormant value, which no task sees, would otherwise get a new digest."""
    path = tmp_path / "a.st"
    artifact = format.load(GOLDEN)
    artifact.shared["w"][2] = 4
    format.save(artifact, path)
    with pytest.raises(DamageError, match="shared.w is not what was written; `packnet verify"):
        verify.load_verified(path)
    rewrite(path, lambda tensors, fields: fields["tasks"][1].update(digest="sha256:" + 64 * "0"))
    with pytest.raises(DamageError, match=r"task 2 \(zwei ☃\) is not what was added; `packnet verify"):
        verify.load_verified(path)


def test_the_command(full, packnet):
    """One line if the file is whole; else one for each finding, and exit code 9."""
    result = packnet("verify", full)
    assert result.exit_code == 0 and "is whole" in result.stdout
    told = json.loads(packnet("verify", full, "--json").stdout)
    assert told == {"packnet": 1, "whole": True, "rounded_to": None, "findings": []}
    artifact = format.load(full)
    artifact.mask["conv1.0.weight"].reshape(-1)[0] ^= 3
    format.save(artifact, full)
    result = packnet("verify", full)
    assert result.exit_code == 9 and "mask.conv1.0.weight is not what was written\n" in result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    result = packnet("verify", full, "--json")
    document = json.loads(result.stdout)
    assert (
        result.exit_code == 9 and not document["whole"] and document["findings"][0]["tensor"] == "mask.conv1.0.weight"
    )


def test_with_data_an_artifact_without_tasks_is_whole(packed, packnet):
    """There is nothing to measure."""
    assert "is whole" in packnet("verify", packed, "--data").stdout


def test_with_data_the_accuracy_is_compared(full, packnet):
    """With what was measured when the task was added."""
    arguments = ("verify", full, "--data", "--device", "cpu", "--workers", 0)
    assert packnet(*arguments).exit_code == 0
    artifact = format.load(full)
    tasks = tuple(dataclasses.replace(task, images=task.images + task.index // 3) for task in artifact.header.tasks)
    format.save(dataclasses.replace(artifact, header=dataclasses.replace(artifact.header, tasks=tasks)), full)
    result = packnet(*arguments)
    assert result.exit_code == 6 and result.stdout.startswith("task 3 (blue) has top-1 ")
    assert "on 12 images" in result.stdout and "is whole, but 1 task(s)" in result.stderr
    result = packnet(*arguments, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 6 and document["whole"] and document["findings"][0]["task"] == 3
