"""Writing a file so that at every moment it is the old one or the whole new one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packnet_cli.errors import ArtifactError, ConflictError

Stamp = tuple[int, ...]


def stamp(path: Path) -> Stamp:
    """What tells one version of a file from the next; to be taken before reading it. Empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_writable(path: Path) -> None:
    """Raise ArtifactError now, rather than after hours of training, if `path` cannot be written."""
    folder = path.resolve().parent
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; name a file to write")
    if not folder.is_dir():
        raise ArtifactError(f"cannot write {path}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {path}: the folder {folder} is not writable")


@contextmanager
def replacing(path: Path, *, unchanged_since: Stamp | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place, flushed to disk, on success and vanishes on failure.

    Raises ArtifactError if it cannot be written, ConflictError if `path` is no longer what `unchanged_since` describes.
    """
    check_writable(path)
    target = path.resolve()  # a symbolic link stays one: the file that it points to is replaced
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, _mode(target))
        _flush(temporary)
        if unchanged_since is not None and stamp(target) != unchanged_since:
            raise ConflictError(f"{path} was changed by another program meanwhile; it was left as it is. Run again")
        os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"cannot write {path}: {reason}; what was there before is untouched") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those that a new file would get."""
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _flush(path: Path) -> None:
    """Have the disk itself hold what was written; of a folder, its list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
