"""The part of the outbox that is on disk: items in a write-ahead log, and where in it a position is found.

Invariants:
    * positions grow along the log, with gaps where everybody had taken an item before it was written;
    * only what is synced is read, and `last_pos` never names more than that.
"""

from __future__ import annotations

import logging
import struct
from bisect import bisect_right
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from joulegram_pipeline.wal import SEGMENT_BYTES, WriteAheadLog
from joulegram_sink.outbox_items import NOTHING, OutboxItem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from joulegram_sink.outbox_items import Pos

log = logging.getLogger(__name__)

_POS = struct.Struct("<QQ")
_WRITE_BYTES = 8 * 1024 * 1024


class _Mark(NamedTuple):
    """From `lsn` on the log holds what is above `after`.

    `begin_bytes` is the stream's measure there, `at_ns` when the first of it was appended, 0 if that is not known.
    """

    after: Pos
    lsn: int
    begin_bytes: int
    at_ns: int


class OutboxDisk:
    """The log of an outbox. One thread writes and syncs; any may read and release.

    Args:
        directory: of the log.
        segment_bytes: of the log.
    """

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._log = WriteAheadLog(directory, segment_bytes=segment_bytes)
        self._lock = Lock()
        self._marks: list[_Mark] = []
        self._damaged = 0
        self.written_pos = NOTHING
        """The highest position written, synced or not."""
        self.last_pos = NOTHING
        """The highest position that is durable."""

    @property
    def end_lsn(self) -> int:
        """Behind the last item."""
        return self._log.end_lsn

    @property
    def start_lsn(self) -> int:
        """Of the first item that is still here, or before it."""
        return self._log.start_lsn

    def open(self) -> None:
        """Find the end of the log.

        Raises:
            StorageError: as `WriteAheadLog.open`.
        """
        self._log.open()
        at_ns = 0
        if self._log.last_lsn is not None:
            self.written_pos = self.last_pos = _POS.unpack_from(self._log.read_at(self._log.last_lsn).payload)
            first = self._log.read(self._log.start_lsn, 0)
            at_ns = first[0].received_ns if first else 0
        self._marks = [_Mark(NOTHING, self._log.start_lsn, self._log.start_lsn, at_ns)]

    def close(self) -> None:
        self._log.close()

    def write(self, items: Sequence[OutboxItem]) -> None:
        """Write what is above `written_pos`; durable after `sync`.

        Raises:
            StorageError: the disk refused; what was written before stays, and is not written again.
        """
        for batch in _batches([item for item in items if item.pos > self.written_pos]):
            entries = [
                (item.kind, item.at_ns, (_POS.pack(*item.pos), *_as_bytes(item)), item.metadata) for item in batch
            ]
            lsn = self._log.append(entries)[0]
            with self._lock:
                self._marks.append(_Mark(self.written_pos, lsn, batch[0].end_bytes - batch[0].size, batch[0].at_ns))
            self.written_pos = batch[-1].pos

    def sync(self) -> None:
        """Make what was written durable.

        Raises:
            StorageError: as `WriteAheadLog.sync`.
        """
        if self.written_pos > self.last_pos:
            self._log.sync()
            self.last_pos = self.written_pos

    def find(self, pos: Pos) -> int:
        """An lsn at or below that of the first item above `pos`."""
        if pos >= self.written_pos:
            return self._log.end_lsn
        return self._mark(pos).lsn

    def at_ns(self, pos: Pos) -> int:
        """A time at or before that when the first item above `pos` was appended; 0 if that is not known."""
        return self._mark(pos).at_ns

    def read(self, lsn: int, after: Pos, max_bytes: int) -> list[OutboxItem]:
        """The items from `lsn` on that are above `after`, about `max_bytes` of them; none at the end.

        Raises:
            StorageError: as `WriteAheadLog.read`.
        """
        while records := self._log.read(lsn, max_bytes):
            items = []
            begin_lsn = records[0].lsn
            begin, most = self._measure(begin_lsn), self._measure(records[-1].next_lsn)
            for record in records:
                pos = _POS.unpack_from(record.payload)
                if pos > after:
                    request, next_lsn = memoryview(record.payload)[_POS.size :], record.next_lsn
                    end_bytes = min(begin + next_lsn - begin_lsn, most)
                    at_ns, size = record.received_ns, len(request)
                    items.append(
                        OutboxItem(pos, record.kind, request, record.metadata, size, end_bytes, at_ns, next_lsn)
                    )
            self._tell_of_damage()
            if items:
                return items
            lsn = records[-1].next_lsn
        self._tell_of_damage()
        return []

    def release(self, below_lsn: int) -> None:
        """Let go of what lies below, by whole segments.

        Raises:
            StorageError: a file could not be deleted.
        """
        if not self._log.would_release(below_lsn):
            return
        self._log.release(below_lsn)
        with self._lock:
            keep = bisect_right(self._marks, self._log.start_lsn, key=lambda mark: mark.lsn) - 1
            del self._marks[: max(0, keep)]

    def _mark(self, pos: Pos) -> _Mark:
        with self._lock:
            return self._marks[max(0, bisect_right(self._marks, pos, key=lambda mark: mark.after) - 1)]

    def _measure(self, lsn: int) -> int:
        with self._lock:
            index = max(0, bisect_right(self._marks, lsn - 1, key=lambda mark: mark.lsn) - 1)
            mark = self._marks[index]
            measure = mark.begin_bytes + lsn - mark.lsn
            if index + 1 < len(self._marks):
                return min(measure, self._marks[index + 1].begin_bytes)
            return measure

    def _tell_of_damage(self) -> None:
        damaged = self._log.damaged_records
        if damaged > self._damaged:
            log.error("%d damaged requests are left out of the outbox and kept in quarantine/", damaged - self._damaged)
            self._damaged = damaged


def _as_bytes(item: OutboxItem) -> Sequence[bytes]:
    return [piece if isinstance(piece, bytes) else bytes(piece) for piece in item.pieces]


def _batches(items: Sequence[OutboxItem]) -> Iterator[Sequence[OutboxItem]]:
    """Runs of items of about `_WRITE_BYTES`."""
    begin = size = 0
    for index, item in enumerate(items):
        size += item.size
        if size >= _WRITE_BYTES:
            yield items[begin : index + 1]
            begin, size = index + 1, 0
    if begin < len(items):
        yield items[begin:]
