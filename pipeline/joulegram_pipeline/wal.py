"""A segmented write-ahead log: appended with one write, durable after one sync, read back by position.

Invariants:
    * an lsn counts the bytes of records, not those of segment headers, so the lsn behind a record is that of
      the next, in whichever segment it stands; it grows and is never reused;
    * only the last segment is written; an older one is synced and cut to its length before the next is made;
    * nothing above `durable_lsn` is read, and `durable_lsn` moves only after a sync that worked;
    * a sync that failed is never tried again: the kernel may have dropped the pages, so the log takes nothing
      more;
    * one thread appends and syncs; any thread may read and release.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import replace_file, safe_mkdir, sync_directory
from joulegram_pipeline.wal_segment import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Segment,
    after_damaged,
    check_segment_header,
    encode_metadata,
    list_segments,
    read_whole,
    record_header,
    scan,
    segment_at,
    segment_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from joulegram_pipeline.records import LogRecord, Metadata, RecordKind

SEGMENT_BYTES = 64 * 1024 * 1024

# A sync that need not change the file's length costs about a quarter of the processor time of one that must.
_PREALLOCATE_BYTES = 4 * 1024 * 1024
_IOV_MAX = os.sysconf("SC_IOV_MAX")

Payload = bytes | tuple[bytes, ...] | list[bytes]
"""The bytes of a record, whole or in pieces that are written one behind the other."""


Entry = tuple["RecordKind", int, Payload] | tuple["RecordKind", int, Payload, "Metadata"]
"""Kind, received_ns, payload and, where there is any, metadata of a record to append."""


class Write(Protocol):
    """`os.pwritev`, or what a test puts in its place."""

    def __call__(self, fd: int, buffers: Sequence[bytes], offset: int, /) -> int: ...


class WriteAheadLog:
    """The log of one directory.

    Args:
        directory: made if absent.
        segment_bytes: a batch that would take a segment past this begins the next one.
        sync: makes a file's contents durable; `os.fdatasync` but in tests.
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
        self.damaged_records = 0
        self.last_lsn: int | None = None
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._sync = sync
        self._write = write
        self._lock = Lock()
        self._segments: tuple[Segment, ...] = ()
        self._fd = -1
        self._end = 0
        self._durable = 0
        self._allocated = 0
        self._poison: str | None = None

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

    def open(self) -> None:
        """Find the end of the log and cut what a crash left torn behind it.

        Only the last segment is walked; of older ones the length is checked now, the records when read.
        Torn bytes are counted in `healed_bytes` and kept in ``quarantine/``; `last_lsn` is then that of the
        last whole record, None in an empty log.

        Raises:
            StorageError: the directory cannot be used, or an older segment is missing or too short.
        """
        safe_mkdir(self._directory)
        try:
            segments = list_segments(self._directory)
            for older, newer in pairwise(segments):
                size, expected = older.path.stat().st_size, older.offset(newer.base)
                if size != expected:
                    raise StorageError(
                        f"log segment {str(older.path)!r} has {size} bytes, expected {expected}: "
                        f"{newer.path.name!r} follows it"
                    )
            self._segments = segments
            if not segments:
                self._begin_segment(0)
                self._end = self._durable = 0
                return
            self._heal_last()
            if self.last_lsn is None and len(segments) > 1:
                with _opened(segments[-2]) as fd:
                    self.last_lsn = scan(fd, segments[-2], segments[-2].path.stat().st_size)[1]
        except OSError as error:
            raise StorageError(f"cannot open the log in {str(self._directory)!r}: {error}") from error

    def close(self) -> None:
        """Sync, cut the preallocated rest and let the file go; a poisoned log is left as it is."""
        if self._fd < 0:
            return
        try:
            if self._poison is None:
                self._seal()
        finally:
            os.close(self._fd)
            self._fd = -1

    def append(self, batch: Iterable[Entry]) -> list[int]:
        """Write records behind the last one, in one call to the kernel; they are durable after `sync`.

        Args:
            batch: kind, received_ns and payload of each, and its metadata where it has any.

        Returns:
            Their lsns, in order.

        Raises:
            StorageError: the disk refused; nothing of the batch is in the log then.
        """
        self._check_usable()
        buffers: list[bytes] = []
        lsns = []
        size = 0
        for kind, received_ns, payload, *metadata in batch:
            chunks: Sequence[bytes] = (payload,) if isinstance(payload, bytes) else payload
            lsns.append(size)
            if metadata and metadata[0]:
                head = encode_metadata(metadata[0])
                chunks = (head, *chunks)
                buffers.append(record_header(kind, received_ns, chunks, len(head)))
            else:
                buffers.append(record_header(kind, received_ns, chunks))
            buffers.extend(chunks)
            size += RECORD_HEADER_BYTES + sum(map(len, chunks))
        if not buffers:
            return []
        used = self._end - self._segments[-1].base
        if used and used + size > self._segment_bytes:
            self._roll()
        begin = self._end
        offset = self._segments[-1].offset(begin)
        try:
            self._preallocate(offset + size)
            self._write_all(buffers, offset)
        except OSError as error:
            self._take_back(offset)
            raise StorageError(
                f"cannot append {size} bytes to {str(self._segments[-1].path)!r}: {error.strerror or error}"
            ) from error
        self._end = begin + size
        return [begin + lsn for lsn in lsns]

    def sync(self) -> None:
        """Make everything appended so far durable.

        Raises:
            StorageError: it failed; the log takes nothing more until it is opened anew.
        """
        self._check_usable()
        try:
            self._sync(self._fd)
        except OSError as error:
            self._poison = f"sync of {self._segments[-1].path.name} failed: {error.strerror or error}"
            raise StorageError(f"log {str(self._directory)!r}: {self._poison}; it takes nothing more") from error
        self._durable = self._end

    def read(self, lsn: int, max_bytes: int) -> list[LogRecord]:
        """Durable records from `lsn`, of one segment, about `max_bytes` of them; empty at the durable end.

        A damaged record whose length can be believed is left out, counted in `damaged_records` and kept in
        ``quarantine/``; the record before it still names it in `next_lsn`.

        Raises:
            StorageError: `lsn` was released, or the bytes there are damaged beyond finding the next record.
        """
        while lsn < self._durable:
            segment, end, sealed = self._locate(lsn)
            try:
                with _opened(segment) as fd:
                    records = read_whole(fd, segment, lsn, end, max_bytes)
                    if records:
                        return records
                    lsn = self._skip_damaged(fd, segment, lsn, end, sealed=sealed)
            except OSError as error:
                raise StorageError(f"cannot read the log at {segment.where(lsn)}: {error}") from error
        return []

    def read_at(self, lsn: int) -> LogRecord:
        """The one durable record at `lsn`.

        Raises:
            StorageError: there is none, or it is damaged.
        """
        records = self.read(lsn, 0)
        if not records or records[0].lsn != lsn:
            raise StorageError(f"log {str(self._directory)!r} has no whole durable record at lsn {lsn}")
        return records[0]

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
        if self._poison is not None:
            raise StorageError(f"log {str(self._directory)!r}: {self._poison}; it takes nothing more")
        if self._fd < 0:
            raise StorageError(f"log {str(self._directory)!r} is not open")

    def _begin_segment(self, base: int) -> None:
        segment = segment_at(self._directory, base)
        self._fd = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.pwrite(self._fd, segment_header(base), 0)
        os.fsync(self._fd)
        sync_directory(self._directory)
        self._allocated = SEGMENT_HEADER_BYTES
        with self._lock:
            self._segments = (*self._segments, segment)

    def _seal(self) -> None:
        self.sync()
        os.ftruncate(self._fd, self._segments[-1].offset(self._end))
        os.fsync(self._fd)

    def _roll(self) -> None:
        """Seal the last segment and begin the next."""
        old = self._fd
        try:
            self._seal()
            self._begin_segment(self._end)
        except OSError as error:
            if self._fd != old:
                os.close(self._fd)
                self._fd = old
                # Left there it would claim positions that the old segment may still give.
                with contextlib.suppress(OSError):
                    segment_at(self._directory, self._end).path.unlink()
            raise StorageError(f"cannot begin a log segment in {str(self._directory)!r}: {error}") from error
        os.close(old)

    def _heal_last(self) -> None:
        segment = self._segments[-1]
        self._fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        header = os.pread(self._fd, SEGMENT_HEADER_BYTES, 0)
        if len(header) < SEGMENT_HEADER_BYTES or not any(header):
            # The crash came while the segment was made: its header is synced before its first record.
            os.pwrite(self._fd, segment_header(segment.base), 0)
        else:
            check_segment_header(segment, header)
        end, self.last_lsn = scan(self._fd, segment, os.fstat(self._fd).st_size)
        torn = os.pread(self._fd, os.fstat(self._fd).st_size, segment.offset(end)).rstrip(b"\0")
        if torn:
            self.healed_bytes = len(torn)
            # It was never acknowledged: a disk too full to keep it aside must not keep the log shut.
            with contextlib.suppress(StorageError):
                self._put_aside(f"{segment.path.stem}-{segment.offset(end)}.torn", torn)
        os.ftruncate(self._fd, segment.offset(end))
        os.fsync(self._fd)
        self._allocated = segment.offset(end)
        self._end = self._durable = end

    def _preallocate(self, needed: int) -> None:
        if needed <= self._allocated:
            return
        target = -(-needed // _PREALLOCATE_BYTES) * _PREALLOCATE_BYTES
        # Only a speed-up: whether there is room is for the write itself to say.
        with contextlib.suppress(OSError):
            os.posix_fallocate(self._fd, self._allocated, target - self._allocated)
            self._allocated = target

    def _write_all(self, buffers: list[bytes], offset: int) -> None:
        for begin in range(0, len(buffers), _IOV_MAX):
            part = buffers[begin : begin + _IOV_MAX]
            size = sum(map(len, part))
            wrote = self._write(self._fd, part, offset)
            if wrote < size:
                whole = b"".join(part)
                while wrote < size:
                    more = self._write(self._fd, [whole[wrote:]], offset + wrote)
                    if more == 0:
                        raise OSError(0, f"wrote {wrote} of {size} bytes and then none")
                    wrote += more
            offset += size

    def _take_back(self, offset: int) -> None:
        """Cut a half-written batch, so that the next one begins at the last good end."""
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            self._poison = f"a failed write could not be taken back: {error.strerror or error}"
        self._allocated = offset

    def _locate(self, lsn: int) -> tuple[Segment, int, bool]:
        """The segment of `lsn`, the lsn that bounds reading in it, and whether the segment ends there."""
        durable, segments = self._durable, self._segments
        if lsn < segments[0].base:
            raise StorageError(
                f"log {str(self._directory)!r}: got lsn {lsn}, expected {segments[0].base} or above: "
                "what lies below was released"
            )
        index = bisect_right(segments, lsn, key=lambda segment: segment.base) - 1
        if index + 1 < len(segments):
            return segments[index], segments[index + 1].base, True
        return segments[index], durable, False

    def _skip_damaged(self, fd: int, segment: Segment, lsn: int, end: int, *, sealed: bool) -> int:
        following = after_damaged(fd, segment, lsn, end, sealed=sealed)
        if following is None:
            raise StorageError(
                f"log {str(self._directory)!r} is damaged at {segment.where(lsn)}: "
                "expected a whole record there, or a length that leads to the next one"
            )
        name = f"{lsn:020d}.damaged"
        if not (self._directory / "quarantine" / name).exists():
            self._put_aside(name, os.pread(fd, following - lsn, segment.offset(lsn)))
            self.damaged_records += 1
        return following

    def _put_aside(self, name: str, data: bytes) -> None:
        replace_file(safe_mkdir(self._directory / "quarantine") / name, data)


@contextlib.contextmanager
def _opened(segment: Segment) -> Iterator[int]:
    """A reader's own descriptor: the writer may close and delete its one at any time."""
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
