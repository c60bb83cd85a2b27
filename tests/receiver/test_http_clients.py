"""How clients of OTLP/HTTP use a connection: real ones, old ones, and those who ask before they send."""

from __future__ import annotations

import asyncio
import http.client
import re
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from simulators.receivers import PROTOBUF, TIMEOUT_S, receivers, span, traces

if TYPE_CHECKING:
    from pathlib import Path

ONE = traces(span())


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
