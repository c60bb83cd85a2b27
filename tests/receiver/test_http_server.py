"""OTLP/HTTP in: H1-H10 of the otlp reference, over real sockets and with real clients."""

from __future__ import annotations

import asyncio
import errno
import gzip
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import zlib
from threading import Event
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import zstandard
from google.rpc import code_pb2
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from joulegram_pipeline.errors import BusyError, ConfigError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.admission import Admission
from joulegram_receiver.http_server import HttpReceiver
from joulegram_receiver.otlp_json import to_otlp_json
from simulators.receivers import BY_NAME, JSON, PROTOBUF, TIMEOUT_S, Receivers, receivers, requests, span, traces

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


def test_one_connection_serves_many_requests(tmp_path: Path) -> None:
    """Keep-alive, across successes and refusals."""

    async def main() -> None:
        async with receivers(tmp_path) as running:

            def client() -> list[int]:
                connection = http.client.HTTPConnection("127.0.0.1", running.http_port, timeout=TIMEOUT_S)
                found = []
                for body in (ONE, b"\xff", ONE, ONE):
                    connection.request("POST", "/v1/traces", body, {"content-type": PROTOBUF})
                    begun = connection.sock
                    response = connection.getresponse()
                    response.read()
                    found.append(response.status)
                    assert connection.sock is begun
                connection.close()
                return found

            assert await asyncio.to_thread(client) == [200, 400, 200, 200]
            assert len(running.stored()) == 3

    asyncio.run(main())


def test_requests_that_follow_each_other_unasked_are_answered_in_order(tmp_path: Path) -> None:
    """Pipelining, as old clients do it."""
    head = "POST {} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n{}\r\n{{}}"
    first = head.format("/v1/traces", "").encode()
    second = head.format("/v1/nowhere", "connection: close\r\n").encode()

    async def main() -> None:
        async with receivers(tmp_path) as running:
            said = await running.raw(first + first + second)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"200", b"404"]

    asyncio.run(main())


FRAMED = {
    "a length": b"content-length: %d\r\n\r\n%b" % (len(ONE), ONE),
    "chunks": b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ONE), ONE),
}


@pytest.mark.parametrize("framed", FRAMED.values(), ids=FRAMED.keys())
@pytest.mark.parametrize("cut", [None, 40, 150, -5], ids=["whole", "in the head", "behind the offer", "in the body"])
def test_an_offer_of_http2_is_not_taken_and_the_request_is(tmp_path: Path, framed: bytes, cut: int | None) -> None:
    """Clients that would rather speak h2c (Java's) send their first request so, with a body; it must not get lost."""
    request = (
        b"POST /v1/traces HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
        b"http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\ncontent-type: application/x-protobuf\r\n" + framed
    )

    async def main() -> None:
        async with receivers(tmp_path) as running:

            def client() -> bytes:
                with socket.create_connection(("127.0.0.1", running.http_port), TIMEOUT_S) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if cut is not None:
                        connection.sendall(request[:cut])
                    connection.sendall(request[cut or 0 :])
                    said = connection.recv(1 << 16)
                    connection.sendall(request)
                    return said + connection.recv(1 << 16)

            said = await asyncio.to_thread(client)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"200"]
            assert running.stored() == [ONE, ONE]

    asyncio.run(main())


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_the_sdk_exporter_is_served(tmp_path: Path, compression: Compression) -> None:
    """The real Python HTTP/protobuf exporter delivers its spans."""

    async def main() -> None:
        async with receivers(tmp_path) as running:

            def job() -> bool:
                endpoint = f"http://127.0.0.1:{running.http_port}/v1/traces"
                provider = TracerProvider()
                exporter = OTLPSpanExporter(endpoint, compression=compression)
                provider.add_span_processor(BatchSpanProcessor(exporter))
                with provider.get_tracer("t").start_as_current_span("etl.job"):
                    pass
                flushed: bool = provider.force_flush()
                provider.shutdown()
                return flushed

            assert await asyncio.to_thread(job)
            (payload,) = running.stored()
            message = ExportTraceServiceRequest.FromString(payload)
            assert [found.name for found in message.resource_spans[0].scope_spans[0].spans] == ["etl.job"]

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "options",
    [["-H", "Expect: 100-continue"], ["-H", "Expect:", "-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]],
)
def test_curl_is_served(tmp_path: Path, options: list[str]) -> None:
    """Expect: 100-continue, chunked and plain; the first gets its interim answer."""
    body = tmp_path / "request.pb"
    body.write_bytes(traces(*(span(name="n" * 500) for _ in range(4000))))

    async def main() -> None:
        async with receivers(tmp_path / "spool") as running:
            command = ["curl", "-sv", "-m", "10", "--data-binary", f"@{body}", "-H", f"Content-Type: {PROTOBUF}"]
            command += [*options, f"http://127.0.0.1:{running.http_port}/v1/traces"]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "HTTP/1.1 200 OK" in done.stderr
            assert ("HTTP/1.1 100 Continue" in done.stderr) == ("100-continue" in options[1])
            assert running.stored() == [body.read_bytes()]

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_who_asks_before_sending_is_told_before_sending(tmp_path: Path) -> None:
    """Expect: 100-continue of a body that is too large: 413, and the body is never sent."""
    body = tmp_path / "request.pb"
    body.write_bytes(bytes(2_000_000))

    async def main() -> None:
        async with receivers(tmp_path / "spool", intake={"max_request_bytes": 1000}) as running:
            command = ["curl", "-sv", "-m", "10", "--data-binary", f"@{body}", "-H", f"Content-Type: {PROTOBUF}"]
            command += ["--expect100-timeout", "9", "-H", "Expect: 100-continue", "-w", "%{size_upload}"]
            command += [f"http://127.0.0.1:{running.http_port}/v1/traces", "-o", str(tmp_path / "answer")]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
            assert "HTTP/1.1 413" in done.stderr
            assert done.stdout == "0"

    asyncio.run(main())


def test_no_acknowledgement_before_the_sync(tmp_path: Path) -> None:
    """The answer does not come while fdatasync has not."""
    begun, go = Event(), Event()

    def sync(fd: int) -> None:
        begun.set()
        assert go.wait(20)
        os.fdatasync(fd)

    async def main() -> None:
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync)) as running:
            call = asyncio.create_task(running.post(ONE))
            assert await asyncio.to_thread(begun.wait, 20)
            done, _ = await asyncio.wait([call], timeout=0.2)
            assert not done
            go.set()
            assert (await call).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_a_disk_that_fails_is_503_with_retry_after(tmp_path: Path, kind: str) -> None:
    """H7: what is not on disk is not acknowledged; the client tries again."""

    def sync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync)) as running:
            answer = await running.post(ONE if kind == PROTOBUF else as_json("traces", ONE), kind=kind)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.said().code == code_pb2.UNAVAILABLE
            (detail,) = answer.details()
            assert detail.retry_delay.seconds == 1
            assert running.metric("refused_requests", signal="traces", reason="storage") == 1

    asyncio.run(main())


