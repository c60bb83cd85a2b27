"""The bytes of a write-ahead log: records and segments in a file, and how whole ones are told from torn.

Format (little-endian):
    * segment: 16 bytes ``JGWAL``, u8 version, 2 zero bytes, u64 base lsn; then records without padding;
    * record: u32 length of what follows the header, u32 CRC32C of all that follows it, u8 kind, 1 zero byte,
      u16 metadata length, 4 zero bytes, u64 received_ns, metadata as JSON pairs (none: no bytes), payload;
    * what lies behind the last record is preallocated zeros: a header of zeros never passes its checksum.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c
import orjson

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.records import LogRecord, RecordKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from joulegram_pipeline.records import Metadata

SEGMENT_HEADER_BYTES = 16
RECORD_HEADER_BYTES = 24

_MAGIC = b"JGWAL"
_VERSION = 1
_SEGMENT_HEADER = struct.Struct("<5sB2xQ")
_RECORD_HEADER = struct.Struct("<IIBxH4xQ")
_LENGTH_AND_CRC = struct.Struct("<II")
_CHECKED = struct.Struct("<BxH4xQ")
MAX_METADATA_BYTES = 0xFFFF
_KINDS = {int(kind): kind for kind in RecordKind}


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the log; `base` is the lsn of its first record."""

    base: int
    path: Path

    def offset(self, lsn: int) -> int:
        """Where in the file the record at `lsn` begins."""
        return SEGMENT_HEADER_BYTES + lsn - self.base

    def where(self, lsn: int) -> str:
        """``name.wal:offset``, as errors quote it."""
        return f"{self.path.name}:{self.offset(lsn)}"


def segment_at(directory: Path, base: int) -> Segment:
    """The segment that begins at lsn `base`, whether or not it exists."""
    return Segment(base, directory / f"{base:020d}.wal")


def list_segments(directory: Path) -> tuple[Segment, ...]:
    """The segments of a directory in order; names that are not 20 digits and ``.wal`` are not ours."""
    return tuple(
        Segment(int(path.stem), path)
        for path in sorted(directory.glob("*.wal"))
        if len(path.stem) == 20 and path.stem.isdecimal()
    )


def segment_header(base: int) -> bytes:
    """The first 16 bytes of a segment."""
    return _SEGMENT_HEADER.pack(_MAGIC, _VERSION, base)


def check_segment_header(segment: Segment, header: bytes) -> None:
    """Refuse a file that is not the segment its name says.

    Raises:
        StorageError: quoting what stood there and what was expected.
    """
    if header != segment_header(segment.base):
        raise StorageError(
            f"log segment {str(segment.path)!r} begins with {header.hex()!r}, "
            f"expected {segment_header(segment.base).hex()!r} (version {_VERSION}, base {segment.base})"
        )


def record_header(kind: int, received_ns: int, chunks: Sequence[bytes], metadata_bytes: int = 0) -> bytes:
    """The 24 bytes that stand before `chunks`, of which the first `metadata_bytes` bytes are metadata."""
    checked = _CHECKED.pack(kind, metadata_bytes, received_ns)
    crc = google_crc32c.value(checked)
    length = 0
    for chunk in chunks:
        crc = google_crc32c.extend(crc, chunk)
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


def decode_all(data: bytes, lsn: int) -> list[LogRecord]:
    """The whole records at the front of `data`, which stands at `lsn`, up to the first that is not."""
    records = []
    at = 0
    limit = len(data) - RECORD_HEADER_BYTES
    while at <= limit:
        length, crc, kind, metadata_bytes, received_ns = _RECORD_HEADER.unpack_from(data, at)
        begin = at + RECORD_HEADER_BYTES
        end = begin + length
        if end > len(data) or kind not in _KINDS or metadata_bytes > length:
            break
        payload = data[begin:end]
        if google_crc32c.extend(google_crc32c.value(data[at + 8 : begin]), payload) != crc:
            break
        metadata: Metadata = ()
        if metadata_bytes:
            metadata = decode_metadata(payload[:metadata_bytes])
            payload = payload[metadata_bytes:]
        records.append(LogRecord(lsn + at, lsn + end, _KINDS[kind], received_ns, payload, metadata=metadata))
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
        size = RECORD_HEADER_BYTES + _LENGTH_AND_CRC.unpack_from(data)[0]
        if len(data) < size <= end - lsn:
            data = os.pread(fd, size, offset)
    return decode_all(data, lsn)


def after_damaged(fd: int, segment: Segment, lsn: int, end: int, *, sealed: bool) -> int | None:
    """The lsn behind the damaged record at `lsn`, or None where its length cannot be believed.

    Its length is believed if a whole record stands behind it, or, in a segment that is `sealed`, if it ends
    where the segment does.
    """
    head = os.pread(fd, RECORD_HEADER_BYTES, segment.offset(lsn))
    if len(head) < RECORD_HEADER_BYTES:
        return None
    following = lsn + RECORD_HEADER_BYTES + int(_LENGTH_AND_CRC.unpack_from(head)[0])
    if sealed and following == end:
        return following
    if following < end and read_whole(fd, segment, following, end, RECORD_HEADER_BYTES):
        return following
    return None


def scan(fd: int, segment: Segment, size: int) -> tuple[int, int | None]:
    """Walk a segment file of `size` bytes to its last whole record, over damaged ones between whole ones.

    Returns:
        The lsn behind the last whole record, and that record's own lsn, None where there is none.
    """
    lsn, last = segment.base, None
    limit = segment.base + size - SEGMENT_HEADER_BYTES
    while lsn < limit:
        records = read_whole(fd, segment, lsn, limit, 1 << 20)
        if records:
            last = records[-1].lsn
            lsn = records[-1].next_lsn
            continue
        following = after_damaged(fd, segment, lsn, limit, sealed=False)
        if following is None:
            break
        lsn = following
    return lsn, last
