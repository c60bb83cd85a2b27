"""What is fuzzed of the disk: the write-ahead log, the ledger, where destinations stand, and Items of a job's own.

As in targets.py, each takes any bytes and raises for a defect alone.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import google_crc32c

from joulegram_pipeline.canonical import canonical_plain
from joulegram_pipeline.errors import DocumentError, StorageError
from joulegram_pipeline.wal_scan import Damaged, identify, walk
from joulegram_pipeline.wal_segment import (
    MAX_METADATA_BYTES,
    SEGMENT_HEADER_BYTES,
    decode_all,
    encode_metadata,
    record_header,
    segment_at,
    segment_header,
)
from joulegram_sink.json_splice import scan, set_member
from joulegram_sink.ledger_format import FIRST_SEGMENT, genesis_line, line_hash
from joulegram_sink.ledger_verify import verify
from joulegram_sink.outbox_items import NOTHING
from joulegram_sink.outbox_positions import PositionFile

_SCRATCH = Path(tempfile.mkdtemp(prefix="joulegram-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
_MOST_NESTED = 200


def fuzz_wal_scan(data: bytes) -> None:
    """A segment of any bytes is walked to its end: whole records and damage between them, in order, without a gap."""
    base = 1_000
    segment = segment_at(_SCRATCH, base)
    fd = os.memfd_create("segment")
    try:
        os.write(fd, data)
        try:
            segment = identify(fd, segment)
        except StorageError:
            return
        _walk_whole(fd, segment, segment.lsn(max(len(data), SEGMENT_HEADER_BYTES)))
    finally:
        os.close(fd)


def _walk_whole(fd: int, segment: Any, end: int) -> list[int]:
    """The positions of the whole records of a sealed segment, once the walk has been looked at."""
    at, found = segment.base, []
    for part in walk(fd, segment, end, sealed=True):
        assert part.lsn == at < part.next_lsn <= end
        at = part.next_lsn
        if not isinstance(part, Damaged):
            found.append(part.lsn)
            assert part.next_lsn - part.lsn >= len(part.payload)
    assert at == end
    return found


def fuzz_wal_damage(data: bytes) -> None:
    """Damage costs the records it touched: those that a flipped, cut or overwritten byte did not hit are all found.

    The bytes are read as three: how many records, then pairs of place and value that are written over them.
    """
    if len(data) < 1:
        return
    base, mark = 77, 0x04030201
    segment = segment_at(_SCRATCH, base)
    image = bytearray(segment_header(base, mark))
    places = []
    for number in range(data[0] % 8 + 1):
        payload = data[: number * 5]
        lsn = base + len(image) - SEGMENT_HEADER_BYTES
        places.append((lsn, len(image), len(image) + 24 + len(payload)))
        image += record_header(1, 5, [payload], lsn=lsn, mark=mark) + payload
    whole = bytes(image)
    for at in range(1, len(data) - 2, 3):
        (place,) = struct.unpack_from("<H", data, at)
        image[place % len(image)] = data[at + 2]
    fd = os.memfd_create("segment")
    try:
        os.write(fd, image)
        known = identify(fd, segment)
        if bytes(image[:16]) == whole[:16]:
            found = _walk_whole(fd, known, known.lsn(len(image)))
            untouched = [lsn for lsn, begin, stop in places if image[begin:stop] == whole[begin:stop]]
            assert [lsn for lsn in found if lsn in {place[0] for place in places}] == untouched
    except StorageError:
        assert image[5] > 2 or image[:16] != whole[:16]
    finally:
        os.close(fd)


def _verified(content: bytes) -> Any:
    (_SCRATCH / FIRST_SEGMENT).write_bytes(content)
    return verify(_SCRATCH)


def fuzz_ledger(data: bytes) -> None:
    """A file of any bytes is verified without a fault of the verifier, and found whole only where it is a chain."""
    report = _verified(data)
    assert report.text()
    if not report.ok:
        return
    lines = data.split(b"\n")
    assert lines.pop() == b""
    assert report.lines == len(lines) > 0
    for number, (line, before) in enumerate(zip(lines, [b"", *lines], strict=False)):
        value = json.loads(line)
        assert value["seq"] == number
        assert value["prev_hash"] == (line_hash(before) if number else genesis_line("")["prev_hash"])
        assert canonical_plain(value) == line
    assert report.head == line_hash(lines[-1])


def fuzz_ledger_edit(data: bytes) -> None:
    """A ledger that was whole is found edited, whatever byte before its last line another one stands for."""
    if len(data) < 4:
        return
    lines = [canonical_plain(genesis_line("01J"))]
    for number in range(1, data[0] % 6 + 3):
        text = data[4 : 4 + number].decode("latin-1")
        line = {"kind": "run", "pos": [number, 0], "prev_hash": line_hash(lines[-1]), "seq": number, "text": text}
        lines.append(canonical_plain(line))
    content = bytearray(b"\n".join(lines) + b"\n")
    assert _verified(bytes(content)).ok
    place = struct.unpack_from("<H", data, 1)[0] % (len(content) - len(lines[-1]) - 1)
    if content[place] == data[3]:
        return
    content[place] = data[3]
    assert not _verified(bytes(content)).ok


def fuzz_metadata(data: bytes) -> None:
    """Headers that travel with a request come back from their record as they went in, whatever is in them."""
    parts = data.decode("latin-1").split("\n")
    metadata = tuple(zip(parts[::2], parts[1::2], strict=False))
    try:
        encoded = encode_metadata(metadata)
    except StorageError:
        assert len(data) > MAX_METADATA_BYTES // 6, "what fits a record was refused"
        return
    mark, lsn = 0x04030201, 9
    head = record_header(1, 5, [encoded, data], len(encoded), lsn=lsn, mark=mark)
    (record,) = decode_all(head + encoded + data, lsn, mark)
    assert record.metadata == metadata
    assert record.payload == data
    assert not decode_all((head + encoded + data)[:-1], lsn, mark), "a record that is cut was read"


def fuzz_position(data: bytes) -> None:
    """A position's file says what was written, or nothing at all; and what is written next is what it says then."""
    path = _SCRATCH / "position"
    path.write_bytes(data)
    found = PositionFile(path, (7, 7))
    try:
        if found.pos != NOTHING:
            assert struct.pack("<qq", *found.pos) == data[:16]
            assert struct.pack("<I", google_crc32c.value(data[:16])) == data[16:20]
        found.write((3, 4))
        found.sync()
    finally:
        found.close()
    again = PositionFile(path, (7, 7))
    again.close()
    assert again.pos == (3, 4)


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        _refuse("a key that stands twice")
    return dict(pairs)


