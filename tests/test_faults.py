"""Whatever happens while a file is written, it is the old one or the new one, and whole."""

import errno
import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError
from test_format import GOLDEN

from packnet_cli.artifact import edit, format, verify
from packnet_cli.errors import ArtifactError

STEPS = [
    (tempfile, "mkdtemp"),
    (format, "save_file"),
    (Path, "chmod"),  # with os.chmod Python 3.10 does not look it up anew
    (os, "fsync"),
    (os, "replace"),
    (shutil, "rmtree"),
]

# Rename task 1 and be killed before or after the n-th step of the writing; or, without a number, over and over.
RENAME = """
import os, signal, sys
from pathlib import Path
from packnet_cli.artifact import edit, format
from test_faults import STEPS, count_steps
path, number = Path(sys.argv[1]), int(sys.argv[2])
if number:
    def kill(done):
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)
    count_steps(setattr, before=kill, after=kill)
    edit.rename(path, 1, "uno")
while not number:
    for name in ("uno", "one"):
        edit.rename(path, 1, name)
    print("twice", flush=True)
"""


def count_steps(set_attribute, before=lambda done: None, after=lambda done: None, steps=STEPS):
    """Have `before` and `after` called around each step of the writing, with the number of the call."""
    done = 0

    def counting(step):
        def counted(*arguments, **settings):
            nonlocal done
            done += 1
            before(done)
            result = step(*arguments, **settings)
            done += 1
            after(done)
            return result

        return counted

    for module, name in steps:
        set_attribute(module, name, counting(getattr(module, name)))


@pytest.fixture
def path(tmp_path):
    """A file of its own with two tasks."""
    (tmp_path / "a.st").write_bytes(GOLDEN.read_bytes())
    return tmp_path / "a.st"


@pytest.fixture
def renamed(path):
    """The bytes of that file with task 1 renamed."""
    other = path.with_name("other.st")
    other.write_bytes(path.read_bytes())
    edit.rename(other, 1, "uno")
    content = other.read_bytes()
    other.unlink()
    return content


def child(path, number):
    """The process that runs RENAME."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", RENAME, str(path), str(number)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE)


def test_killed_at_every_step_of_the_writing(path, renamed):
    """Before and after each: the old file up to the replacing, the new one from then on; the next writer tidies up."""
    old, seen = path.read_bytes(), []
    for number in range(1, 100):
        path.write_bytes(old)
        with child(path, number) as process:
            process.communicate(timeout=60)
        assert verify.verify(path) == []
        seen.append(path.read_bytes())
        edit.rename(path, 2, "next")
        assert os.listdir(path.parent) == ["a.st"]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert number > 2 * len(STEPS) and seen == sorted(seen, key=[old, renamed].index)
    assert seen[0] == old and seen[-2] == seen[-1] == renamed


def test_killed_at_random_moments(path, renamed):
    """While it writes without a pause."""
    old, rng = path.read_bytes(), random.Random(0)
    for _ in range(5):
        with child(path, 0) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        assert verify.verify(path) == [] and path.read_bytes() in (old, renamed)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_at_each_step_of_the_writing(path, renamed, code):
    """A full disk, a quota, a broken disk: one clear error, the old file, and nothing beside it."""
    old = path.read_bytes()
    for number in range(1, 100, 2):
        path.write_bytes(old)

        def fail(done, number=number):
            if done == number:
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            count_steps(patch.setattr, before=fail)
            try:
                edit.rename(path, 1, "uno")
            except ArtifactError as error:
                assert os.strerror(code) in str(error) and path.read_bytes() == old
            else:
                assert path.read_bytes() == renamed
                if os.listdir(path.parent) == ["a.st"]:
                    break
        for left in path.parent.glob(".a.st*"):
            assert number > 9, left  # only where removing itself failed
            left.unlink()
    assert number > len(STEPS)


def test_a_write_that_stops_half_way(path):
    """Here by the limit of a file's size, from the system itself."""
    old = path.read_bytes()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, before[1]))
    try:
        with pytest.raises(ArtifactError, match="too large"):
            edit.rename(path, 1, "uno")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old and os.listdir(path.parent) == ["a.st"]


def test_safetensors_own_error_is_understood(path, monkeypatch):
    """It does not raise OSError."""

    def full(*arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(format, "save_file", full)
    with pytest.raises(ArtifactError, match="No space left.*what was there before is untouched"):
        edit.rename(path, 1, "uno")


@pytest.mark.parametrize("form", ["x.pt", "x.safetensors", "folder/"])
def test_a_full_disk_when_a_task_is_extracted(full, packnet, form):
    """One clear error, and nothing of it is left; here the system itself lets no file grow so large."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # a folder's configuration fits, the weights do not
    try:
        result = packnet("extract", full, "--task", 1, "-o", f"{full.parent}/{form}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert result.exit_code == 3 and result.stderr.count("\n") == 1 and "too large" in result.stderr
    assert f"cannot write {full.parent / form}:" in result.stderr
    assert os.listdir(full.parent) == [full.name]
    del result
    gc.collect()  # from Python 3.13 on, a buffer that is still in use then adds its own complaint


# --- paths ----------------------------------------------------------------------------------------------------------


def test_a_read_only_folder_is_named_at_once(path, packnet, monkeypatch):
    """Before any work; root would be let in, hence the patch."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    result = packnet("rename", path, "--task", 1, "--name", "uno")
    assert result.exit_code == 3 and "is not writable" in result.stderr
    assert os.listdir(path.parent) == ["a.st"]


def test_what_a_link_points_to_is_replaced(path, tmp_path):
    """Also into another folder, and through a second link."""
    (tmp_path / "folder").mkdir()
    real = path.rename(tmp_path / "folder" / "real.st")
    (tmp_path / "one.st").symlink_to(real)
    path.symlink_to("one.st")
    edit.rename(path, 1, "uno")
    assert path.is_symlink() and (tmp_path / "one.st").is_symlink() and format.load(real).header.tasks[0].name == "uno"
    assert os.listdir(tmp_path / "folder") == ["real.st"]


@pytest.mark.parametrize("command", [["info"], ["verify"], ["rename", "--task", "1", "--name", "uno"]])
def test_paths_that_are_no_files(tmp_path, packnet, command):
    """Links in a circle, pipes, names that are too long: one clear line."""
    (tmp_path / "circle.st").symlink_to("circle.st")
    os.mkfifo(tmp_path / "pipe.st")
    for name in ("circle.st", "pipe.st", "x" * 300, "a.st/b.st"):
        result = packnet(command[0], tmp_path / name, *command[1:])
        assert result.exit_code == 3 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, name
