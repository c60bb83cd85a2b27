"""The end of a log after whatever ended its last writer, and the place where damaged bytes are kept.

Invariants:
    * whole records stay where they are; what stands behind the last of them is kept aside, then cut;
    * keeping aside is best effort: a disk too full for it must not keep the log shut or its other records unread.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import replace_file, safe_mkdir
from joulegram_pipeline.wal_scan import scan
from joulegram_pipeline.wal_segment import SEGMENT_HEADER_BYTES, opened, segment_header

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_pipeline.wal_scan import Damaged
    from joulegram_pipeline.wal_segment import Segment


class Quarantine:
    """Keeps damaged bytes in ``<directory>/quarantine/``, named after the place they stood at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "quarantine"
        self._met: set[int] = set()

    def torn(self, segment: Segment, offset: int, data: bytes) -> None:
        """Keep what stood behind the last whole record of a log."""
        self._put(f"{segment.path.stem}-{offset}.torn", data)

    def damaged(self, fd: int, damaged: Damaged) -> bool:
        """Keep the bytes of a damaged stretch; whether they were not here yet."""
        name = f"{damaged.lsn:020d}.damaged"
        if damaged.lsn in self._met or (self._directory / name).exists():
            return False
        self._met.add(damaged.lsn)
        self._put(name, os.pread(fd, damaged.next_lsn - damaged.lsn, damaged.segment.offset(damaged.lsn)))
        return True

    def _put(self, name: str, data: bytes) -> None:
        with contextlib.suppress(StorageError):
            replace_file(safe_mkdir(self._directory) / name, data)


@dataclass(frozen=True, slots=True)
class Tail:
    """How the last segment of a log ends.

    Args:
        end_lsn: behind its last whole record.
        last_lsn: of that record; None where there is none.
        next_lsn: where the log may go on, so that no position is used twice.
        torn_bytes: that stood behind the last whole record.
    """

    end_lsn: int
    last_lsn: int | None
    next_lsn: int
    torn_bytes: int


def heal(segment: Segment, quarantine: Quarantine) -> Tail:
    """Cut what stands behind the last whole record of the last segment.

    Torn bytes were never acknowledged, or they were and are damaged now: then whoever has read them keeps their
    position. So where there are any, the log goes on behind all that stood in the file.

    Raises:
        OSError: the disk refused.
    """
    fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        found = scan(fd, segment, segment.lsn(size))
        length = segment.offset(found.end_lsn)
        torn = os.pread(fd, size, length).rstrip(b"\0")
        if torn:
            quarantine.torn(segment, length, torn)
        if size != length:
            os.ftruncate(fd, max(length, SEGMENT_HEADER_BYTES))
            os.fsync(fd)
    finally:
        os.close(fd)
    return Tail(found.end_lsn, found.last_lsn, segment.lsn(size) if torn else found.end_lsn, len(torn))


def last_whole(segment: Segment, end: int) -> int | None:
    """The lsn of the last whole record of a segment below `end`."""
    with opened(segment) as fd:
        return scan(fd, segment, end).last_lsn


def rewrite_header(segment: Segment) -> None:
    """Give a segment whose header is damaged one that says what its records say.

    Raises:
        StorageError: the disk refused.
    """
    assert segment.mark
    try:
        fd = os.open(segment.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, segment_header(segment.base, segment.mark), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(f"cannot write the header of {str(segment.path)!r}: {error}") from error
