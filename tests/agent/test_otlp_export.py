"""The agent's export over real ports: retries, bounds, and receivers that are away, slow or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_agent.main import OTLP_INTERVAL_S
from joulegram_agent.otlp_export import MAX_BACKOFF_S, OtlpExport
from joulegram_agent.otlp_export_http import MAX_BODY_BYTES, Target, post, target_of
from joulegram_agent.otlp_export_payload import EnergySeries
from joulegram_pipeline.errors import ConfigError, UpstreamError
from simulators.agent_node import make_node, until
from simulators.certificates import Authority
from simulators.otlp_server import OtlpHttpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from simulators.agent_node import Node
    from simulators.otlp_server import HttpAnswer


def export_of(node: Node, port: int, **options: Any) -> OtlpExport:
    options.setdefault("interval_s", OTLP_INTERVAL_S)
    return OtlpExport(EnergySeries(node.agent.sampler, "h", "1"), target_of("x", f"http://127.0.0.1:{port}"), **options)


@asynccontextmanager
async def answering(reply: bytes | None) -> AsyncIterator[int]:
    """The port of a server that answers each request with these bytes, or never, until its client goes."""
    served: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        if reply is not None:
            writer.write(reply)
            writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, served))


def test_what_is_taken_is_not_sent_again(tmp_path: Path) -> None:
    """OTLP/HTTP: a POST of JSON to /v1/metrics; after a 200 only what is new is sent."""
    node = make_node(tmp_path)

    async def body(server: OtlpHttpServer) -> list[float]:
        export = export_of(node, server.port, interval_s=3)
        waits = [await export.export()]
        node.run(1)
        waits += [await export.export(), await export.export()]
        node.run(1)
        waits.append(await export.export())
        assert export.outcomes == {"sent": 2}
        return waits

    with OtlpHttpServer() as server:
        assert asyncio.run(body(server)) == [3, 3, 3, 3]
    assert [(path, headers["content-type"]) for path, headers, _ in server.calls] == [
        ("/v1/metrics", "application/json")
    ] * 2
    assert server.calls[0][1]["host"] == f"127.0.0.1:{server.port}"


ANSWERS: list[tuple[HttpAnswer, str]] = [
    ((200, {}, b""), "sent"),
    ((202, {}, b"not json"), "sent"),
    ((200, {}, b'{"partialSuccess":{}}'), "sent"),
    ((200, {}, b'{"partialSuccess":{"rejectedDataPoints":"2","errorMessage":"no"}}'), "partial"),
    ((200, {}, b'{"partialSuccess":[]}'), "sent"),
    ((400, {}, b"no"), "refused"),
    ((301, {"Location": "http://127.0.0.1:1/"}, b""), "refused"),
    ((500, {}, b""), "refused"),
    ((429, {}, b""), "failed"),
    ((502, {}, b""), "failed"),
    ((503, {}, b""), "failed"),
    ((504, {}, b""), "failed"),
]


@pytest.mark.parametrize(("reply", "outcome"), ANSWERS, ids=str)
def test_what_becomes_of_an_answer(tmp_path: Path, reply: HttpAnswer, outcome: str) -> None:
    """OTLP/HTTP: which codes are tried again, and what is lost by none of them: the next post has it all."""
    node = make_node(tmp_path)
    node.run(1)

    async def body(server: OtlpHttpServer) -> None:
        export = export_of(node, server.port)
        await export.export()
        assert export.outcomes == {outcome: 1}
        node.run(1)
        await export.export()

    with OtlpHttpServer(reply) as server:
        asyncio.run(body(server))
    assert b'"asDouble":20.0' in server.calls[1][2]


def test_failures_wait_longer_each_time_and_as_long_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff doubles up to a minute, spread by half; Retry-After is obeyed up to the same; success ends it."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    node = make_node(tmp_path)
    node.run(1)
    answers: list[HttpAnswer] = [(503, {}, b"")] * 8
    answers += [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "99999"}, b""), (200, {}, b"")]
    answers += [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, b"")]

    async def body(server: OtlpHttpServer) -> list[float]:
        export = export_of(node, server.port, interval_s=10)
        waits = []
        for _ in answers:
            waits.append(await export.export())
            node.run(1)
        return waits

    with OtlpHttpServer(*answers) as server:
        waits = asyncio.run(body(server))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 10, 7, 2]
    assert max(waits) == MAX_BACKOFF_S


def test_it_posts_by_itself_and_once_more_at_the_end(tmp_path: Path) -> None:
    """Entered it posts every interval; left, it posts what is new, and a receiver that is gone holds nothing up."""
    node = make_node(tmp_path)
    node.run(1)

    async def body(server: OtlpHttpServer) -> None:
        async with export_of(node, server.port, interval_s=0.01) as export:
            await until(lambda: export.outcomes["sent"] == 1)
            node.run(1)
            await until(lambda: export.outcomes["sent"] == 2)
        async with export_of(node, server.port, interval_s=1000) as export:
            node.run(1)
        assert export.outcomes == {"sent": 1}

    with OtlpHttpServer() as server:
        asyncio.run(body(server))
    node.run(1)

    async def gone() -> None:
        async with export_of(node, server.port, interval_s=1000) as export:
            pass
        assert export.outcomes == {"failed": 1}

    asyncio.run(gone())


HOSTILE = [
    b"",
    b"hello\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nshort",
    b"\x15\x03\x03\x00\x02\x02\x28",
]


@pytest.mark.parametrize("reply", HOSTILE, ids=range(len(HOSTILE)))
def test_nonsense_for_an_answer_is_a_failure(tmp_path: Path, reply: bytes) -> None:
    """Whatever answers, the export counts a failure and goes on."""
    node = make_node(tmp_path)
    node.run(1)

    async def body() -> None:
        async with answering(reply) as port:
            export = export_of(node, port)
            await export.export()
            assert export.outcomes == {"failed": 1}

    asyncio.run(body())


@pytest.mark.parametrize("length", [b"x", b"-1", b"%d" % (MAX_BODY_BYTES + 1), b"9" * 30])
def test_a_body_of_odd_length_is_not_read(tmp_path: Path, length: bytes) -> None:
    """An answer that claims more than it may, or nothing that is a number, counts by its status."""

    async def body() -> tuple[int, bytes]:
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + b"x" * 100) as port:
            reply = await post(Target("127.0.0.1", port, "/v1/metrics", tls=False), b"{}")
            return reply.status, reply.body

    assert asyncio.run(body()) == (200, b"")


def test_a_receiver_that_never_answers_holds_up_no_sample(tmp_path: Path) -> None:
    """Bounded in time: the attempt is given up, and meanwhile the loop runs on."""
    node = make_node(tmp_path)
    node.run(1)

    async def body() -> tuple[int, dict[str, int]]:
        async with answering(None) as port:
            export = export_of(node, port)
            attempt = asyncio.create_task(export.export(0.2))
            turns = 0
            while not attempt.done():
                turns += 1
                await asyncio.sleep(0)
            return turns, dict(export.outcomes)

    turns, outcomes = asyncio.run(body())
    assert outcomes == {"failed": 1}
    assert turns > 10


def test_tls_with_the_machines_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`https` is verified: an authority the machine knows is taken, another is a failure and nothing is sent."""
    known, other = Authority("known"), Authority("other")
    (tmp_path / "ca.pem").write_bytes(known.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    node = make_node(tmp_path)

    async def body(port: int) -> dict[str, int]:
        node.run(1)
        series = EnergySeries(node.agent.sampler, "h", "1")
        export = OtlpExport(series, target_of("x", f"https://127.0.0.1:{port}"), OTLP_INTERVAL_S)
        await export.export()
        return dict(export.outcomes)

    outcomes = []
    for authority in (known, other):
        cert, key = authority.issue().write(tmp_path / "tls")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        with OtlpHttpServer(context=context) as server:
            outcomes.append(asyncio.run(body(server.port)))
            outcomes.append({"calls": len(server.calls)})
    assert outcomes == [{"sent": 1}, {"calls": 1}, {"failed": 1}, {"calls": 0}]


TARGETS = [
    ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/metrics"),
    ("http://collector", "http://collector:4318/v1/metrics"),
    ("https://collector:443/otlp/", "https://collector:443/otlp/v1/metrics"),
    ("http://[::1]:4318", "http://[::1]:4318/v1/metrics"),
]


@pytest.mark.parametrize(("text", "expected"), TARGETS)
def test_endpoints(text: str, expected: str) -> None:
    """OTLP exporter, "Endpoint URLs for OTLP/HTTP": the signal's path goes behind the path there is."""
    assert str(target_of("x", text)) == expected


BAD = [
    "127.0.0.1:4318",
    "grpc://a:1",
    "http://",
    "http://a:b",
    "http://a:99999",
    "http://u:p@a",
    "http://a?b=c",
    "http://a#b",
    "http://a/ b",
    "http://" + "a" * 64,
    "",
]


@pytest.mark.parametrize("text", BAD)
def test_a_bad_endpoint_is_quoted(text: str) -> None:
    """The error names the flag and what was got."""
    with pytest.raises(ConfigError, match=re.escape(f"--otlp-endpoint: got {text!r}, expected a URL")):
        target_of("--otlp-endpoint", text)


def test_nobody_there_is_an_upstream_error() -> None:
    """The error names the URL."""
    with pytest.raises(UpstreamError, match=r"http://127\.0\.0\.1:1/v1/metrics"):
        asyncio.run(post(Target("127.0.0.1", 1, "/v1/metrics", tls=False), b"{}"))
