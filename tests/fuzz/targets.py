"""What is fuzzed: one function for each decoder that reads bytes of others, on the wire or on the disk.

Each takes any bytes and raises for a defect alone: an exception that the decoder does not promise, or a law that does
not hold of what it gave. Where protobuf, zlib or the json module read the same, they are the judge.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import zstandard
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from joulegram_pipeline.canonical import canonical_plain
from joulegram_pipeline.errors import StorageError, WireError
from joulegram_pipeline.http2_frames import MAX_FRAME_BYTES, MAX_WINDOW_BYTES, PREFACE, ConnectionFault, settings
from joulegram_pipeline.span_rows import sound
from joulegram_pipeline.wal_scan import Damaged, identify, walk
from joulegram_pipeline.wal_segment import SEGMENT_HEADER_BYTES, record_header, segment_at, segment_header
from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.select import Selector
from joulegram_processor.spans import SpanReader
from joulegram_processor.wire import splice, splice_all, string_attribute, without_attributes
from joulegram_receiver.admission import Admission
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.http_body import decoder_for, read_body
from joulegram_receiver.intake_refusals import TooLargeError
from joulegram_receiver.otlp_json import from_otlp_json, to_otlp_json
from joulegram_receiver.signals import SIGNALS
from joulegram_sink.ledger_format import FIRST_SEGMENT, genesis_line, line_hash
from joulegram_sink.ledger_verify import verify
from joulegram_sink.upstream_server_side import AgainError, ServerSide
from joulegram_sink.upstream_split import halves
from joulegram_sink.upstream_status import message_of, status_of
from simulators.http2 import Fed, frames_of

if TYPE_CHECKING:
    from collections.abc import Callable

_SELECTOR = Selector()
_READER = SpanReader(_SELECTOR, None, WRITTEN_KEYS)
_ADDED = string_attribute("joined", "yes")
_MAX_BODY = 64 * 1024
_LOOP = asyncio.new_event_loop()
_SCRATCH = Path(tempfile.mkdtemp(prefix="joulegram-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
atexit.register(_LOOP.close)


def _parsed(kind: Any, data: bytes) -> Any:
    """What protobuf makes of the bytes; None where it refuses them."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def _spans(request: Any) -> list[Any]:
    return [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]


def fuzz_extract(data: bytes) -> None:
    """`SpanReader.extract` takes what protobuf takes, and finds the spans that a plain look finds."""
    request = _parsed(ExportTraceServiceRequest, data)
    try:
        found = _READER.extract(data)
    except WireError:
        assert request is None, "a request that protobuf reads was refused"
        return
    assert request is not None, "bytes that protobuf refuses were read"
    spans = _spans(request)
    wanted = [
        at
        for at, span in enumerate(spans)
        if span.name in _SELECTOR.exact
        or span.name.startswith(_SELECTOR.prefixes)
        or any(pair.key in _SELECTOR.attributes for pair in span.attributes)
    ]
    rows = {at: (spans[at].name, spans[at].trace_id, spans[at].span_id) for at in wanted}
    assert found.total == len(spans)
    assert len(found.rows) == len(found.indices) == len(found.runs) == len(found.pids)
    assert all(map(sound, found.rows))
    assert not any(map(sound, found.broken))
    assert {at: row[:3] for at, row in zip(found.indices, found.rows, strict=True)}.items() <= rows.items()
    assert len(found.rows) + len(found.broken) == len(wanted)
    assert set(found.extras) <= set(range(len(found.rows)))


def fuzz_splice(data: bytes) -> None:
    """`splice` and `splice_all` find the spans that protobuf finds, and change nothing that they are not told to."""
    request = _parsed(ExportTraceServiceRequest, data)
    count = 0 if request is None else len(_spans(request))
    try:
        same = splice(data, range(count), lambda _, at: data[at.start : at.end])
        grown = splice(data, range(count), lambda _, at: data[at.start : at.end] + _ADDED)
        quick = splice_all(data, [_ADDED] * count)
    except WireError:
        assert request is None, "a request that protobuf reads could not be edited"
        return
    if request is None:
        return  # what is inside a span is not looked at here
    assert ExportTraceServiceRequest.FromString(same).SerializeToString() == request.SerializeToString()
    assert quick == grown
    for span in _spans(request):
        span.MergeFromString(_ADDED)
    assert ExportTraceServiceRequest.FromString(grown).SerializeToString() == request.SerializeToString()


def fuzz_attributes(data: bytes) -> None:
    """`without_attributes` takes all of a key from a span, and nothing else."""
    span = _parsed(Span, data)
    keys = {b"carbon.gco2e", b"k"}
    try:
        out = without_attributes(data, keys)
    except WireError:
        assert span is None, "a span that protobuf reads was refused"
        return
    if span is None:
        return
    kept = [pair for pair in span.attributes if pair.key.encode() not in keys]
    made = Span.FromString(out)
    assert [pair.SerializeToString() for pair in made.attributes] == [pair.SerializeToString() for pair in kept]
    del span.attributes[:], made.attributes[:]
    assert made.SerializeToString() == span.SerializeToString()


def fuzz_json(data: bytes) -> None:
    """OTLP JSON is read or refused with what it promises; what was read survives JSON and protobuf."""
    if not data:
        return
    signal = SIGNALS[data[0] % len(SIGNALS)]
    try:
        message = from_otlp_json(data[1:], signal.request)
    except (WireError, TooLargeError):
        return
    assert isinstance(json.loads(data[1:]), dict), "bytes that are not JSON were read"
    encoded = message.SerializeToString()
    assert signal.parse(encoded).SerializeToString() == encoded
    assert from_otlp_json(orjson.dumps(to_otlp_json(message)), signal.request).SerializeToString() == encoded


