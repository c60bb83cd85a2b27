"""Where each destination stands: one small file for each, written at every step and synced when the outbox is.

Invariants:
    * a position is written in place, so that it outlives the process; only `sync` makes it outlive the machine;
    * one that is damaged says nothing, and its destination then gets again all that is still here.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import google_crc32c

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import safe_mkdir, sync_directory
from joulegram_sink.outbox_items import NOTHING

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_sink.outbox_items import Pos

_POSITION = struct.Struct("<qq")
_CRC = struct.Struct("<I")


class PositionFile:
    """The position of one destination.

    Args:
        path: of the file; its directory exists.
        start: the position if there is no file yet.

    Raises:
        StorageError: it cannot be read or made.
    """

    def __init__(self, path: Path, start: Pos) -> None:
        self._path = path
        self._trouble: OSError | None = None
        self._unsynced = False
        try:
            is_new = not path.exists()
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.pos = start if is_new else _parse(os.pread(self._fd, _POSITION.size + _CRC.size, 0))
        except OSError as error:
            raise StorageError(f"cannot open {str(path)!r}: {error}") from error
        if is_new:
            # Forgotten in a crash, the destination would begin anew, behind what is meant for it.
            self.write(start)
            self.sync()

    def write(self, pos: Pos) -> None:
        """Move on; an error is told by the next `sync`, because until then the worst it costs is a repetition."""
        self.pos = pos
        body = _POSITION.pack(*pos)
        self._unsynced = True
        try:
            os.pwrite(self._fd, body + _CRC.pack(google_crc32c.value(body)), 0)
            self._trouble = None
        except OSError as error:
            self._trouble = error

    def sync(self) -> None:
        """Make the position durable.

        Raises:
            StorageError: it could not be written, or not synced.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            if self._trouble is not None:
                raise self._trouble
            os.fdatasync(self._fd)
        except OSError as error:
            self._unsynced = True
            self.write(self.pos)
            raise StorageError(f"cannot write {str(self._path)!r}: {error}") from error

    def close(self) -> None:
        os.close(self._fd)


def stored_position(path: Path) -> Pos:
    """What stands in a destination's file. Changes nothing.

    Raises:
        OSError: it cannot be read.
    """
    return _parse(path.read_bytes())


def open_positions(directory: Path, names: set[str], log_end: Pos) -> tuple[dict[str, PositionFile], dict[str, Pos]]:
    """Open the positions of the destinations, and forget those of others.

    A new destination begins at the present end: what was made before it came is not for it. Only where no destination
    ever was do all begin at the beginning.

    Args:
        directory: made if absent.
        names: of the destinations there are now.
        log_end: the highest position on disk.

    Returns:
        The positions by name, and those that were forgotten.

    Raises:
        StorageError: the directory cannot be used.
    """
    safe_mkdir(directory)
    opened: dict[str, PositionFile] = {}
    gone: dict[str, Pos] = {}
    try:
        known = {path.name: stored_position(path) for path in directory.iterdir() if path.is_file()}
        start = max([log_end, *known.values()]) if known else NOTHING
        for name in sorted(names):
            opened[name] = PositionFile(directory / name, start)
        sync_directory(directory)
        for name in sorted(known.keys() - names):
            (directory / name).unlink()
            gone[name] = known[name]
    except BaseException as error:
        for position in opened.values():
            position.close()
        if isinstance(error, OSError):
            raise StorageError(f"cannot use {str(directory)!r}: {error}") from error
        raise
    return opened, gone


def _parse(stored: bytes) -> Pos:
    body, crc = stored[: _POSITION.size], stored[_POSITION.size :]
    if len(stored) != _POSITION.size + _CRC.size or crc != _CRC.pack(google_crc32c.value(body)):
        return NOTHING
    lsn, ordinal = _POSITION.unpack(body)
    return int(lsn), int(ordinal)
