"""What an upstream's gRPC answer means, however oddly it is said ("gRPC over HTTP2"; otlp reference 1.2)."""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from joulegram_pipeline.http2_frames import WORD, Code, Flag, Kind, frame, header_block
from joulegram_sink.upstream_answer import MAX_RESPONSE_BYTES, Answer, Verdict
from simulators.http2_server import Peer, head, trailer, trailers_only
from simulators.http2_upstream import TAKEN, scripted, sender
from simulators.otlp_server import OtlpServer
from simulators.receivers import receivers, span, traces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARTIAL = ExportTraceServiceResponse(
    partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="no room")
).SerializeToString()


def answering(*parts: bytes) -> Callable[[Peer], None]:
    """A connection whose first call gets these frames, and whose second is taken."""

    def script(peer: Peer) -> None:
        assert peer.greet().request().stream_id == 1
        peer.send(*parts)
        peer.answer(peer.request().stream_id)

    return script


def data(compressed: int, message: bytes, flags: int = 0) -> bytes:
    """A message of stream 1, in one frame."""
    return frame(Kind.DATA, flags, 1, struct.pack(">BL", compressed, len(message)) + message)


def http(status: int, *fields: tuple[bytes, bytes], flags: int = 0) -> bytes:
    """The head of an answer that is none of gRPC's."""
    return frame(Kind.HEADERS, Flag.END_HEADERS | flags, 1, header_block(((b":status", b"%d" % status), *fields)))