def fuzz_body(data: bytes) -> None:
    """A compressed body is read as zlib and zstandard read it, within its limit, or refused; however it is cut."""
    if len(data) < 2:
        return
    coding = ("gzip", "deflate", "zstd", "identity")[data[0] % 4]
    step, body = data[1] or len(data), data[2:]
    chunks = [body[at : at + step] for at in range(0, len(body), step)]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    gate = Admission()

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def read() -> bytes:
        with gate.enter(0) as hold:
            return await read_body(receive, decoder_for(coding), hold, max_bytes=_MAX_BODY, timeout_s=60)

    try:
        found = _LOOP.run_until_complete(read())
    except TooLargeError:
        wanted = _decompressed(coding, body)
        assert wanted is None or len(wanted) > _MAX_BODY or len(body) > _MAX_BODY
    except WireError:
        wanted = _decompressed(coding, body)
        assert wanted is None or len(wanted) > _MAX_BODY, "a whole stream was refused"
    else:
        assert len(found) <= _MAX_BODY
        assert found == _decompressed(coding, body)
    assert gate.held_bytes == 0


def _decompressed(coding: str, body: bytes) -> bytes | None:
    """The whole stream, None where it is not one; a little more than the limit where it is larger."""
    if coding == "identity":
        return body
    out = b""
    stream: Any
    try:
        while body or not out:
            if coding == "zstd":
                stream = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj()
                out += bytes(stream.decompress(body))
            else:
                stream = zlib.decompressobj(31 if coding == "gzip" else 15)
                out += bytes(stream.decompress(body, _MAX_BODY + 1))
            if len(out) > _MAX_BODY:
                return out
            if not stream.eof:
                return None
            body = stream.unused_data
            if coding == "deflate":
                return None if body else out
            if not body:
                return out
    except (zlib.error, zstandard.ZstdError):
        return None
    return out


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


def fuzz_halves(data: bytes) -> None:
    """Two halves say together what the whole said, in order, and each is a request and not empty."""
    request = _parsed(ExportTraceServiceRequest, data)
    found = halves(data)
    if request is None or found is None:
        return
    parts = [_parsed(ExportTraceServiceRequest, half) for half in found]
    assert None not in parts, "half of a request is none"
    whole = [span.SerializeToString() for span in _spans(request)]
    assert [span.SerializeToString() for part in parts for span in _spans(part)] == whole
    assert all(part.resource_spans for part in parts)
    assert max(map(len, found)) < len(data), "what is halved again and again must come to an end"


def fuzz_http2(data: bytes) -> None:
    """Any bytes behind the preface: whole frames come back, and all is the same however the bytes were cut."""
    if data:
        cut = data[0] * len(data) // 256
        body = PREFACE + settings({}) + data[1:]
        whole, parted = _LOOP.run_until_complete(_fed([body])), _LOOP.run_until_complete(_fed([body[:cut], body[cut:]]))
        assert whole == parted, "where bytes are cut makes a difference"


async def _fed(parts: list[bytes]) -> tuple[bytes, list[tuple[bytes, bool, bool]]]:
    fed = Fed(Http2Limits(max_streams=5))
    for part in parts:
        await fed.feed(part)
    frames, rest = frames_of(bytes(fed.pipe.written))
    assert not rest, "half a frame was written"
    assert all(len(each.payload) <= MAX_FRAME_BYTES for each in frames)
    assert len(fed.connection.streams) <= 5
    fed.close()
    assert not fed.connection.streams, "a request outlived its connection"
    return bytes(fed.pipe.written), [(each.body, each.ended, each.left) for each in fed.host.exchanges]


def fuzz_upstream(data: bytes) -> None:
    """Any bytes as a server's answers: refused as broken or read, the same however they were cut."""
    if data:
        cut = data[0] * len(data) // 256
        assert _answered([data[1:]]) == _answered([data[1:cut], data[max(1, cut) :]]), "where bytes are cut matters"


def _answered(parts: list[bytes]) -> tuple[object, ...]:
    said: list[bytes] = []
    server = ServerSide(said.append)
    server.feed(settings({}))
    call = server.begin(b"", bytes(10), 100)
    outcome = ""
    try:
        for part in parts:
            server.feed(part)
    except (ConnectionFault, AgainError) as error:
        # The words show how far one read went.
        outcome = type(error).__name__
    response = call.response
    assert len(response.body) <= 100
    assert call.send_window <= MAX_WINDOW_BYTES >= server.send_window
    if response.whole and not outcome:
        assert status_of(response).code
        message_of(response)
    return outcome, response, b"".join(said), server.leaves, server.max_frame, server.send_window


TARGETS: dict[str, Callable[[bytes], None]] = {
    "extract": fuzz_extract,
    "splice": fuzz_splice,
    "attributes": fuzz_attributes,
    "json": fuzz_json,
    "body": fuzz_body,
    "wal_scan": fuzz_wal_scan,
    "wal_damage": fuzz_wal_damage,
    "ledger": fuzz_ledger,
    "ledger_edit": fuzz_ledger_edit,
    "halves": fuzz_halves,
    "http2": fuzz_http2,
    "upstream": fuzz_upstream,
}
