"""The hostile set of the otlp reference, section 5, over both transports: the exact answer, and what is stored.

What a whole sidecar has in memory afterwards, and how it takes floods, is in `test_hostile_sidecar.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import random
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.select import Selector
from joulegram_processor.spans import SpanReader
from simulators.protobuf import field, varint
from simulators.receivers import BY_NAME, JSON, receivers, span, traces

if TYPE_CHECKING:
    from pathlib import Path

ONE = traces(span())
READ_ONCE: dict[str, Any] = {"extract": SpanReader(Selector(), None, WRITTEN_KEYS).extract}
"""As in a sidecar, where what the join wants of a request is read when it comes."""

MIB = 1024 * 1024
GRPC = {"malformed": grpc.StatusCode.INVALID_ARGUMENT, "too large": grpc.StatusCode.RESOURCE_EXHAUSTED}
HTTP = {"malformed": 400, "too large": 413}


def one_scope(content: bytes) -> bytes:
    """A trace request whose only ScopeSpans has this content."""
    return field(1, field(2, content))


def one_span(content: bytes = b"", **fields: Any) -> bytes:
    """A trace request of one sound span, with more content behind it."""
    message = ExportTraceServiceRequest.FromString(traces(span(**fields)))
    return one_scope(field(2, message.resource_spans[0].scope_spans[0].spans[0].SerializeToString() + content))


def attribute(value: bytes) -> bytes:
    """An attribute of a span, its value given as the bytes of an AnyValue."""
    return field(9, field(1, b"k") + field(2, value))


def deep(levels: int) -> bytes:
    """An AnyValue of arrays in arrays."""
    value = AnyValue(bool_value=True).SerializeToString()
    for _ in range(levels):
        value = field(5, field(1, value))
    return value


UNKNOWN = field(4000, b"new") + varint(4001 << 3) + b"\x05" + varint(4002 << 3 | 1) + bytes(8)
GROUP = varint(4003 << 3 | 3) + b"\x08\x01" + varint(4003 << 3 | 4)

SPAN = one_span()[4:]
"""The only span, as it stands in its scope."""

STORED = {
    "unknown fields at every level": field(1, UNKNOWN + field(2, UNKNOWN + SPAN + UNKNOWN)) + UNKNOWN,
    "unknown fields in a span": one_span(UNKNOWN),
    "a group nobody knows": one_span(GROUP) + GROUP,
    "field 1000, the old instrumentation library": one_scope(SPAN + field(1000, SPAN)) + field(1000, b"old"),
    "duplicate attribute keys": one_span(attribute(field(1, b"a")) + attribute(field(1, b"b"))),
    "spoofed carbon attributes": one_span(field(9, field(1, b"carbon.gco2e") + field(2, b"\x21" + bytes(8)))),
    "NaN": one_span(attribute(AnyValue(double_value=math.nan).SerializeToString())),
    "infinity": one_span(attribute(AnyValue(double_value=-math.inf).SerializeToString())),
    "an empty value": one_span(attribute(b"")),
    "bytes, arrays and lists as values": one_span(
        attribute(field(7, b"\xff")) + attribute(field(5, b"")) + attribute(field(6, field(1, field(1, b"k"))))
    ),
    "string indices, which are for profiles": one_span(attribute(b"\x40\x05") + field(9, b"\x18\x05")),
    "the high bits of flags": one_span(b"\x85\x01\xff\xff\xff\xff"),
    "two values of one AnyValue": one_span(attribute(field(1, b"a") + b"\x18\x05")),
    "a varint longer than it need be": one_span(b"\x98\x01\x82\x80\x80\x00"),
    "the deepest AnyValue there may be": one_span(attribute(deep(47))),
    "a million attributes of nothing": one_span(b"\x4a\x00" * 1_000_000),
    "an empty name": one_span(name=""),
}

MALFORMED = {
    "a length beyond the end": b"\x0a\xff\x01abc",
    "a length of 2 GiB": b"\x0a\xff\xff\xff\xff\x07",
    "a length of 2^63": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a length within that lies": field(1, b"\x12\x7fabc"),
    "a varint without end": b"\x08" + b"\xff" * 11,
    "the end of a group that never began": b"\x0c",
    "a group that never ends": b"\x0b",
    "groups in groups without end": b"\x0b" * 100_000,
    "wire type 6": b"\x0e\x01",
    "field number 0": b"\x02\x00",
    "text": b"not protobuf at all",
    "JSON": b'{"resourceSpans":[]}',
    "10 000 values in each other": one_span(attribute(deep(10_000))),
    "a name that is not UTF-8": one_span(name="XXXX").replace(b"XXXX", b"\xff\xfe\xfd\xfc"),
    "a key that is not UTF-8": one_span(field(9, field(1, b"\xc0\x80"))),
    "a surrogate in UTF-8": one_span(name="XXX").replace(b"XXX", b"\xed\xa0\x80"),
    "gzip within": gzip.compress(ONE),
    "gzip within gzip within": gzip.compress(gzip.compress(bytes(10 * MIB))),
    "noise": random.Random(5).randbytes(10_000),
}

WARNED = {
    "a trace id of zeros": (one_span(trace_id=bytes(16)), "trace id all zero"),
    "a trace id of 15 bytes": (one_span(trace_id=b"t" * 15), "trace id of the wrong length"),
    "a trace id of 1 MB": (one_span(trace_id=b"t" * 1_000_000), "(1000000 bytes), expected 16 bytes"),
    "no span id": (one_span(span_id=b""), "span id of the wrong length"),
    "no times": (one_span(start_time_unix_nano=0, end_time_unix_nano=0), "has no start"),
    "an end before its start": (one_span(end_time_unix_nano=5), "ends before it starts"),
    "a field twice, the second wrong": (one_span(field(1, b"t")), "trace id of the wrong length"),
}

TOO_LARGE = {
    "a million empty spans": one_scope(b"\x12\x00" * 1_000_000),
    "a million spans of nearly nothing": one_scope(b"\x12\x02\x30\x01" * 1_000_000),
    "65 MiB": field(1, bytes(65 * MIB)),
}

CASES = (
    [(name, body, "stored") for name, body in STORED.items()]
    + [(name, body, "malformed") for name, body in MALFORMED.items()]
    + [(name, body, "too large") for name, body in TOO_LARGE.items()]
)


@pytest.mark.parametrize(("body", "answer"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_over_grpc(tmp_path: Path, body: bytes, answer: str) -> None:
    """The exact code, no RetryInfo, stored byte for byte or not at all; then the next request works."""

    async def main() -> None:
        async with receivers(tmp_path, intake=READ_ONCE) as running:
            if answer == "stored":
                assert await running.export(body) == b""
                assert await running.export(ONE) == b""
                assert running.stored() == [body, ONE]
                return
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await running.export(body)
            assert refusal.value.code() is GRPC[answer]
            metadata: Any = refusal.value.trailing_metadata()
            assert "grpc-status-details-bin" not in (metadata or {})
            assert await running.export(ONE) == b""
            assert running.stored() == [ONE]
            assert running.intake.admission.held_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize(("body", "answer"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("coding", ["", "gzip"])
def test_over_http(tmp_path: Path, body: bytes, answer: str, coding: str) -> None:
    """The same over HTTP, plain and compressed, with a Status."""
    sent = gzip.compress(body, 1) if coding else body

    async def main() -> None:
        async with receivers(tmp_path, intake=READ_ONCE) as running:
            said = await running.post(sent, content_encoding=coding)
            if answer == "stored":
                assert (said.status, said.body) == (200, b"")
            else:
                assert said.status == HTTP[answer]
                assert "expected" in said.said().message
            assert (await running.post(ONE)).status == 200
            assert running.stored() == ([body, ONE] if answer == "stored" else [ONE])
            assert running.intake.admission.held_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize(("body", "text"), WARNED.values(), ids=WARNED.keys())
def test_what_breaks_otlp_travels_on_with_a_warning(tmp_path: Path, body: bytes, text: str) -> None:
    """A6, A11: rejected 0, a message, the bytes stored; over both transports alike, and never above 4 MiB (A3)."""

    async def main() -> None:
        async with receivers(tmp_path, intake=READ_ONCE) as running:
            over_grpc = await running.export(body)
            over_http = await running.post(body)
            assert over_http.body == over_grpc
            assert len(over_grpc) <= 4 * MIB
            response = ExportTraceServiceResponse.FromString(over_grpc)
            assert response.partial_success.rejected_spans == 0
            assert text in response.partial_success.error_message
            assert running.stored() == [body, body]

    asyncio.run(main())


@pytest.mark.parametrize("signal", ["metrics", "logs", "profiles"])
@pytest.mark.parametrize("name", MALFORMED)
def test_the_other_signals_are_as_strict(tmp_path: Path, signal: str, name: str) -> None:
    """Passed through, but only what parses."""
    body = MALFORMED[name]
    try:
        BY_NAME[signal].request.FromString(body)
    except Exception:  # noqa: BLE001 - protobuf says what is malformed for this message
        expected = 400
    else:
        expected = 200

    async def main() -> None:
        async with receivers(tmp_path, intake=READ_ONCE) as running:
            assert (await running.post(body, signal)).status == expected

    asyncio.run(main())


JSON_BOMBS = {
    "arrays without end": (b"[" * 1_000_000, 400),
    "objects in each other": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "values in each other": (
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"k","value":'
        + b'{"arrayValue":{"values":[' * 150
        + b"]}}" * 150
        + b"}]}]}]}]}",
        400,
    ),
    "twenty million empty objects": (b'{"x":[' + b"{}," * 20_000_000 + b"{}]}", 413),
    "a number of a million digits": (b'{"resourceSpans":' + b"9" * 1_000_000 + b"}", 400),
    "a string for a number, of a million digits": (
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":"' + b"9" * 1_000_000 + b'"}]}]}]}',
        400,
    ),
    "duplicate keys": (b'{"resourceSpans":[],"resourceSpans":[]}', 200),
    "a gzip bomb": (gzip.compress(b'{"x":"' + b"a" * 200 * MIB, 1), 413),
}


@pytest.mark.parametrize(("body", "status"), JSON_BOMBS.values(), ids=JSON_BOMBS.keys())
def test_json_made_to_hurt(tmp_path: Path, body: bytes, status: int) -> None:
    """Depth, count and size are bounded; the Status is JSON too."""
    coding = "gzip" if body.startswith(b"\x1f\x8b") else ""

    async def main() -> None:
        async with receivers(tmp_path, intake=READ_ONCE) as running:
            said = await running.post(body, kind=JSON, content_encoding=coding)
            assert said.status == status
            assert len(said.body) < 1000
            assert (await running.post(ONE)).status == 200
            assert running.stored() == [ONE]

    asyncio.run(main())