def _depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def fuzz_json_splice(data: bytes) -> None:
    """Text is taken as the json module takes it; a member is set in it, and all else stays letter by letter."""
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text.removeprefix("\ufeff"), parse_constant=_refuse, object_pairs_hook=_once, parse_int=str, parse_float=str
        )
    except (ValueError, RecursionError):
        value = ...
    if value is ...:
        return _is_refused(data)
    try:
        root = scan(text)
    except DocumentError:
        assert _depth(value) > _MOST_NESTED, "text that is JSON was refused"
        return None
    added = {"b": ["c", {}]}
    for path in (("k",), ("properties", "k")):
        try:
            edited = set_member(text, path, added)
        except DocumentError:
            assert not isinstance(value if len(path) == 1 else _member(value, path[0]), dict)
            continue
        wanted = value | {"k": added} if len(path) == 1 else value | {path[0]: value[path[0]] | {"k": added}}
        assert json.loads(edited.removeprefix("\ufeff"), parse_int=str, parse_float=str) == wanted
        assert set_member(edited, path, added) == edited, "set twice it is not what it is set once"
        parent = root if len(path) == 1 else (root.members or {})[path[0]].value
        old = (parent.members or {}).get("k")
        begin, end = (0, 0) if old is None else (old.value.start, len(text) - old.value.end)
        front, back = _in_common(text, edited), _in_common(text[::-1], edited[::-1])
        assert front >= begin
        assert back >= end
        assert old is not None or front + back >= len(text), "more than the member was written"
    return None


def _in_common(one: str, other: str) -> int:
    """How many characters stand at the front of both."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _member(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _is_refused(data: bytes) -> None:
    try:
        scan(data.decode("utf-8"))
    except (DocumentError, UnicodeDecodeError):
        return
    raise AssertionError("text that is not JSON was taken")