@pytest.mark.parametrize("over", ["http", "grpc"])
def test_a_backlog_refuses_and_says_how_long(tmp_path: Path, over: str) -> None:
    """Admission: refused before it is parsed, with a delay that says how full things are."""
    full = [1.0]
    admission = Admission(backlog=lambda: full[0])

    async def refusal(running: Receivers) -> int:
        if over == "http":
            answer = await running.post(b"\xff")
            assert answer.status == 503
            return int(answer.headers["retry-after"])
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.export(b"\xff")
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        return 30

    async def main() -> None:
        async with receivers(tmp_path, intake={"admission": admission}) as running:
            assert await refusal(running) == 30
            assert running.metric("refused_requests", signal="traces", reason="busy") == 1
            full[0] = 0.5
            assert (await running.post(ONE)).status == 200
            assert admission.held_bytes == 0

    asyncio.run(main())


def test_requests_in_flight_are_bounded(tmp_path: Path) -> None:
    """While one is held by a slow disk there is no room for another of its size, and there is after."""
    begun, go = Event(), Event()
    request = traces(span(name="n" * 5000))

    def sync(fd: int) -> None:
        begun.set()
        assert go.wait(20)

    async def main() -> None:
        options = {"admission": Admission(len(request) + 100)}
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync), intake=options) as running:
            first = asyncio.create_task(running.post(request))
            assert await asyncio.to_thread(begun.wait, 20)
            for body in (request, [request]):
                answer = await running.post(body)
                assert answer.status == 503
                assert f"{len(request)} bytes of requests are in flight" in answer.said().message
            go.set()
            assert (await first).status == 200
            assert (await running.post(request)).status == 200

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


def test_a_request_under_way_at_stop_is_answered(tmp_path: Path) -> None:
    """Leaving gives requests under way their grace."""
    begun, go = Event(), Event()

    def sync(fd: int) -> None:
        begun.set()
        assert go.wait(20)
        os.fdatasync(fd)

    async def main() -> None:
        async with receivers(tmp_path, log=WriteAheadLog(tmp_path, sync=sync), http_options={"grace_s": 5}) as running:
            call = asyncio.create_task(running.post(ONE))
            assert await asyncio.to_thread(begun.wait, 20)
            asyncio.get_running_loop().call_later(0.1, go.set)
        assert (await call).status == 200

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
