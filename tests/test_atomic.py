"""One writer at a time, and room for what it writes."""

import fcntl
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from packnet_cli.artifact import atomic
from packnet_cli.errors import ArtifactError, ConflictError

HOLD = """
import sys
from pathlib import Path
from packnet_cli.artifact import atomic
with atomic.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(path):
    """A process that holds the lock of `path`."""
    command = [sys.executable, "-c", HOLD, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    """At once; and may write when the first is done, of whom nothing is left."""
    path = tmp_path / "a.st"
    with another_writer(path) as process:
        for _ in range(2):
            with pytest.raises(ConflictError) as raised, atomic.locked(path):
                pass
            assert re.search(rf"by process {process.pid} on \S+, since \d{{4}}-", str(raised.value))
    with atomic.locked(path):
        assert set(os.listdir(tmp_path)) == {".a.st.lock", ".a.st.holder"}
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_does_not_block(tmp_path):
    """And the half of a file that it left is swept up, but nothing else."""
    path = tmp_path / "a.st"
    others = {".b.st.abcd_123.tmp", ".a.st.v2.abcd_123.tmp", ".a.st.keep", "a.st"}
    path.write_text("x")
    for name in others - {path.name}:  # the folders of writers of b.st and a.st.v2 among them
        (tmp_path / name).mkdir()
    with another_writer(path) as process:
        left = Path(tempfile.mkdtemp(prefix=".a.st.", suffix=".tmp", dir=tmp_path))
        (left / "a.st").write_text("half")
        process.send_signal(signal.SIGKILL)
        process.wait()
        with atomic.locked(path):
            assert set(os.listdir(tmp_path)) == {*others, ".a.st.lock", ".a.st.holder"}
    assert set(os.listdir(tmp_path)) == others


def test_a_link_is_locked_where_it_points(tmp_path):
    """Two names of one file are one file."""
    (tmp_path / "link.st").symlink_to(tmp_path / "a.st")
    with atomic.locked(tmp_path / "link.st"), pytest.raises(ConflictError), atomic.locked(tmp_path / "a.st"):
        pass


@pytest.mark.parametrize("name", ["a[b].st", "a?.st", "*"])
def test_a_name_is_no_pattern(tmp_path, name):
    """What a killed writer left is found by it, and no other's."""
    for owner in (name, "ab.st"):
        (tmp_path / f".{owner}.abcd_123.tmp").mkdir()
    with atomic.locked(tmp_path / name):
        pass
    assert os.listdir(tmp_path) == [".ab.st.abcd_123.tmp"]


