"""The outbox: requests ready for the upstream, each with its position, so that a replay adds none twice.

Invariants:
    * positions grow along the log; an item at or below `last_pos` is already here and is skipped;
    * ``position`` never names more than is on disk, and is synced before a segment it passed is deleted.
"""

from __future__ import annotations

import asyncio
import os
import struct
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Self

import google_crc32c

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import sync_directory
from joulegram_pipeline.wal import SEGMENT_BYTES, WriteAheadLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import Metadata, Outgoing, RecordKind
    from joulegram_pipeline.wal import Entry

Pos = tuple[int, int]
"""(lsn, ordinal): the spool record an output came of, and its place among the outputs of that record."""

NOTHING: Pos = (-1, -1)
"""Below every position."""

_POS = struct.Struct("<QQ")
_POSITION = struct.Struct("<Qqq")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class OutboxItem:
    """One request for the upstream.

    Args:
        pos: its position.
        kind: its signal.
        next_lsn: what to hand to `Outbox.advance` once it and all before it are taken.
        request: the protobuf bytes.
        metadata: headers that travel with it.
    """

    pos: Pos
    kind: RecordKind
    next_lsn: int
    request: memoryview
    metadata: Metadata


class Outbox:
    """A durable queue of requests; an async context manager. One thread appends, another reads and advances.

    Args:
        directory: of the log and of ``position``.
        metrics: forward_backlog_bytes.
        segment_bytes: of the log.

    Raises (on enter):
        StorageError: the log cannot be opened.
    """

    def __init__(self, directory: Path, metrics: Metrics, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._metrics = metrics
        self._log = WriteAheadLog(directory, segment_bytes=segment_bytes)
        self._position_fd = -1
        self._position = 0
        self._last_pos = NOTHING
        self._durable_pos = NOTHING
        self._lock = Lock()
        self._on_sync: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    @property
    def last_pos(self) -> Pos:
        """The highest position appended so far, `NOTHING` in a new outbox."""
        return self._last_pos

    @property
    def position(self) -> int:
        """The lsn up to which the upstream took everything."""
        return self._position

    @property
    def durable_lsn(self) -> int:
        """The lsn up to which items may be read."""
        return self._log.durable_lsn

    def append(self, items: Iterable[Outgoing]) -> int:
        """Append the items that are not here yet; durable after `sync`.

        Args:
            items: in order of position.

        Returns:
            How many were new.

        Raises:
            StorageError: the disk refused; none was appended.
        """
        batch: list[Entry] = []
        last = self._last_pos
        for pos, kind, request, metadata in items:
            if pos <= last:
                continue
            chunks = (request,) if isinstance(request, bytes) else request
            # The time of receipt is in the spool; nothing here may depend on the clock of a replay.
            batch.append((kind, 0, (_POS.pack(*pos), *chunks), metadata))
            last = pos
        self._log.append(batch)
        self._last_pos = last
        return len(batch)

    def sync(self) -> None:
        """Make what was appended durable and wake the upstream.

        Raises:
            StorageError: as `WriteAheadLog.sync`.
        """
        self._log.sync()
        self._durable_pos = self._last_pos
        self._measure()
        with self._lock:
            if self._on_sync is not None:
                self._on_sync()

    def wake_with(self, on_sync: Callable[[], None] | None) -> None:
        """Have this called, in the appending thread, behind every sync; None to stop it."""
        with self._lock:
            self._on_sync = on_sync

    def read(self, max_bytes: int) -> list[OutboxItem]:
        """Durable items the upstream has not taken, from the first, about `max_bytes` of them.

        Raises:
            StorageError: as `WriteAheadLog.read`.
        """
        return [
            OutboxItem(
                pos=_POS.unpack_from(record.payload),
                kind=record.kind,
                next_lsn=record.next_lsn,
                request=memoryview(record.payload)[_POS.size :],
                metadata=record.metadata,
            )
            for record in self._log.read(self._position, max_bytes)
        ]

    def advance(self, lsn: int) -> None:
        """The upstream took everything below `lsn`.

        A crash of the process keeps this; one of the machine may not, and some are then sent again.

        Raises:
            StorageError: it could not be written down.
        """
        self._position = lsn
        self._measure()
        try:
            self._write_position()
            if self._log.would_release(lsn):
                os.fdatasync(self._position_fd)
                self._log.release(lsn)
        except OSError as error:
            raise StorageError(f"cannot write {str(self._directory / 'position')!r}: {error}") from error

    def _open(self) -> None:
        self._log.open()
        path = self._directory / "position"
        try:
            self._position_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            sync_directory(self._directory)
            stored = os.pread(self._position_fd, _POSITION.size + _CRC.size, 0)
        except OSError as error:
            raise StorageError(f"cannot open {str(path)!r}: {error}") from error
        position, last_pos = _parse_position(stored)
        # What a crash of the machine left in the file is worth less than what the log has.
        self._position = min(max(position, self._log.start_lsn), self._log.end_lsn)
        if self._log.last_lsn is not None:
            payload = self._log.read_at(self._log.last_lsn).payload
            last_pos = max(last_pos, _POS.unpack_from(payload))
        self._last_pos = self._durable_pos = last_pos
        self.advance(self._position)

    def _close(self) -> None:
        try:
            self._log.close()
        finally:
            if self._position_fd >= 0:
                os.close(self._position_fd)
                self._position_fd = -1

    def _write_position(self) -> None:
        body = _POSITION.pack(self._position, *self._durable_pos)
        os.pwrite(self._position_fd, body + _CRC.pack(google_crc32c.value(body)), 0)

    def _measure(self) -> None:
        self._metrics.forward_backlog_bytes.set(self._log.end_lsn - self._position)


def _parse_position(stored: bytes) -> tuple[int, Pos]:
    body, crc = stored[: _POSITION.size], stored[_POSITION.size :]
    if len(stored) != _POSITION.size + _CRC.size or crc != _CRC.pack(google_crc32c.value(body)):
        return 0, NOTHING
    position, lsn, ordinal = _POSITION.unpack(body)
    return position, (lsn, ordinal)
