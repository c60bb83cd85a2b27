"""The bytes of a write-ahead log: records and segments in a file, and how whole ones are told from torn.

Format, version 2 (little-endian):
    * segment: 16 bytes ``JGWAL``, u8 version, u16 flags, u32 mark, u32 CRC32C of these 12 bytes and of the base
      lsn as u64; then records without padding. The base stands in the file's name. Later versions keep this checksum;
    * record: u32 length of what follows the header, u32 CRC32C of the record's lsn as u64 and of all that follows
      the checksum, u8 kind, 1 zero byte, u16 metadata length, u32 mark, u64 received_ns, metadata as JSON pairs
      (none: no bytes), payload;
    * the mark is drawn anew for each segment. It leads to the next record behind a damaged one, and together with
      the lsn in the checksum it keeps bytes from elsewhere, a copied record in a payload too, from being a record;
    * what lies behind the last record is preallocated zeros: a header of zeros never passes its checksum.

Version 1 is read and no longer written: no flags and no mark (zeros in a record), the base itself in the segment's
header, and no lsn in a record's checksum.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import google_crc32c
import orjson

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.records import LogRecord, RecordKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from joulegram_pipeline.records import Metadata

SEGMENT_HEADER_BYTES = 16
RECORD_HEADER_BYTES = 24
MAX_METADATA_BYTES = 0xFFFF
MARK_OFFSET = 12
"""Of the mark in a record's header."""

MAGIC = b"JGWAL"
VERSION = 2
V1_MARK = 0
"""Version 1 has zeros where version 2 has the mark, which is never 0."""
AFTER_HOLE = 1
"""Flag: positions between the segment before and this one were given up; nothing is missing there."""

_V1_HEADER = struct.Struct("<5sB2xQ")
_HEADER = struct.Struct("<5sBHI")
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_RECORD_HEADER = struct.Struct("<IIBxHIQ")
_LENGTH_AND_CRC = struct.Struct("<II")
_CHECKED = struct.Struct("<BxHIQ")
_LSN_AND_CHECKED = struct.Struct("<QBxHIQ")
_KINDS = {int(kind): kind for kind in RecordKind}
_crc_of, _crc_on = google_crc32c.value, google_crc32c.extend


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the log.

    Args:
        base: lsn of its first record.
        path: of the file.
        mark: what its records carry; None before `with_header`, or where it could not be found out.
        after_hole: nothing is missing between the segment before and `base`.
        damaged_header: the header is not what was written; `mark` comes from the records.
    """

    base: int
    path: Path
    mark: int | None = None
    after_hole: bool = False
    damaged_header: bool = False

    def offset(self, lsn: int) -> int:
        """Where in the file the record at `lsn` begins."""
        return SEGMENT_HEADER_BYTES + lsn - self.base

    def lsn(self, offset: int) -> int:
        """The position that stands at `offset` of the file."""
        return self.base + offset - SEGMENT_HEADER_BYTES

    def where(self, lsn: int) -> str:
        """``name.wal:offset``, as errors quote it."""
        return f"{self.path.name}:{self.offset(lsn)}"


def segment_at(directory: Path, base: int) -> Segment:
    """The segment that begins at lsn `base`, whether or not it exists."""
    return Segment(base, directory / f"{base:020d}.wal")


def list_segments(directory: Path) -> tuple[Segment, ...]:
    """The segments of a directory in order, headers unread; names that are not 20 digits and ``.wal`` are not ours."""
    return tuple(
        Segment(int(path.stem), path)
        for path in sorted(directory.glob("*.wal"))
        if len(path.stem) == 20 and path.stem.isdecimal()
    )


@contextlib.contextmanager
def opened(segment: Segment) -> Iterator[int]:
    """A reader's own descriptor: the writer may close and delete its one at any time."""
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def new_mark() -> int:
    """A mark for a new segment: not that of version 1, and so that no two places where it is found overlap."""
    while True:
        drawn = os.urandom(4)
        if drawn[0] and drawn[0] not in drawn[1:]:
            return int.from_bytes(drawn, "little")


def segment_header(base: int, mark: int, *, after_hole: bool = False, version: int = VERSION) -> bytes:
    """The first 16 bytes of a segment."""
    head = _HEADER.pack(MAGIC, version, AFTER_HOLE if after_hole else 0, mark)
    return head + _U32.pack(_crc_of(head + _U64.pack(base)))