def test_what_is_flushed_is_open_for_writing(tmp_path, monkeypatch):
    """As Windows wants it; so also where the file that is replaced is to read only. Of a folder no system does."""
    path, flushed = tmp_path / "a.st", []

    def flush(handle):
        status, how = os.fstat(handle), fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
        flushed.append((stat.S_ISDIR(status.st_mode), how == os.O_RDWR, bool(status.st_mode & stat.S_IWUSR)))

    path.write_text("old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "fsync", flush)
    with atomic.replacing(path) as temporary:
        temporary.write_text("new")
    assert flushed == [(False, True, True), (True, False, True)]
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o444
    flushed.clear()
    with atomic.replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("new")
    assert flushed == [(False, True, True), (True, False, True), (True, False, True)]


@pytest.mark.parametrize(("mode", "folders"), [(0o600, 0o700), (0o640, 0o750), (0o444, 0o755), (0o664, 0o775)])
def test_a_checkpoint_is_as_private_as_its_file(tmp_path, mode, folders):
    """It holds the same weights."""
    path = tmp_path / "a.st"
    path.touch()
    path.chmod(mode)
    before = os.umask(0)
    try:
        atomic.make_checkpoint_folder(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(atomic.checkpoint(path).parent.stat().st_mode) == folders


def test_new_files_have_the_permissions_of_any(tmp_path, monkeypatch):
    """Without a moment at which what other threads make is open to all."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        with atomic.replacing(tmp_path / "a.st") as temporary:
            os.close(os.open(temporary.with_name("made"), os.O_CREAT, 0o600))  # as safetensors does
            temporary.with_name("made").replace(temporary)
        with atomic.replacing_folder(tmp_path / "a") as temporary:
            os.close(os.open(temporary / "b", os.O_CREAT, 0o600))
    finally:
        monkeypatch.undo()
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.rglob("*")}
    assert modes == {"a.st": 0o640, "a": 0o750, "b": 0o640}


@pytest.mark.parametrize("change", ["replaced", "written", "lengthened"])
def test_any_change_to_a_file_shows_in_its_stamp(tmp_path, change):
    """Another one in its place, as long and as old; other numbers in it; more of them, and the old time put back."""
    path = tmp_path / "a.st"
    path.write_text("old")
    before, status = atomic.stamp(path), path.stat()
    if change == "replaced":
        (tmp_path / "b.st").write_text("new")
        (tmp_path / "b.st").replace(path)
    else:
        path.write_text("new" if change == "written" else "newer")
    os.utime(path, ns=(0, status.st_mtime_ns + (change == "written")))
    assert atomic.stamp(path) != before


def test_a_checkpoint_leaves_no_folder_behind(tmp_path):
    """Nor what a killed writer of it left; but what is of others stays."""
    for others in ([], ["notes.txt"]):
        checkpoint = atomic.checkpoint(tmp_path / "a.st")
        (checkpoint.parent / ".checkpoint.safetensors.abcd_123.tmp").mkdir(parents=True)
        for name in (checkpoint.name, *others):
            (checkpoint.parent / name).write_text("")
        atomic.remove_checkpoint(checkpoint)
        assert (os.listdir(checkpoint.parent) if checkpoint.parent.exists() else []) == others


def test_a_name_that_leaves_no_room_for_temporary_ones(tmp_path):
    """Is refused before any work, not at the end of it."""
    atomic.check_writable(tmp_path / ("a" * 241))
    with pytest.raises(ArtifactError, match="its name is longer than 241 bytes"):
        atomic.check_writable(tmp_path / ("a" * 244))
    with atomic.replacing(tmp_path / ("a" * 241)) as temporary:
        temporary.write_text("new")


def test_the_lock_goes_when_the_verb_fails(tmp_path):
    """Whatever it raises."""
    with pytest.raises(ZeroDivisionError), atomic.locked(tmp_path / "a.st"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def take_turns(path, until):
    """Lock and let go over and over; how often another process was inside, too."""
    inside, met = path.with_name("inside"), 0
    while time.time() < until:
        with suppress(ConflictError), atomic.locked(path):
            try:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                inside.unlink()
            except FileExistsError:
                met += 1
    return met


def test_the_lock_is_held_by_one(tmp_path):
    """Also at the moment at which its file is removed: earlier versions of filelock let two in."""
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        until = time.time() + 2
        assert not any(pool.map(partial(take_turns, until=until), [tmp_path / "a.st"] * 4))


@pytest.mark.parametrize("command", ["init", "add-task", "remove-task", "rename"])
def test_commands_that_write_are_refused_while_another_does(full, packnet, command):
    """Before any work: not even what is wrong with the rest of the command line is looked at."""
    before = full.read_bytes()
    arguments = {
        "init": ["--arch", "test_resnet", "--no-pretrained", "--force"],
        "add-task": ["--data", "/"],
        "remove-task": ["--task", 1, "--yes"],
        "rename": ["--task", 1, "--name", "other"],
    }
    with another_writer(full) as process:
        result = packnet(command, full, *arguments[command])
        assert packnet("info", full).exit_code == packnet("verify", full).exit_code == 0  # readers need no lock
    assert result.exit_code == 8 and result.stderr.count("\n") == 1
    assert f"being written by process {process.pid}" in result.stderr
    assert full.read_bytes() == before


def test_a_full_disk_is_noticed_before_training(packed, packnet, monkeypatch):
    """Nothing is decoded, let alone trained."""
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: SimpleNamespace(free=packed.stat().st_size))
    result = packnet("add-task", packed, "--data", "/")
    assert result.exit_code == 3 and "MB free" in result.stderr and os.listdir(packed.parent) == ["packed.st"]
    with pytest.raises(ArtifactError, match="takes about"):
        atomic.check_room(packed, packed.stat().st_size + 1)
    atomic.check_room(packed, packed.stat().st_size)
