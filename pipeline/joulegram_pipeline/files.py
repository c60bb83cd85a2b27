"""Files that are whole or absent: atomic replacement, directory syncs and the lock on a data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from joulegram_pipeline.errors import BusyError, StorageError

if TYPE_CHECKING:
    from types import TracebackType


def safe_mkdir(path: Path) -> Path:
    """Make a directory and its parents; one that exists is as good (S0-19).

    Raises:
        StorageError: quoting the path and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make directory {str(path)!r}: {error.strerror or error}") from error
    return path


def sync_directory(path: Path) -> None:
    """Make the entries of a directory (names, not contents) durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a whole document: temp file, fsync, rename, fsync of the directory (D-40, C-56).

    An existing file keeps its own mode. A reader sees the old document or the new one, never a part.

    Args:
        path: of the document.
        data: all of it.
        mode: of a new file.
        durable: False leaves out what makes it outlive the machine's crash: for what is of no use after one, and whose
            writer cannot wait for a disk.

    Raises:
        StorageError: quoting the path and the reason; the old document is then untouched.
    """
    temp_name = None
    try:
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode & 0o777
        # As tempfile.mkstemp, which would bring shutil and three compressors into the agent's memory.
        wanted = str(path.parent / f".{path.name}.{os.urandom(6).hex()}.tmp")
        fd = os.open(wanted, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        temp_name = wanted
        with os.fdopen(fd, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            if durable:
                os.fsync(handle.fileno())
        Path(temp_name).replace(path)
        temp_name = None
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        if temp_name is not None:
            with contextlib.suppress(OSError):
                Path(temp_name).unlink()


class DirectoryLock:
    """Holds a data directory for one process, by flock on ``<directory>/lock``; the kernel lets go at death.

    Raises (on enter):
        BusyError: another process holds it; its pid is quoted.
        StorageError: the directory cannot be made or written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None

    def __enter__(self) -> Self:
        safe_mkdir(self._directory)
        path = self._directory / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"data directory {str(self._directory)!r} is not writable: {error.strerror or error}"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise BusyError(
                f"data directory {str(self._directory)!r} is in use by another joulegram (pid {holder}); "
                "stop it or give this one another --data-dir"
            ) from error
        except OSError as error:
            os.close(fd)
            raise StorageError(
                f"data directory {str(self._directory)!r} cannot be locked: {error.strerror or error}"
            ) from error
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
