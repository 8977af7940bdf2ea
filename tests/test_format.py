"""The file: its specification, its determinism, and what is refused."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from mutations import seal
from safetensors.numpy import load_file, save_file

from packnet_cli.artifact import atomic, format, header, rules
from packnet_cli.artifact.format import Artifact, Header, Task
from packnet_cli.errors import ArtifactError, ConflictError, TaskError

GOLDEN = Path(__file__).with_name("golden.st")


def small_artifact() -> Artifact:
    """One layer of four weights, owned by tasks 1, 2, none, 1."""
    about = Header("net", {"pad": "same"}, ("fc",), "random", {"input_size": [3, 8, 8]})
    own = ({"bias": np.array([0.5], np.float32)},)
    shared, mask = {"w": np.array([1, 2, 3, -0.0], np.float32)}, {"w": np.array([1, 2, 0, 1], np.uint8)}
    artifact = Artifact(about, shared, mask, own)
    tasks = []
    for index, name in ((1, "one"), (2, "zwei ☃")):
        own = (*own, {"bias": np.array([index], np.float32), "steps": np.array(7, np.int64)})
        artifact = dataclasses.replace(artifact, own=own)
        digest = format.digest(artifact.state(index))
        owned = {"w": 3 - index}
        fields = dict(
            accuracy={"dense": 50.0}, top1=50.0, top5=100.0, images=2, data="/images", recipe={"seed": 0}, search={}
        )
        tasks.append(Task(index, name, ("a", "b"), 0.5, owned, digest=digest, **fields))
    return format.make(dataclasses.replace(about, tasks=tuple(tasks)), shared, mask, own)


def test_golden_file(tmp_path):
    """Today's writer makes, byte for byte, the file that format 1 was fixed with.

    After a deliberate change of the format, `python tests/test_format.py` makes that file anew.
    """
    format.save(small_artifact(), tmp_path / "new.st")
    assert (tmp_path / "new.st").read_bytes() == GOLDEN.read_bytes()


def test_golden_file_reads_as_specified():
    """Any safetensors reader opens it; the specification's rules give each task its weights."""
    tensors = load_file(GOLDEN)
    artifact = format.load(GOLDEN)
    for k in (1, 2):
        visible = (tensors["mask.w"] > 0) & (tensors["mask.w"] <= k)
        np.testing.assert_array_equal(artifact.state(k)["w"], np.where(visible, tensors["shared.w"], 0))
        np.testing.assert_array_equal(artifact.state(k)["bias"], tensors[f"task.{k}.bias"])
        assert format.digest(artifact.state(k)) == artifact.header.task(k).digest


def test_load_gives_back_what_was_saved(tmp_path):
    """Every field and every bit."""
    before = small_artifact()
    format.save(before, tmp_path / "a.st")
    after = format.load(tmp_path / "a.st")
    assert after.header == before.header == format.load_header(tmp_path / "a.st")
    for one, other in (
        (before.shared, after.shared),
        (before.mask, after.mask),
        *zip(before.own, after.own, strict=True),
    ):
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
        assert all(one[name].dtype == other[name].dtype and one[name].shape == other[name].shape for name in one)


def test_a_task_is_found_by_index_and_by_name():
    """And one that does not exist is answered with those that do."""
    about = small_artifact().header
    assert about.task(2) is about.task("2") is about.task("zwei ☃")
    with pytest.raises(TaskError, match=r"1 \(one\), 2 \(zwei ☃\)"):
        about.task("three")


