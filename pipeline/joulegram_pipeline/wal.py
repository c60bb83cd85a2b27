"""A segmented write-ahead log: appended with one write, durable after one sync, read back by position.

Invariants:
    * an lsn counts the bytes of records, not those of segment headers, so the lsn behind a record is that of
      the next, in whichever segment it stands; it grows and is never reused, not even for bytes that were torn;
    * only the last segment is written; an older one is synced and cut to its length before the next is made;
    * nothing above `durable_lsn` is read, and `durable_lsn` moves only after a sync that worked;
    * a sync that failed is never tried again: the kernel may have dropped the pages, so the log takes nothing
      more;
    * what is damaged is left out, counted and kept in ``quarantine/``; all whole records around it are read;
    * one thread appends and syncs; any thread may read and release.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import safe_mkdir
from joulegram_pipeline.wal_heal import Quarantine, heal, last_whole
from joulegram_pipeline.wal_scan import damaged_at, identify
from joulegram_pipeline.wal_segment import (
    RECORD_HEADER_BYTES,
    V1_MARK,
    Segment,
    encode_metadata,
    list_segments,
    opened,
    read_whole,
    record_header,
)
from joulegram_pipeline.wal_writer import SegmentWriter, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from joulegram_pipeline.records import LogRecord, Metadata, RecordKind

SEGMENT_BYTES = 64 * 1024 * 1024

Payload = bytes | tuple[bytes, ...] | list[bytes]
"""The bytes of a record, whole or in pieces that are written one behind the other."""

Entry = tuple["RecordKind", int, Payload] | tuple["RecordKind", int, Payload, "Metadata"]
"""Kind, received_ns, payload and, where there is any, metadata of a record to append."""


class WriteAheadLog:
    """The log of one directory.

    Args:
        directory: made if absent.
        segment_bytes: a batch that would take a segment past this begins the next one.
        sync: makes a file's contents durable; `os.fdatasync` but in tests and where nothing is promised.
        write: writes buffers at an offset; `os.pwritev` but in tests.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        sync: Callable[[int], None] = os.fdatasync,
        write: Write = os.pwritev,
    ) -> None:
        self.healed_bytes = 0
        """Cut from the end at `open`: what a crash left torn there."""
        self.missing_bytes = 0
        """Of positions below the end that no file had at `open`."""
        self.damaged_records = 0
        """Left out in reading so far, as far as they could be told apart."""
        self.last_lsn: int | None = None
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._sync = sync
        self._write = write
        self._lock = Lock()
        self._segments: tuple[Segment, ...] = ()
        self._writer: SegmentWriter | None = None
        self._quarantine = Quarantine(directory)
        self._is_open = False
        self._end = 0
        self._durable = 0

    @property
    def start_lsn(self) -> int:
        """The oldest position that may be read."""
        return self._segments[0].base

    @property
    def end_lsn(self) -> int:
        """The position the next record gets."""
        return self._end

    @property
    def durable_lsn(self) -> int:
        """What lies below is on disk."""
        return self._durable

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The files of the log, oldest first."""
        return self._segments

    @property
    def poison(self) -> str | None:
        """Why nothing more is taken until the log is opened anew; None while it is."""
        return None if self._writer is None else self._writer.poison

    def open(self) -> None:
        """Find the end of the log and cut what a crash left torn behind it.

        Only the last segment is walked; of older ones the length is checked now, the records when read.
        Torn bytes are counted in `healed_bytes` and kept in ``quarantine/``; the log goes on behind them, in a new
        segment, so that no position is used twice. `last_lsn` is that of the last whole record, None in an empty log.

        Raises:
            StorageError: the directory cannot be used, or a later joulegram wrote it.
        """
        safe_mkdir(self._directory)
        try:
            found = []
            for segment in list_segments(self._directory):
                with opened(segment) as fd:
                    found.append(identify(fd, segment))
            self._segments = tuple(found)
            if not found:
                self._begin_segment()
            else:
                self._heal_last()
            self._count_missing()
        except OSError as error:
            raise StorageError(f"cannot open the log in {str(self._directory)!r}: {error}") from error
        self._is_open = True

    def close(self) -> None:
        """Sync, cut the preallocated rest and let the file go; a poisoned log is left as it is.

        Raises:
            StorageError: the sync failed.
        """
        self._is_open = False
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            if writer.poison is None:
                writer.seal(self._end)
                self._durable = self._end
        except OSError as error:
            raise StorageError(f"cannot close the log in {str(self._directory)!r}: {error}") from error
        finally:
            writer.close()

    def append(self, batch: Iterable[Entry]) -> list[int]:
        """Write records behind the last one, in one call to the kernel; they are durable after `sync`.

        Args:
            batch: kind, received_ns and payload of each, and its metadata where it has any.

        Returns:
            Their lsns, in order.

        Raises:
            StorageError: the disk refused, or metadata is too large; nothing of the batch is in the log then.
        """
        self._check_usable()
        parts: list[tuple[RecordKind, int, Sequence[bytes], int]] = []
        lsns = []
        lsn = begin = self._end
        for kind, received_ns, payload, *metadata in batch:
            chunks: Sequence[bytes] = (payload,) if isinstance(payload, bytes) else payload
            head = b""
            if metadata and metadata[0]:
                head = encode_metadata(metadata[0])
                chunks = (head, *chunks)
            parts.append((kind, received_ns, chunks, len(head)))
            lsns.append(lsn)
            lsn += RECORD_HEADER_BYTES + sum(map(len, chunks))
        if not parts:
            return []
        writer = self._writer_for(lsn - begin)
        mark = writer.segment.mark or V1_MARK
        buffers: list[bytes] = []
        for at, (kind, received_ns, chunks, head_bytes) in zip(lsns, parts, strict=True):
            buffers.append(record_header(kind, received_ns, chunks, head_bytes, lsn=at, mark=mark))
            buffers.extend(chunks)
        writer.write(buffers, lsn - begin, begin)
        self._end = lsn
        return lsns

    def sync(self) -> None:
        """Make everything appended so far durable.

        Raises:
            StorageError: it failed; the log takes nothing more until it is opened anew.
        """
        self._check_usable()
        if self._writer is not None:
            self._writer.sync()
            self._durable = self._end

    def skip_to(self, lsn: int) -> None:
        """Give up the positions between the end and `lsn`: a reader that is already there gets nothing twice.

        For a log that lost its end to damage. Does nothing if the log reaches so far.

        Raises:
            StorageError: the disk refused.
        """
        self._check_usable()
        if lsn <= self._end:
            return
        try:
            self._end_segment()
            self._end = lsn
            self._begin_segment(after_hole=True)
        except OSError as error:
            raise StorageError(f"cannot begin a log segment in {str(self._directory)!r}: {error}") from error
        self._durable = lsn

    def read(self, lsn: int, max_bytes: int) -> list[LogRecord]:
        """Durable records from `lsn`, of one segment, about `max_bytes` of them; empty at the durable end.

        Damage is left out up to the next whole record, counted in `damaged_records` and kept in ``quarantine/``; the
        record before it still names it in `next_lsn`.

        Raises:
            StorageError: `lsn` was released (`start_lsn` says from where there is something), or the disk failed.
        """
        while lsn < self._durable:
            segment, end, after_hole = self._locate(lsn)
            try:
                with opened(segment) as fd:
                    records = read_whole(fd, segment, lsn, end, max_bytes)
                    if records:
                        return records
                    self._check_held(lsn)
                    if not (after_hole and segment.offset(lsn) >= os.fstat(fd).st_size):
                        damaged = damaged_at(fd, segment, lsn, end)
                        if self._quarantine.damaged(fd, damaged):
                            self.damaged_records += damaged.records
                        end = damaged.next_lsn
            except OSError as error:
                self._check_held(lsn)  # released between the look at the list and the file
                raise StorageError(f"cannot read the log at {segment.where(lsn)}: {error}") from error
            lsn = end
        return []

    def read_at(self, lsn: int) -> LogRecord:
        """The one durable record at `lsn`.

        Raises:
            StorageError: there is none, or it is damaged.
        """
        record = self.find(lsn)
        if record is None:
            raise StorageError(f"log {str(self._directory)!r} has no whole durable record at lsn {lsn}")
        return record

    def find(self, lsn: int) -> LogRecord | None:
        """The one durable record at `lsn`; None where it was released, or is damaged.

        Raises:
            StorageError: the disk does not give it.
        """
        try:
            records = self.read(lsn, 0)
        except StorageError:
            if lsn < self.start_lsn:
                return None
            raise
        return records[0] if records and records[0].lsn == lsn else None

    def would_release(self, below_lsn: int) -> bool:
        """Whether `release` would delete anything."""
        segments = self._segments
        return len(segments) > 1 and segments[1].base <= below_lsn

    def release(self, below_lsn: int) -> None:
        """Delete the segments that lie wholly below `below_lsn`; the last one always stays.

        Raises:
            StorageError: a file could not be deleted.
        """
        with self._lock:
            segments = self._segments
            keep = 0
            while keep < len(segments) - 1 and segments[keep + 1].base <= below_lsn:
                keep += 1
            self._segments = segments[keep:]
        try:
            # Oldest first: a crash in between leaves no hole.
            for segment in segments[:keep]:
                segment.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot delete a log segment: {error}") from error

    def _check_usable(self) -> None:
        if self._writer is not None and self._writer.poison is not None:
            raise StorageError(
                f"log {str(self._directory)!r}: {self._writer.poison}; it takes nothing more until the next start"
            )
        if not self._is_open:
            raise StorageError(f"log {str(self._directory)!r} is not open")

    def _writer_for(self, size: int) -> SegmentWriter:
        """The writer of the segment that takes `size` bytes more; a new segment where the last one is full.

        Raises:
            StorageError: the disk refused.
        """
        writer = self._writer
        if writer is not None:
            used = self._end - writer.segment.base
            if not used or used + size <= self._segment_bytes:
                return writer
        try:
            if writer is not None:
                writer.seal(self._end)
                self._durable = self._end
            begun = self._begin_segment(after_hole=writer is None)
        except OSError as error:
            raise StorageError(f"cannot begin a log segment in {str(self._directory)!r}: {error}") from error
        if writer is not None:
            writer.close()
        return begun

    def _end_segment(self) -> None:
        writer = self._writer
        if writer is not None:
            writer.seal(self._end)
            writer.close()
            self._writer = None

    def _begin_segment(self, *, after_hole: bool = False) -> SegmentWriter:
        writer = SegmentWriter.create(self._directory, self._end, self._sync, self._write, after_hole=after_hole)
        with self._lock:
            self._segments = (*self._segments, writer.segment)
        self._writer = writer
        return writer

    def _heal_last(self) -> None:
        """Find the end of the last segment, and go on with it where that can be done."""
        segment = self._segments[-1]
        tail = heal(segment, self._quarantine)
        self.healed_bytes, self.last_lsn = tail.torn_bytes, tail.last_lsn
        self._end, self._durable = tail.next_lsn, tail.end_lsn
        if self._end == segment.base:
            # Empty: the crash came while it was made, as its header is synced before its first record.
            self._segments = self._segments[:-1]
            self._begin_segment(after_hole=segment.after_hole)
        elif not tail.torn_bytes and segment.mark and not segment.damaged_header:
            self._writer = SegmentWriter.reopen(segment, self._end, self._sync, self._write)
        if self.last_lsn is None and len(self._segments) > 1:
            self.last_lsn = last_whole(self._segments[-2], self._segments[-1].base)

    def _count_missing(self) -> None:
        for older, newer in pairwise(self._segments):
            if not newer.after_hole:
                self.missing_bytes += max(0, older.offset(newer.base) - older.path.stat().st_size)

    def _locate(self, lsn: int) -> tuple[Segment, int, bool]:
        """The segment of `lsn`, the lsn that bounds reading in it, and whether it may end before."""
        durable, segments = self._durable, self._segments
        self._check_held(lsn)
        index = bisect_right(segments, lsn, key=lambda segment: segment.base) - 1
        if index + 1 < len(segments):
            newer = segments[index + 1]
            return segments[index], newer.base, newer.after_hole
        return segments[index], durable, False

    def _check_held(self, lsn: int) -> None:
        start = self._segments[0].base
        if lsn < start:
            raise StorageError(
                f"log {str(self._directory)!r}: got lsn {lsn}, expected {start} or above: what lies below was released"
            )