def retry_info(seconds: int) -> bytes:
    """Details of a status, as bytes."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds)))
    return bytes(status_pb2.Status(code=14, message="x", details=[detail]).SerializeToString())


HTML = (b"content-type", b"text/html")
RETRY, SPLIT, REFUSED = Verdict.RETRY, Verdict.SPLIT, Verdict.REFUSED
DETAILS = base64.b64encode(retry_info(7)).decode()
assert DETAILS.endswith("=")

ANSWERS: dict[str, tuple[bytes, Answer]] = {
    "trailers alone": (trailers_only(1, grpc_status="0"), TAKEN),
    "trailers alone that refuse": (
        trailers_only(1, grpc_status="7", grpc_message="no"),
        Answer(REFUSED, "PERMISSION_DENIED", "no"),
    ),
    "words in per cent": (
        trailers_only(1, grpc_status="14", grpc_message="caf%C3%A9 100%25 %zz %"),
        Answer(RETRY, "UNAVAILABLE", "caf\u00e9 100% %zz %"),
    ),
    "words that are no UTF-8": (
        trailers_only(1, grpc_status="14", grpc_message="%FF"),
        Answer(RETRY, "UNAVAILABLE", "\ufffd"),
    ),
    "padded details": (
        trailers_only(1, grpc_status="14", grpc_status_details_bin=DETAILS),
        Answer(RETRY, "UNAVAILABLE", retry_after_s=7.0),
    ),
    "details without padding": (
        trailers_only(1, grpc_status="8", grpc_status_details_bin=DETAILS.rstrip("=")),
        Answer(RETRY, "RESOURCE_EXHAUSTED", retry_after_s=7.0),
    ),
    "details twice": (
        trailers_only(1, grpc_status="14", grpc_status_details_bin=",".join([DETAILS.rstrip("=")] * 2)),
        Answer(RETRY, "UNAVAILABLE", retry_after_s=7.0),
    ),
    "details that are none": (
        trailers_only(1, grpc_status="14", grpc_status_details_bin="a"),
        Answer(RETRY, "UNAVAILABLE"),
    ),
    "a code that is none": (trailers_only(1, grpc_status="99"), Answer(SPLIT, "UNKNOWN")),
    "a code that is no number": (trailers_only(1, grpc_status="OK"), Answer(SPLIT, "UNKNOWN")),
    "a partial success": (
        head(1) + data(0, PARTIAL) + trailer(1, grpc_status="0"),
        Answer(Verdict.TAKEN, said="no room", rejected=3),
    ),
    "one that is gzip": (
        head(1, (b"grpc-encoding", b"gzip")) + data(1, zlib.compress(PARTIAL, wbits=31)) + trailer(1, grpc_status="0"),
        Answer(Verdict.TAKEN, said="no room", rejected=3),
    ),
    "one that says gzip and is not": (head(1) + data(1, PARTIAL) + trailer(1, grpc_status="0"), TAKEN),
    "a bomb": (
        head(1)
        + data(1, zlib.compress(b"\x0a\x80\x80\x80\x08" + bytes(MAX_RESPONSE_BYTES * 4), wbits=31)[:16_000])
        + trailer(1, grpc_status="0"),
        TAKEN,
    ),
    "no message": (head(1) + trailer(1, grpc_status="0"), TAKEN),
    "no status": (
        head(1) + data(0, b"", Flag.END_STREAM),
        Answer(SPLIT, "UNKNOWN: the answer ended without grpc-status"),
    ),
    "no status in trailers": (
        head(1) + trailer(1, x="y"),
        Answer(SPLIT, "UNKNOWN: the answer ended without grpc-status"),
    ),
    "a page": (
        http(200, HTML) + frame(Kind.DATA, Flag.END_STREAM, 1, b"<html>welcome"),
        Answer(SPLIT, "UNKNOWN: HTTP 200 instead of an answer of gRPC", "<html>welcome"),
    ),
    "a page of a proxy whose server is away": (
        http(503, HTML) + frame(Kind.DATA, Flag.END_STREAM, 1, b"<html>sorry"),
        Answer(RETRY, "UNAVAILABLE: HTTP 503 instead of an answer of gRPC", "<html>sorry"),
    ),
    "a status behind a status of HTTP": (
        http(400, (b"grpc-status", b"14"), flags=Flag.END_STREAM),
        Answer(RETRY, "UNAVAILABLE"),
    ),
}

HTTP_CODES = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    418: "UNKNOWN",
    429: "UNAVAILABLE",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer(case: str) -> None:
    """And the connection serves the next call."""
    parts, expected = ANSWERS[case]
    with scripted(answering(parts)) as upstream:
        assert upstream.send() == expected
        assert upstream.send() == TAKEN


@pytest.mark.parametrize("status", HTTP_CODES)
def test_a_status_of_http(status: int) -> None:
    """As gRPC maps those of who does not speak it."""
    with scripted(answering(http(status, flags=Flag.END_STREAM))) as upstream:
        answers = upstream.send(), upstream.send()
        assert answers[1] == TAKEN
        assert answers[0].text == f"{HTTP_CODES[status]}: HTTP {status} instead of an answer of gRPC"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.NO_ERROR, Answer(SPLIT, "INTERNAL: the server ended the call with RST_STREAM (NO_ERROR)")),
        (Code.INTERNAL_ERROR, Answer(SPLIT, "INTERNAL: the server ended the call with RST_STREAM (INTERNAL_ERROR)")),
        (Code.CANCEL, Answer(RETRY, "CANCELLED: the server ended the call with RST_STREAM (CANCEL)")),
        (
            Code.ENHANCE_YOUR_CALM,
            Answer(SPLIT, "RESOURCE_EXHAUSTED: the server ended the call with RST_STREAM (ENHANCE_YOUR_CALM)"),
        ),
        (
            Code.INADEQUATE_SECURITY,
            Answer(REFUSED, "PERMISSION_DENIED: the server ended the call with RST_STREAM (INADEQUATE_SECURITY)"),
        ),
        (4711, Answer(SPLIT, "INTERNAL: the server ended the call with RST_STREAM (4711)")),
    ],
)
def test_a_stream_that_the_server_ends(code: int, expected: Answer) -> None:
    """As gRPC maps the codes of HTTP/2, within an answer too; the connection stays."""
    with scripted(answering(head(1), frame(Kind.RST_STREAM, 0, 1, WORD.pack(code)))) as upstream:
        assert upstream.send() == expected
        assert upstream.send() == TAKEN


def test_an_answer_that_stands_though_the_stream_is_reset() -> None:
    """NO_ERROR behind the trailers says that the rest of a request is not wanted."""
    reset = frame(Kind.RST_STREAM, 0, 1, WORD.pack(Code.NO_ERROR))
    with scripted(answering(trailers_only(1, grpc_status="0"), reset)) as upstream:
        assert [upstream.send(), upstream.send()] == [TAKEN, TAKEN]


INFLATE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda message: zlib.decompress(message, wbits=31),
    "zstd": lambda message: zstandard.ZstdDecompressor().decompress(message),
}


@pytest.mark.parametrize("compression", INFLATE)
def test_a_server_that_does_not_know_the_compression(compression: str) -> None:
    """It is sent to without from then on, what it refused at once."""
    sent = []

    def script(peer: Peer) -> None:
        peer.greet()
        for _ in range(3):
            call = peer.request()
            encoding = call.fields.get("grpc-encoding")
            sent.append((encoding, INFLATE[encoding](call.message) if encoding else call.message))
            if encoding:
                words = f"Compression algorithm {encoding} is not known"
                peer.send(trailers_only(call.stream_id, grpc_status="12", grpc_message=words))
            else:
                peer.answer(call.stream_id)

    with scripted(script, compression=compression) as upstream:
        refused = Answer(RETRY, "UNIMPLEMENTED", f"Compression algorithm {compression} is not known", retry_after_s=0.0)
        assert upstream.send(b"\x0a\x00") == refused
        assert [upstream.send(b"\x0a\x00"), upstream.send(b"\x0a\x00")] == [TAKEN, TAKEN]
    assert sent == [(compression, b"\x0a\x00"), (None, b"\x0a\x00"), (None, b"\x0a\x00")]


@pytest.mark.parametrize("compression", INFLATE)
def test_our_own_receiver_takes_each_compression(tmp_path: Path, compression: str) -> None:
    """A sidecar behind a sidecar: what was sent is what is stored, and nothing fell back to no compression."""
    body = traces(span(name="etl.job" + "x" * 10_000))

    async def main() -> None:
        async with receivers(tmp_path) as running:
            with sender(running.grpc_port, compression=compression) as upstream:
                answers = [await asyncio.to_thread(upstream.send, body) for _ in range(2)]
            assert answers == [TAKEN, TAKEN]
            assert running.stored() == [body, body]

    asyncio.run(main())


def test_a_server_of_grpc_that_has_no_zstd(caplog: pytest.LogCaptureFixture) -> None:
    """The C core of gRPC takes the header of zstd for a broken one; without it the same request is taken."""
    with OtlpServer() as server, sender(server.port, compression="zstd") as upstream:
        first = upstream.send(b"\x0a\x00")
        assert (first.verdict, first.text, first.retry_after_s) == (RETRY, "INTERNAL", 0.0)
        assert [upstream.send(b"\x0a\x00"), upstream.send(b"\x0a\x00")] == [TAKEN, TAKEN]
        assert server.taken == [("traces", b"\x0a\x00")] * 2
    assert "does not take zstd: it is sent to without" in caplog.text
