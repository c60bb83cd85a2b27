"""The policy `drop_oldest`: whole segments go, oldest first, and each drop gets its record in the log.

Invariants:
    * a drop is in the log before, or with, the first record that it made room for;
    * nothing is dropped that is not counted, and only where there is no other room.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal_segment import RECORD_HEADER_BYTES
from joulegram_receiver.spool_gap import GapNote, count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.wal import Entry, WriteAheadLog
    from joulegram_receiver.spool_gap import Gap
    from joulegram_receiver.spool_room import Room

log = logging.getLogger(__name__)


class Dropper:
    """Makes room in one log; used by the thread that writes it, but for `was_read`.

    Args:
        directory: of the log.
        log: whose oldest segments go.
        room: how much there may be.
        metrics: spool_dropped_records, once a drop's record is durable.
    """

    def __init__(self, directory: Path, log: WriteAheadLog, room: Room, metrics: Metrics) -> None:
        self._log = log
        self._room = room
        self._metrics = metrics
        self._note = GapNote(directory)
        self._read_lsn = 0
        self._pending: Gap | None = None

    def was_read(self, lsn: int) -> None:
        """A reader was given what lies below `lsn`."""
        self._read_lsn = max(self._read_lsn, lsn)

    def take_up(self) -> None:
        """At the start: finish a drop that a crash cut short; its record comes with the next ones.

        Raises:
            StorageError: the note of it cannot be read, or a file not be deleted.
        """
        gap = self._note.take_up(self._log)
        if gap is not None:
            self._note.write(gap, self._log.end_lsn)
            self._pending = gap

    def make_room(self, received_ns: int, entries: Sequence[Entry]) -> Entry | None:
        """Drop as many segments as it takes to append `entries`; the record to write before them, if there is one.

        Raises:
            StorageError: the disk refused; what is in the log stays, or is noted as dropped.
        """
        size = sum(RECORD_HEADER_BYTES + _length(entry[2]) for entry in entries)
        segments = self._log.segments
        drop = 0
        while drop < len(segments) - 1 and self._is_short(size, segments[drop].base):
            drop += 1
        if drop:
            gap = count(segments[:drop], segments[drop].base, self._read_lsn)
            self._pending = gap if self._pending is None else self._pending.then(gap)
            self._note.write(self._pending, self._log.end_lsn)
            self._log.release(gap.next_lsn)
        if self._pending is None:
            return None
        return RecordKind.CONTROL, received_ns, self._pending.to_bytes()

    def is_durable(self) -> None:
        """What `make_room` gave was appended and synced."""
        gap, self._pending = self._pending, None
        if gap is None:
            return
        self._note.clear()
        log.error("spool: it was full; dropped %s, lsn %d to %d", gap.records, gap.first_lsn, gap.next_lsn)
        for kind, records in gap.records.items():
            self._metrics.spool_dropped_records.labels(kind).inc(records)

    def _is_short(self, size: int, base: int) -> bool:
        """Whether `size` bytes more are too many where the log began at `base`."""
        gained = base - self._log.start_lsn
        if self._log.end_lsn - base + size > self._room.max_bytes:
            return True
        return self._room.free_bytes() + gained - size < self._room.min_free_bytes


def _length(payload: bytes | tuple[bytes, ...] | list[bytes]) -> int:
    return len(payload) if isinstance(payload, bytes) else sum(map(len, payload))
