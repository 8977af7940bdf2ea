"""Atomic writes: a file is at any moment the old or the complete new one, and only one program writes it at a time."""

import datetime
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from packnet_cli.errors import ArtifactError, ConflictError

Stamp = tuple[int, ...]
RANDOM = "[a-z0-9_]" * 8  # what tempfile adds to a name; `*` would also match the leftovers of `<name>.v2`
LONGEST = 255 - len("..xxxxxxxx.tmp")  # bytes of a name, to which a temporary folder's adds these


def stamp(path: Path) -> Stamp:
    """Identifies a version of a file; take it before reading. Empty if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_new(path: Path, force: bool) -> None:
    """Raise ArtifactError if there is a file that `init` would replace without being told to."""
    if path.exists() and not force:
        raise ArtifactError(f"{path} exists already; name another file, or replace it with --force")


def check_writable(path: Path) -> None:
    """Raise ArtifactError now, rather than after hours of training, if `path` cannot be written."""
    target = _target(path)
    folder = target.parent
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; name a file to write")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is a device or the like; name a file to write")
    if not folder.is_dir():
        raise ArtifactError(f"cannot write {path}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {path}: the folder {folder} is not writable")
    if len(os.fsencode(target.name)) > LONGEST:
        raise ArtifactError(f"cannot write {path}: its name is longer than {LONGEST} bytes; give it a shorter one")


def check_room(path: Path, size: int) -> None:
    """Raise ArtifactError if the disk has no room for a new file of `size` bytes beside `path`."""
    free = shutil.disk_usage(_target(path).parent).free
    if free < size:
        raise ArtifactError(
            f"cannot write {path}: that takes about {size / 1e6:,.1f} MB, but its disk has {free / 1e6:,.1f} MB free; "
            "the old file stays until the new one is complete"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for writing `path`. Raises ArtifactError, or at once ConflictError, which names the holder.

    The lock ends with the process, however that ends. A killed process leaves its two files behind, which do not block.
    """
    from filelock import FileLock, Timeout  # here, as readers do not need it

    check_writable(path)
    target = _target(path)
    marker = target.with_name(f".{target.name}.lock")
    holder = target.with_name(f".{target.name}.holder")  # not the lock file, of which Windows lets nobody read
    lock = FileLock(str(marker), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConflictError(
            f"{path} is being written by {_read(holder)}; wait for it to end, or work on a copy"
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot lock {path}: {error.strerror or error} ({marker})") from None
    try:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        with suppress(OSError):  # on a full disk: the lock still holds
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}")
        _remove_leftovers(target)
        yield
    finally:
        for file in (holder, marker):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    try:
        return holder.read_text()[:200]
    except (OSError, ValueError):
        return "another program"


@contextmanager
def replacing(path: Path, *, unchanged_since: Stamp | None = None) -> Iterator[Path]:
    """A temporary path that, flushed to disk, replaces `path` on success and is removed on failure.

    Raises ArtifactError if it cannot be written, ConflictError if `path` has changed since the stamp `unchanged_since`.
    """
    check_writable(path)
    target = _target(path)
    with _beside(path) as temporary:
        temporary.touch()  # has the permissions of any new file; safetensors makes its own with others
        like = (target if target.exists() else temporary).stat()
        yield temporary
        _flush(temporary)  # before its permissions, which may be read-only
        temporary.chmod(like.st_mode & 0o777)
        with suppress(OSError, AttributeError):  # another's file stays theirs, where the system lets it be given away
            os.chown(temporary, like.st_uid, like.st_gid)
        if unchanged_since is not None and stamp(target) != unchanged_since:
            raise ConflictError(f"{path} was changed by another program meanwhile, and left as it is")
        os.replace(temporary, target)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that, flushed to disk, replaces it on success and is removed on failure.

    Raises ArtifactError if `path` exists and is not an empty folder, or cannot be written.
    """
    target = _target(path)
    if not target.is_dir():
        check_writable(path)
    with _beside(path) as temporary:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ArtifactError(f"{path} exists and is not an empty folder; name another one, or remove it first")
        temporary.mkdir()
        mode = temporary.stat().st_mode & 0o666  # of new files, as of this new folder
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
            file.chmod(mode)
        with suppress(OSError):  # some folders cannot be flushed
            _flush(temporary)
        if target.is_dir():
            target.rmdir()  # Windows replaces no folder
        os.replace(temporary, target)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `path`, to be moved there from within.

    In a folder of its own, since safetensors makes temporary files too, which a kill would leave.
    """
    target = _target(path)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder, target.name)
            with suppress(OSError):  # some folders cannot be flushed, but what is new is in place
                _flush(target.parent)
    except (OSError, SafetensorError) as error:  # safetensors raises its own on a full disk
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"cannot write {path}: {reason}; what was there before is untouched") from None


def checkpoint(path: Path) -> Path:
    """The checkpoint to resume an interrupted run from, in a folder beside `path`, links resolved."""
    target = _target(path)
    return target.with_name(target.name + ".resume") / "checkpoint.safetensors"


def make_checkpoint_folder(path: Path) -> None:
    """Make that folder, if it is not there: closed to whom `path` is, since both hold the weights."""
    target = _target(path)
    others = (target.stat().st_mode if target.exists() else 0o777) & 0o066
    checkpoint(path).parent.mkdir(0o700 | others | (others & 0o044) >> 2, exist_ok=True)


def remove_checkpoint(file: Path) -> None:
    """Remove a checkpoint, and its folder if nobody has put anything else there."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        _remove_leftovers(file)
        file.parent.rmdir()


def _remove_leftovers(target: Path) -> None:
    """Remove what killed writers of `target` left behind. Call it only when no other writer is at work."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.{RANDOM}.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _target(path: Path) -> Path:
    """The path with symbolic links resolved: a link stays, its target is replaced. Raises ArtifactError."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # raises for a name that is too long and, as `resolve` does not from Python 3.13 on, for a loop
        return path.resolve()
    except OSError as error:
        raise ArtifactError(f"cannot use the path {path}: {error.strerror or error}") from None


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    # Windows flushes only what is open for writing, which a folder cannot be.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
