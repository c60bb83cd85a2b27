"""Finding the whole records of a segment that is not whole: behind damage, at a torn end, under a damaged header.

Invariants:
    * only a record whose checksum passes at its own position is ever given; damage costs what it touched;
    * nothing here writes.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from joulegram_pipeline.wal_segment import (
    MARK_OFFSET,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    V1_MARK,
    Segment,
    read_whole,
    said_length,
    with_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from joulegram_pipeline.records import LogRecord

_WINDOW_BYTES = 1024 * 1024
_READ_BYTES = 4 * 1024 * 1024
# What version 1 and a segment without its header offer as possible records may be wrong many times over; each wrong one
# costs a checksum of as many bytes as it claims to have.
_MAX_CHECKED_BYTES = 1024 * 1024 * 1024
_KIND_OFFSET = 8
_LIKE_V1 = re.compile(rb"[\x01-\x06]\x00(?=..\x00{4})", re.DOTALL)
_LIKE_ANY = re.compile(rb"[\x01-\x06]\x00")


class Damaged(NamedTuple):
    """A stretch of a segment in which no whole record stands.

    Args:
        segment: it is in.
        lsn: where it begins.
        next_lsn: where it ends.
        records: how many were there, as far as their headers can be believed; at least 1.
    """

    segment: Segment
    lsn: int
    next_lsn: int
    records: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a walk over a segment found.

    Args:
        end_lsn: behind its last whole record.
        last_lsn: of that record; None where there is none.
    """

    end_lsn: int
    last_lsn: int | None


def identify(fd: int, segment: Segment) -> Segment:
    """The segment with its mark: from its header, or, if that is damaged, from the records behind it.

    Its `mark` is None where neither gives one: it has no record that can be found.

    Raises:
        StorageError: a later version of the format.
    """
    header = os.pread(fd, SEGMENT_HEADER_BYTES, 0)
    known = with_header(segment, header)
    if known.mark is not None:
        return known
    end = segment.lsn(os.fstat(fd).st_size)
    for lsn in _candidates(fd, segment, segment.base, end, _LIKE_ANY):
        head = os.pread(fd, RECORD_HEADER_BYTES, segment.offset(lsn))
        mark = struct.unpack_from("<I", head, MARK_OFFSET)[0]
        guess = replace(segment, mark=mark, damaged_header=True)
        if read_whole(fd, guess, lsn, end, 0):
            return guess
    return replace(segment, damaged_header=any(header))


def find_whole(fd: int, segment: Segment, lsn: int, end: int) -> int | None:
    """The first position from `lsn` at which a whole record stands that does not pass `end`; None if there is none."""
    if segment.mark is None:
        return None
    # The bytes of the mark itself are found at the speed of memory.
    like = _LIKE_V1 if segment.mark == V1_MARK else re.compile(re.escape(struct.pack("<I", segment.mark)))
    for candidate in _candidates(fd, segment, lsn, end, like):
        if read_whole(fd, segment, candidate, end, 0):
            return candidate
    return None


def damaged_at(fd: int, segment: Segment, lsn: int, end: int) -> Damaged:
    """The stretch from `lsn`, where no whole record stands, to the next one or to `end`."""
    found = find_whole(fd, segment, lsn + 1, end)
    following = end if found is None else found
    records, at = 1, lsn
    while at < following:
        size = said_length(fd, segment, at)
        if size is None:
            break
        at += size
        if at < following:
            records += 1
    return Damaged(segment, lsn, following, records if at == following else 1)


def walk(fd: int, segment: Segment, end: int, *, sealed: bool = False) -> Iterator[LogRecord | Damaged]:
    """Every whole record of a segment below `end`, and the stretches between them that hold none.

    What stands behind the last whole record is given only where the segment is `sealed`, that is, where something whole
    must have stood up to `end`; else it may as well be torn, or not written yet.
    """
    lsn = segment.base
    while lsn < end:
        records = read_whole(fd, segment, lsn, end, _READ_BYTES)
        yield from records
        if records:
            lsn = records[-1].next_lsn
            continue
        damaged = damaged_at(fd, segment, lsn, end)
        if damaged.next_lsn < end or sealed:
            yield damaged
        lsn = damaged.next_lsn


def ends(segments: Sequence[Segment], end_lsn: int) -> list[int]:
    """Where the records of each of consecutive segments end; the last one at `end_lsn`."""
    found = []
    for older, newer in pairwise(segments):
        # Behind a hole left on purpose nothing is missing: the file says itself where it ends.
        size = older.path.stat().st_size if newer.after_hole else older.offset(newer.base)
        found.append(min(newer.base, older.lsn(size)))
    return [*found, end_lsn][: len(segments)]


def scan(fd: int, segment: Segment, end: int) -> Scan:
    """Walk a segment to its last whole record below `end`."""
    end_lsn, last_lsn = segment.base, None
    for found in walk(fd, segment, end):
        end_lsn = found.next_lsn
        if not isinstance(found, Damaged):
            last_lsn = found.lsn
    return Scan(end_lsn, last_lsn)


def _candidates(fd: int, segment: Segment, lsn: int, end: int, like: re.Pattern[bytes]) -> Iterator[int]:
    """Positions from `lsn` where a header may stand whose record ends at `end` or before."""
    before = _KIND_OFFSET if like in {_LIKE_V1, _LIKE_ANY} else MARK_OFFSET
    checked = 0
    while lsn + RECORD_HEADER_BYTES <= end:
        window = os.pread(fd, min(_WINDOW_BYTES, end - lsn), segment.offset(lsn))
        if len(window) < RECORD_HEADER_BYTES:
            return
        for match in like.finditer(window, before):
            at = match.start() - before
            if at + RECORD_HEADER_BYTES > len(window):
                break
            size = RECORD_HEADER_BYTES + int(struct.unpack_from("<I", window, at)[0])
            if lsn + at + size > end:
                continue
            checked += size
            if checked > _MAX_CHECKED_BYTES:
                return
            yield lsn + at
        lsn += len(window) - RECORD_HEADER_BYTES + 1
