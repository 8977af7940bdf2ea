"""Writing a file so that at every moment it is the old one or the whole new one, and by one program at a time."""

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
RANDOM = "[a-z0-9_]" * 8  # what tempfile puts into a name; more would match what belongs to a file `<name>.v2`


def stamp(path: Path) -> Stamp:
    """What tells one version of a file from the next; to be taken before reading it. Empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_writable(path: Path) -> None:
    """Raise ArtifactError now, rather than after hours of training, if `path` cannot be written."""
    folder = _target(path).parent
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; name a file to write")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is a device or the like; name a file to write")
    if not folder.is_dir():
        raise ArtifactError(f"cannot write {path}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {path}: the folder {folder} is not writable")


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
    """Hold the right to write `path`; raises ConflictError at once, which says who holds it, or ArtifactError.

    The right ends with the process, however that ends. Its two files are removed with it unless the process is killed;
    if they are left they do not block.
    """
    from filelock import FileLock, Timeout  # readers need not wait for it

    check_writable(path)
    target = _target(path)
    marker = target.with_name(f".{target.name}.lock")
    holder = target.with_name(f".{target.name}.holder")  # not in the lock file, which old versions of filelock empty
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
        with suppress(OSError):  # a full disk: the lock holds all the same
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
    """A temporary path near `path`, which takes its place, flushed to disk, on success and vanishes on failure.

    It stands in a folder of its own beside `path`, as safetensors has temporary files too, and a kill would leave them.
    Raises ArtifactError if it cannot be written, ConflictError if `path` is no longer what `unchanged_since` describes.
    """
    check_writable(path)
    target = _target(path)
    folder = None
    try:
        folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        temporary = Path(folder, target.name)
        yield temporary
        _flush(temporary)  # before its permissions, which may be to read only
        os.chmod(temporary, _mode(target))
        if unchanged_since is not None and stamp(target) != unchanged_since:
            raise ConflictError(f"{path} was changed by another program meanwhile; it was left as it is. Run again")
        os.replace(temporary, target)
        with suppress(OSError):  # the new file is in place, even if its folder is of a kind that cannot be flushed
            _flush(target.parent)
    except (OSError, SafetensorError) as error:  # as which safetensors reports a full disk
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"cannot write {path}: {reason}; what was there before is untouched") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place, flushed to disk, on success and vanishes on failure.

    Raises ArtifactError if `path` exists and is not an empty folder, or cannot be written.
    """
    target, temporary = _target(path), None
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ArtifactError(f"{path} exists and is not an empty folder; name another one, or remove it first")
        if not target.is_dir():
            check_writable(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
            file.chmod(0o666 & ~_umask())
        with suppress(OSError):  # as of a folder in `replacing`
            _flush(temporary)
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, target)
        with suppress(OSError):
            _flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def checkpoint(path: Path) -> Path:
    """The file of what an interrupted run needs to go on, in a folder beside `path`, whichever link names that."""
    target = _target(path)
    return target.with_name(target.name + ".resume") / "checkpoint.safetensors"


def remove_checkpoint(file: Path) -> None:
    """Remove a checkpoint, and its folder if nobody has put anything else there."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        _remove_leftovers(file)
        file.parent.rmdir()


def _remove_leftovers(target: Path) -> None:
    """What writers of `target` that were killed have left; to be called when no other is at work."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.{RANDOM}.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _target(path: Path) -> Path:
    """The file that a path means: a symbolic link stays one, what it points to is replaced. Raises ArtifactError."""
    try:
        path.exists()  # raises for a name that is too long
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ArtifactError(f"cannot use the path {path}: {getattr(error, 'strerror', None) or error}") from None


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file would get."""
    if target.exists():
        return target.stat().st_mode & 0o777
    return 0o666 & ~_umask()


def _umask() -> int:
    """The permissions that a new file or folder does not get; they can only be read by setting them."""
    found = os.umask(0)
    os.umask(found)
    return found


def _flush(path: Path) -> None:
    """Have the disk itself hold what was written; of a folder, its list of names."""
    # Windows flushes only what is open for writing, which no folder can be.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
