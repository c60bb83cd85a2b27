"""OTLP 1.11 over HTTP: rows H1 to H10 of the otlp reference, section 1.3, seen on the wire."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import code_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from joulegram_receiver.admission import Admission
from receiver.conformance.hop import Hop, one_span
from simulators.receivers import BY_NAME, JSON, PROTOBUF, Body, receivers, requests

if TYPE_CHECKING:
    from pathlib import Path

    from simulators.receivers import Answer

MIB = 1024 * 1024
PATHS = {
    "traces": "/v1/traces",
    "metrics": "/v1/metrics",
    "logs": "/v1/logs",
    "profiles": "/v1development/profiles",
}


def document(**span: Any) -> bytes:
    """A trace request in JSON, of one span with these members."""
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()


@pytest.mark.parametrize("signal", PATHS)
def test_h01_each_signal_has_its_path(hop: Hop, signal: str) -> None:
    """H1: POST, and what was taken goes on."""
    request = requests()[signal] if signal != "traces" else one_span("h01")
    assert hop.ask("POST", PATHS[signal], request, {"content-type": PROTOBUF}).status == 200
    hop.forwards(request, signal)


@pytest.mark.parametrize("kind", [PROTOBUF, JSON, "application/json; charset=utf-8", " APPLICATION/X-PROTOBUF ;a=b"])
def test_h02_both_encodings_on_one_port_answered_in_their_own(hop: Hop, kind: str) -> None:
    """H2, MUST: parameters and letter case do not matter."""
    answer = hop.post(b"{}" if "json" in kind else one_span("h02"), kind=kind)
    assert (answer.status, answer.headers["content-type"]) == (200, JSON if "json" in kind else PROTOBUF)


def test_h03_gzip_is_taken_and_given_to_who_asks(hop: Hop) -> None:
    """H3, MUST; an answer that is long enough is compressed too, where Accept-Encoding names gzip."""
    request = one_span("etl.h03 " + "n" * 80, span_id=b"") * 9
    packed = hop.post(gzip.compress(request), content_encoding="gzip", accept_encoding="gzip")
    assert (packed.status, packed.headers["content-encoding"]) == (200, "gzip")
    plain = hop.post(request)
    assert "content-encoding" not in plain.headers
    assert ExportTraceServiceResponse.FromString(gzip.decompress(packed.body)).partial_success.error_message
    hop.forwards(request, times=2)


TOO_LARGE: dict[str, tuple[Body, str]] = {
    "a length": (bytes(64 * MIB + 1), ""),
    "chunks": ([bytes(MIB)] * 65, ""),
    "gzip": (gzip.compress(bytes(200 * MIB), 1), "gzip"),
}


@pytest.mark.parametrize(("body", "coding"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_h04_too_large_is_413(hop: Hop, body: Body, coding: str, kind: str) -> None:
    """H4, MUST: with a Status, and nothing that tells the client to try again."""
    answer = hop.post(body, kind=kind, content_encoding=coding)
    assert (answer.status, answer.headers["content-type"]) == (413, kind)
    assert (answer.said().code, list(answer.said().details)) == (code_pb2.RESOURCE_EXHAUSTED, [])
    assert "retry-after" not in answer.headers


REFUSED: dict[str, tuple[str, str, dict[str, str], bytes, int]] = {
    "400, protobuf": ("POST", "/v1/traces", {"content-type": PROTOBUF}, b"\xff", 400),
    "400, JSON": ("POST", "/v1/traces", {"content-type": JSON}, b"\xff", 400),
    "404": ("POST", "/v1/spans", {"content-type": JSON}, b"{}", 404),
    "405": ("GET", "/v1/traces", {}, b"", 405),
    "415, of a type": ("POST", "/v1/traces", {"content-type": "text/plain"}, b"", 415),
    "415, of a coding": ("POST", "/v1/logs", {"content-type": JSON, "content-encoding": "br"}, b"", 415),
    "431": ("POST", "/v1/traces", {"content-type": JSON, "x": "a" * 20_000}, b"{}", 431),
}


@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_h05_every_refusal_has_a_status(
    hop: Hop, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """H5, MUST: in the encoding of the request, and in protobuf where it names none."""
    answer = hop.ask(method, path, body, headers)
    kind = headers.get("content-type")
    # What is refused before its headers were read to the end has no type that is known.
    expected = {kind} if kind in {PROTOBUF, JSON} else {PROTOBUF}
    assert answer.status == status
    assert answer.headers["content-type"] in expected
    assert answer.said().code
    assert "expected" in answer.said().message


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [(PROTOBUF, b"\x0a\x7f", ""), (JSON, document(traceId="xyz"), "resourceSpans[0].scopeSpans[0].spans[0].traceId")],
)
def test_h06_what_cannot_be_decoded_is_400_with_a_bad_request(hop: Hop, kind: str, body: bytes, field: str) -> None:
    """H6, MUST 400, SHOULD details: JSON has the path to what is wrong."""
    answer = hop.post(body, kind=kind)
    assert answer.status == 400
    (detail,) = answer.details()
    assert [violation.field for violation in detail.field_violations] == [field]


def test_h07_backpressure_is_503_with_retry_after(tmp_path: Path) -> None:
    """H7: one of the four codes that clients try again, with seconds, and the same in the Status."""

    async def main() -> tuple[Answer, Answer]:
        full = [1.0]
        async with receivers(tmp_path, intake={"admission": Admission(backlog=lambda: full[0])}) as running:
            refused = await running.post(one_span("h07"))
            full[0] = 0.0
            return refused, await running.post(one_span("h07"))

    refused, taken = asyncio.run(main())
    assert (refused.status, taken.status) == (503, 200)
    (detail,) = refused.details()
    assert 1 <= int(refused.headers["retry-after"]) == detail.retry_delay.seconds <= 30


def test_h08_http_1_1_has_a_port_of_its_own(hop: Hop) -> None:
    """H8, MAY: gRPC and HTTP are apart, and a connection serves many requests."""
    assert hop.http_port != int(hop.target.rpartition(":")[2])
    assert "connection" not in hop.post(one_span("h08")).headers


TRACE, SPAN = "5B8EFFF798038103D269B633813FC60C", "eee19b7ec3c1B174"


def test_h09_ids_are_hex_of_either_case(hop: Hop) -> None:
    """H9: and what goes on is the protobuf of it."""
    assert hop.post(document(name="h09 ids", traceId=TRACE, spanId=SPAN, startTimeUnixNano=1), kind=JSON).status == 200
    span = hop.forwarded("h09 ids")
    assert (span.trace_id.hex(), span.span_id.hex()) == (TRACE.lower(), SPAN.lower())
    in_base64 = base64.b64encode(bytes.fromhex(TRACE)).decode()
    assert hop.post(document(traceId=in_base64), kind=JSON).status == 400


@pytest.mark.parametrize("signal", BY_NAME)
def test_h09_unknown_names_are_ignored(hop: Hop, signal: str) -> None:
    """H9, MUST: names with underscores are such, because names are in lowerCamelCase only."""
    assert hop.post(b'{"later": {"x": [1]}, "resource_spans": 5}', signal, JSON).status == 200


@pytest.mark.parametrize("number", [7, "7", 7.0, 2**63, str(2**63)])
def test_h09_64_bit_integers_are_numbers_or_strings(hop: Hop, number: float | str) -> None:
    """H9: either is taken, to the last bit."""
    name = f"h09 {number!r}"
    assert hop.post(document(name=name, endTimeUnixNano=number), kind=JSON).status == 200
    assert hop.forwarded(name).end_time_unix_nano == int(number)


def test_h09_enums_are_integers_only(hop: Hop) -> None:
    """H9: an integer nobody knows yet goes on; a name is refused."""
    assert hop.post(document(name="h09 enum", kind=77), kind=JSON).status == 200
    assert hop.forwarded("h09 enum").kind == 77
    assert hop.post(document(kind="SPAN_KIND_SERVER"), kind=JSON).status == 400


def test_h09_bytes_stay_base64(hop: Hop) -> None:
    """H9: only ids are hex."""
    pair = {"key": "k", "value": {"bytesValue": "+/8="}}
    assert hop.post(document(name="h09 bytes", attributes=[pair]), kind=JSON).status == 200
    assert hop.forwarded("h09 bytes").attributes[0].value.bytes_value == b"\xfb\xff"


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_h10_a_body_may_come_in_chunks(hop: Hop, kind: str) -> None:
    """H10: without a length, cut anywhere."""
    name = f"h10 {kind}"
    body = one_span(name) if kind == PROTOBUF else document(name=name)
    answer = hop.post([body[at : at + 5] for at in range(0, len(body), 5)], kind=kind)
    assert answer.status == 200
    assert hop.forwarded(name)
