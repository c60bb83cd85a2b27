"""OTLP/HTTP in: what is taken and how the rest is refused (H1-H10 of the otlp reference), over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from google.rpc import code_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from joulegram_pipeline.errors import BusyError, ConfigError
from joulegram_pipeline.metrics import Metrics
from joulegram_receiver.http_server import HttpReceiver
from joulegram_receiver.otlp_json import to_otlp_json
from simulators.receivers import BY_NAME, JSON, PROTOBUF, receivers, requests, span, traces

if TYPE_CHECKING:
    from pathlib import Path

ONE = traces(span())


def as_json(signal: str, request: bytes) -> bytes:
    return json.dumps(to_otlp_json(BY_NAME[signal].request.FromString(request))).encode()


@pytest.mark.parametrize("signal", BY_NAME)
@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_every_signal_is_taken_in_either_encoding(tmp_path: Path, signal: str, kind: str) -> None:
    """H1, H2, A5: one port, four paths; the answer has the type of the request and says nothing but yes."""
    request = requests()[signal]
    body = request if kind == PROTOBUF else as_json(signal, request)

    async def main() -> None:
        async with receivers(tmp_path) as running:
            answer = await running.post(body, signal, kind)
            assert (answer.status, answer.headers["content-type"]) == (200, kind)
            assert answer.body == (b"" if kind == PROTOBUF else b"{}")
            assert [(record.kind, record.payload) for record in running.records()] == [(BY_NAME[signal].kind, request)]
            assert running.metric("accepted_requests", signal=signal) == 1

    asyncio.run(main())


@pytest.mark.parametrize("signal", BY_NAME)
def test_an_empty_request_succeeds_and_is_not_stored(tmp_path: Path, signal: str) -> None:
    """A4, in both encodings."""

    async def main() -> None:
        async with receivers(tmp_path) as running:
            assert (await running.post(b"", signal)).status == 200
            assert (await running.post(b"{}", signal, JSON)).body == b"{}"
            assert running.stored() == []

    asyncio.run(main())


CODINGS = {
    "gzip": ("gzip", gzip.compress(ONE)),
    "gzip of two members": ("gzip", gzip.compress(ONE[:9]) + gzip.compress(ONE[9:])),
    "x-gzip": ("x-gzip", gzip.compress(ONE)),
    "GZIP": ("GZIP", gzip.compress(ONE)),
    "deflate": ("deflate", zlib.compress(ONE)),
    "zstd": ("zstd", zstandard.compress(ONE)),
    "zstd of two frames": ("zstd", zstandard.compress(ONE[:9]) + zstandard.compress(ONE[9:])),
    "identity": ("identity", ONE),
}


@pytest.mark.parametrize(("coding", "body"), CODINGS.values(), ids=CODINGS.keys())
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_content_codings(tmp_path: Path, coding: str, body: bytes, chunked: bool) -> None:
    """A1, H3, H10: gzip must be taken, zstd and deflate are as well; chunks may end anywhere."""

    async def main() -> None:
        async with receivers(tmp_path) as running:
            sent: Any = [body[at : at + 7] for at in range(0, len(body), 7)] if chunked else body
            assert (await running.post(sent, content_encoding=coding)).status == 200
            assert running.stored() == [ONE]

    asyncio.run(main())


REFUSED: dict[str, tuple[str, str, dict[str, str], bytes, int, int, str]] = {
    "an unknown path": ("POST", "/v1/trace", {}, b"", 404, code_pb2.NOT_FOUND, "got '/v1/trace', expected one of"),
    "the root": ("POST", "/", {}, b"", 404, code_pb2.NOT_FOUND, "got '/'"),
    "a GET": ("GET", "/v1/traces", {}, b"", 405, code_pb2.UNIMPLEMENTED, "got GET, expected POST"),
    "an OPTIONS without CORS": ("OPTIONS", "/v1/logs", {}, b"", 405, code_pb2.UNIMPLEMENTED, "got OPTIONS"),
    "no media type": ("POST", "/v1/traces", {}, ONE, 415, code_pb2.INVALID_ARGUMENT, "content-type: got ''"),
    "a form": (
        "POST",
        "/v1/traces",
        {"content-type": "text/plain"},
        ONE,
        415,
        code_pb2.INVALID_ARGUMENT,
        "content-type: got 'text/plain', expected application/x-protobuf or application/json",
    ),
    "an unknown coding": (
        "POST",
        "/v1/traces",
        {"content-type": PROTOBUF, "content-encoding": "br"},
        ONE,
        415,
        code_pb2.INVALID_ARGUMENT,
        "content-encoding: got 'br', expected gzip, zstd, deflate or none",
    ),
    "two codings": (
        "POST",
        "/v1/traces",
        {"content-type": JSON, "content-encoding": "gzip, gzip"},
        ONE,
        415,
        code_pb2.INVALID_ARGUMENT,
        "content-encoding: got 'gzip, gzip'",
    ),
    "a length that lies": (
        "POST",
        "/v1/traces",
        {"content-type": PROTOBUF},
        b"\x0a\xff\x01abc",
        400,
        code_pb2.INVALID_ARGUMENT,
        "got 6 bytes beginning '0aff01616263', expected a opentelemetry.proto.collector.trace.v1",
    ),
    "what is not JSON": (
        "POST",
        "/v1/logs",
        {"content-type": JSON},
        b"{",
        400,
        code_pb2.INVALID_ARGUMENT,
        "got 1 bytes that are not JSON",
    ),
    "an id that is not hex": (
        "POST",
        "/v1/traces",
        {"content-type": JSON},
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{},{"traceId":"xyz"}]}]}]}',
        400,
        code_pb2.INVALID_ARGUMENT,
        "resourceSpans[0].scopeSpans[0].spans[1].traceId: got 'xyz', expected 32 hex digits",
    ),
}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code", "text"), REFUSED.values(), ids=REFUSED.keys()
)
def test_a_refusal_is_a_status_in_the_encoding_of_the_request(
    tmp_path: Path, method: str, path: str, headers: dict[str, str], body: bytes, status: int, code: int, text: str
) -> None:
    """H5, H6: every 4xx has a google.rpc.Status; the connection and the server live on."""

    async def main() -> None:
        async with receivers(tmp_path) as running:
            answer = await running.ask(method, path, body, headers)
            assert answer.status == status
            expected = JSON if headers.get("content-type") == JSON else PROTOBUF
            assert answer.headers["content-type"] == expected
            said = answer.said()
            assert said.code == code
            assert text in said.message
            assert answer.headers.get("allow") == ("POST" if status == 405 else None)
            if status == 400:
                (detail,) = answer.details()
                field = text.partition(":")[0] if text.startswith("resourceSpans") else ""
                assert [violation.field for violation in detail.field_violations] == [field]
            assert "retry-after" not in answer.headers
            assert running.stored() == []
            counted = 1 if status == 415 else None
            assert running.metric("refused_requests", signal="traces", reason="media_type") == counted
            assert (await running.post(ONE)).status == 200

    asyncio.run(main())


def test_spans_that_break_otlp_are_named_in_either_encoding(tmp_path: Path) -> None:
    """A6: 200 with partial_success as a warning: rejected stays 0, the bytes are stored."""
    request = traces(span(name="anonymous", trace_id=bytes(16)))
    text = (
        f'span "anonymous": trace id all zero: trace_id={"00" * 16!r}, expected 16 bytes not all zero; '
        "forwarded without energy"
    )

    async def main() -> None:
        async with receivers(tmp_path) as running:
            answer = await running.post(request)
            response = ExportTraceServiceResponse.FromString(answer.body)
            assert (answer.status, response.partial_success.rejected_spans) == (200, 0)
            assert response.partial_success.error_message == text
            answer = await running.post(as_json("traces", request), kind=JSON)
            assert (answer.status, json.loads(answer.body)) == (200, {"partialSuccess": {"errorMessage": text}})
            assert running.stored() == [request, request]

    asyncio.run(main())


@pytest.mark.parametrize("accepts", ["gzip", "deflate, gzip;q=0.5", "gzip;q=0", ""])
def test_a_long_answer_is_compressed_for_those_who_take_it(tmp_path: Path, accepts: str) -> None:
    """H3: only above a size, only where Accept-Encoding says so."""
    request = traces(*(span(name=f"n{i}" * 40, span_id=b"") for i in range(9)))

    async def main() -> None:
        async with receivers(tmp_path) as running:
            answer = await running.post(request, accept_encoding=accepts)
            packed = answer.headers.get("content-encoding") == "gzip"
            assert packed == (accepts in {"gzip", "deflate, gzip;q=0.5"})
            body = gzip.decompress(answer.body) if packed else answer.body
            assert len(body) > 512
            assert ExportTraceServiceResponse.FromString(body).partial_success.error_message
            short = await running.post(ONE, accept_encoding=accepts)
            assert "content-encoding" not in short.headers

    asyncio.run(main())


def test_listed_headers_travel_with_the_request(tmp_path: Path) -> None:
    """Metadata: only what is listed, over both transports, sorted; bytes of a value that cannot travel are refused."""
    keys = frozenset({"x-tenant", "authorization"})

    async def main() -> None:
        async with receivers(tmp_path, intake={"metadata_keys": keys}) as running:
            await running.post(ONE, X_Tenant="a", Authorization="b", X_Other="c")
            await running.export(ONE, metadata=(("x-tenant", "a"), ("x-tenant", "A"), ("x-more", "c")))
            assert [record.metadata for record in running.records()] == [
                (("authorization", "b"), ("x-tenant", "a")),
                (("x-tenant", "A"), ("x-tenant", "a")),
            ]
            answer = await running.post(ONE, X_Tenant="caf\xe9")
            assert (answer.status, answer.said().message) == (
                400,
                "header x-tenant: got 4 characters, expected printable ASCII only",
            )
            answer = await running.post(ONE, X_Tenant="a" * 9000)
            assert answer.status == 413

    asyncio.run(main())


def test_an_application_around_it_sees_every_request(tmp_path: Path) -> None:
    """`wrap` is where access control goes."""

    def wrap(app: Any) -> Any:
        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            if dict(scope["headers"]).get(b"x-token") == b"right":
                await app(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        return guarded

    async def main() -> None:
        async with receivers(tmp_path, http_options={"wrap": wrap}) as running:
            assert (await running.post(ONE)).status == 401
            assert (await running.post(ONE, X_Token="right")).status == 200

    asyncio.run(main())


def test_a_port_that_is_taken_and_an_endpoint_that_is_none(tmp_path: Path) -> None:
    """Errors name the key or the endpoint; nothing is left open."""

    async def main() -> None:
        async with receivers(tmp_path) as running:
            endpoint = f"127.0.0.1:{running.http_port}"
            with pytest.raises(BusyError, match=f"{endpoint}: another process listens"):
                async with HttpReceiver(endpoint, running.intake, Metrics()):
                    pass
            with pytest.raises(ConfigError, match=r"receiver\.protocols\.http\.endpoint: got ':4318'"):
                async with HttpReceiver(":4318", running.intake, Metrics()):
                    pass
            assert (await running.post(ONE)).status == 200

    asyncio.run(main())


def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    """unix:/path works like a port, and its file is gone at the end."""
    path = tmp_path / "otlp.sock"

    async def main() -> None:
        async with (
            receivers(tmp_path / "spool") as running,
            HttpReceiver(f"unix:{path}", running.intake, Metrics()) as receiver,
        ):
            assert receiver.port == 0

            def client() -> bytes:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.connect(str(path))
                    connection.sendall(
                        b"POST /v1/traces HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
                        b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
                    )
                    return connection.recv(1 << 16)

            assert (await asyncio.to_thread(client)).startswith(b"HTTP/1.1 200 OK")

    asyncio.run(main())
    assert not path.exists()