def rewrite(path, change):
    """The small artifact with its tensors or metadata changed and sealed, by an ordinary safetensors writer."""
    format.save(small_artifact(), path)
    tensors, fields = load_file(path), json.loads(header.write(small_artifact().header))
    del fields["seal"]
    change(tensors, fields)
    save_file(tensors, path, {"packnet": seal(fields)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, f: f.update(format=3), "newer than format 2"),
        (lambda t, f: f.update(format=2), "metadata cannot be read"),
        (lambda t, f: f.update(tasks=None), "metadata cannot be read"),
        (lambda t, f: f.update(surprise=1), "metadata cannot be read"),
        (lambda t, f: f["tasks"][0].update(temperature=0), "impossible temperature"),
        (lambda t, f: f.update(tasks=f["tasks"][::-1]), "not numbered from 1"),
        (lambda t, f: t.pop("mask.w"), "must come together"),
        (lambda t, f: t.pop("shared.w"), "must come together"),
        (lambda t, f: t.update({"mask.w": t["mask.w"][:3]}), "wrong type or shape"),
        (lambda t, f: t.update({"shared.w": t["shared.w"].astype(np.float16)}), "wrong type or shape"),
        (lambda t, f: t.update({"mask.w": t["mask.w"].astype(np.int8)}), "wrong type or shape"),
        (lambda t, f: t["mask.w"].fill(3), "a task that does not exist"),
        (lambda t, f: t.update({"task.1.w": t["shared.w"]}), "both packed and a task's own"),
        (lambda t, f: t.update({"task.9.bias": t["task.1.bias"]}), "unexpected tensor"),
        (lambda t, f: t.update({"other": t["task.1.bias"]}), "unexpected tensor"),
        (lambda t, f: t.update({"other.1.bias": t["task.1.bias"]}), "unexpected tensor"),
        (lambda t, f: t.update({"task.1.more": t["task.1.bias"]}), "disagree about 'task.1.more'"),
        (lambda t, f: t.pop("task.1.bias"), "disagree about 'task.1.bias'"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    """Each rule of the specification that a file breaks is one clear error."""
    rewrite(tmp_path / "bad.st", change)
    with pytest.raises(ArtifactError, match=message):
        format.load(tmp_path / "bad.st")


def test_an_unchanged_rewrite_is_fine(tmp_path):
    """So the errors above come from the changes."""
    rewrite(tmp_path / "good.st", lambda tensors, fields: None)
    assert format.load(tmp_path / "good.st").header == small_artifact().header


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0{}              "])
def test_other_files_are_refused(tmp_path, content):
    """Not safetensors at all, or safetensors without our metadata."""
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a packed model"):
        format.load(tmp_path / "other")


def test_missing_file_and_folder_are_refused(tmp_path):
    """The message for a missing file says how to make one."""
    with pytest.raises(ArtifactError, match="packnet init"):
        format.load(tmp_path / "none.st")
    with pytest.raises(ArtifactError, match="is a folder"):
        format.load(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    """As a broken download leaves it."""
    format.save(small_artifact(), tmp_path / "a.st")
    whole = (tmp_path / "a.st").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "a.st").write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            format.load(tmp_path / "a.st")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", "many"), ("epochs", 2.5), ("epochs", True), ("val_split", "0.2"), ("seed", None), ("opt", 3)],
)
def test_a_recipe_of_wrong_types_is_damage(tmp_path, setting, value):
    """Of settings that only another version has, nothing is known."""
    rewrite(tmp_path / "a.st", lambda tensors, fields: fields["tasks"][0]["recipe"].update({setting: value}))
    with pytest.raises(ArtifactError, match="impossible recipe"):
        format.load_header(tmp_path / "a.st")
    rewrite(tmp_path / "a.st", lambda tensors, fields: fields["tasks"][0]["recipe"].update({"x" + setting: value}))
    assert format.load_header(tmp_path / "a.st").tasks[0].recipe["x" + setting] == value


# --- writing --------------------------------------------------------------------------------------------------------


def test_same_content_same_bytes(tmp_path):
    """So that a file can be compared, cached and signed."""
    for name in "ab":
        format.save(small_artifact(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numbers_are_written_in_c_order(tmp_path):
    """However they lie in memory."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for name, laid_out in (("a", np.ascontiguousarray), ("b", np.asfortranarray)):
        format.write_tensors({"w": laid_out(values)}, {"packnet": ""}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_keys_of_the_metadata_are_sorted():
    """As text, as any program sorts them, also those that are indices, of which 10 then comes before 2."""
    about = small_artifact().header
    tasks = (dataclasses.replace(about.tasks[0], index=12),)
    text = header.write(dataclasses.replace(about, tasks=tasks, removed={index: {"w": 1} for index in range(1, 12)}))
    fields = json.loads(text)
    rest = json.dumps({name: fields[name] for name in fields if name != "seal"}, sort_keys=True, separators=(",", ":"))
    assert text == f'{{"seal":"{fields["seal"]}",{rest[1:]}'


def test_what_no_reader_takes_is_not_written(tmp_path):
    """JSON has no NaN."""
    artifact = small_artifact()
    about = dataclasses.replace(artifact.header, data_config={"input_size": [3, 8, 8], "mean": [float("nan")] * 3})
    with pytest.raises(ValueError):
        format.save(dataclasses.replace(artifact, header=about), tmp_path / "a.st")
    assert os.listdir(tmp_path) == []


def test_metadata_that_no_reader_takes_is_not_written(tmp_path):
    """A number out of its range, say."""
    path, artifact = tmp_path / "a.st", small_artifact()
    format.save(artifact, path)
    before, [task, *rest] = path.read_bytes(), artifact.header.tasks
    tasks = (dataclasses.replace(task, prune=1.0), *rest)
    with pytest.raises(ArtifactError, match="cannot write .*a.st, as nobody could read it .*prune"):
        format.save(dataclasses.replace(artifact, header=dataclasses.replace(artifact.header, tasks=tasks)), path)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """Here the disk is full when the new file is flushed."""
    (tmp_path / "a.st").write_bytes(b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        format.save(small_artifact(), tmp_path / "a.st")
    assert (tmp_path / "a.st").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.st"]


def test_a_file_changed_meanwhile_is_left_alone(tmp_path):
    """Two add-tasks at once: the second to finish must not undo the first."""
    path = tmp_path / "a.st"
    format.save(small_artifact(), path)
    before = atomic.stamp(path)
    format.save(small_artifact(), path)
    theirs = path.read_bytes()
    with pytest.raises(ConflictError, match="changed by another program"):
        format.save(small_artifact(), path, unchanged_since=before)
    assert path.read_bytes() == theirs
    format.save(small_artifact(), path, unchanged_since=atomic.stamp(path))
    assert os.listdir(tmp_path) == ["a.st"]


def test_the_specification_names_all_that_a_reader_allows_and_refuses():
    """Each member of the metadata, and each argument of the network that may not be one."""
    members = rules.HEADER_RULES | rules.TASK_RULES | rules.OF_MEASURED | rules.OF_COMPACT | rules.COMPACT_RULES
    for name in members.keys() | rules.NOT_FOR_FILES:
        assert f"`{name}`" in format.__doc__, name
    for name in ("all", "auto"):
        assert not rules.is_name(name) and f'"{name}"' in format.__doc__


def test_a_symbolic_link_permissions_and_owner_survive(tmp_path, monkeypatch):
    """What the user arranged around the file stays."""
    real, link = tmp_path / "real.st", tmp_path / "link.st"
    format.save(small_artifact(), real)
    real.chmod(0o640)
    link.symlink_to(real)
    before, given = real.stat(), []
    monkeypatch.setattr(os, "chown", lambda path, *owners: given.append(owners))
    format.save(small_artifact(), link)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640 and given == [(before.st_uid, before.st_gid)]


def test_a_missing_folder_is_named(tmp_path):
    """Found before any work is done."""
    with pytest.raises(ArtifactError, match="does not exist; make it first"):
        format.save(small_artifact(), tmp_path / "none" / "a.st")


if __name__ == "__main__":
    format.save(small_artifact(), GOLDEN)