def with_header(segment: Segment, header: bytes) -> Segment:
    """The segment with what its header says; `mark` stays None if that is not a header of this very segment.

    Raises:
        StorageError: it is one of a later version, which is not to be touched.
    """
    if header == _V1_HEADER.pack(MAGIC, 1, segment.base):
        return replace(segment, mark=V1_MARK)
    if len(header) < SEGMENT_HEADER_BYTES or header[12:] != _U32.pack(_crc_of(header[:12] + _U64.pack(segment.base))):
        return segment
    magic, version, flags, mark = _HEADER.unpack_from(header)
    if magic != MAGIC or version < VERSION:
        return segment
    if version > VERSION:
        raise StorageError(
            f"log segment {str(segment.path)!r} begins with {header.hex()!r}: "
            f"expected format version 1 or {VERSION}, got {version}; a later joulegram wrote it"
        )
    return replace(segment, mark=mark, after_hole=bool(flags & AFTER_HOLE))


def record_header(
    kind: int, received_ns: int, chunks: Sequence[bytes], metadata_bytes: int = 0, *, lsn: int = 0, mark: int = V1_MARK
) -> bytes:
    """The 24 bytes that stand before `chunks`, of which the first `metadata_bytes` bytes are metadata.

    Args:
        kind: of the record.
        received_ns: wall clock.
        chunks: metadata and payload.
        metadata_bytes: how many of these bytes are metadata.
        lsn: where the record will stand.
        mark: of its segment; without one it is a record of version 1.
    """
    if mark == V1_MARK:
        checked = _CHECKED.pack(kind, metadata_bytes, V1_MARK, received_ns)
        crc = _crc_of(checked)
    else:
        located = _LSN_AND_CHECKED.pack(lsn, kind, metadata_bytes, mark, received_ns)
        crc = _crc_of(located)
        checked = located[8:]
    length = 0
    for chunk in chunks:
        crc = _crc_on(crc, chunk)
        length += len(chunk)
    return _LENGTH_AND_CRC.pack(length, crc) + checked


def encode_metadata(metadata: Metadata) -> bytes:
    """Metadata as it stands in a record.

    Raises:
        StorageError: it has more bytes than a record can say.
    """
    data = orjson.dumps(metadata) if metadata else b""
    if len(data) > MAX_METADATA_BYTES:
        raise StorageError(f"got {len(data)} bytes of request metadata, expected at most {MAX_METADATA_BYTES}")
    return data


def decode_metadata(data: bytes) -> Metadata:
    """What `encode_metadata` wrote."""
    return tuple((str(name), str(value)) for name, value in orjson.loads(data))


def decode_all(data: bytes, lsn: int, mark: int | None) -> list[LogRecord]:
    """The whole records at the front of `data`, which stands at `lsn`, up to the first that is not.

    Args:
        data: bytes of a segment behind its header.
        lsn: of the first.
        mark: of the segment.
    """
    records = []
    at = 0
    limit = len(data) - RECORD_HEADER_BYTES
    while at <= limit:
        length, crc, kind, metadata_bytes, found, received_ns = _RECORD_HEADER.unpack_from(data, at)
        begin = at + RECORD_HEADER_BYTES
        end = begin + length
        if found != mark or end > len(data) or kind not in _KINDS or metadata_bytes > length:
            break
        payload = data[begin:end]
        checked = data[at + 8 : begin]
        if _crc_on(_crc_of(checked if mark == V1_MARK else _U64.pack(lsn + at) + checked), payload) != crc:
            break
        metadata: Metadata = ()
        if metadata_bytes:
            metadata = decode_metadata(payload[:metadata_bytes])
            payload = payload[metadata_bytes:]
        records.append(LogRecord(lsn + at, lsn + end, _KINDS[kind], received_ns, payload, None, metadata))
        at = end
    return records


def read_whole(fd: int, segment: Segment, lsn: int, end: int, max_bytes: int) -> list[LogRecord]:
    """Whole records of one segment from `lsn`, about `max_bytes`; none only if the first is damaged.

    Args:
        fd: of the segment.
        segment: whose records they are.
        lsn: of the first.
        end: lsn that no record may pass.
        max_bytes: how much to read; one record that is larger is read whole.
    """
    offset = segment.offset(lsn)
    data = os.pread(fd, min(max(max_bytes, RECORD_HEADER_BYTES), end - lsn), offset)
    if len(data) >= RECORD_HEADER_BYTES:
        size = RECORD_HEADER_BYTES + int(_LENGTH_AND_CRC.unpack_from(data)[0])
        if len(data) < size <= end - lsn:
            data = os.pread(fd, size, offset)
    return decode_all(data, lsn, segment.mark)


def said_length(fd: int, segment: Segment, lsn: int) -> int | None:
    """Bytes of the record at `lsn` with its header, as that header says, believed or not; None where there is none."""
    head = os.pread(fd, RECORD_HEADER_BYTES, segment.offset(lsn))
    return None if len(head) < RECORD_HEADER_BYTES else RECORD_HEADER_BYTES + int(_LENGTH_AND_CRC.unpack_from(head)[0])
