"""The upstream over HTTP/protobuf (otlp reference 1.3)."""

from __future__ import annotations

import asyncio
import json
import zlib
from email.utils import formatdate
from threading import Event
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from google.rpc import status_pb2

from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.records import RecordKind
from joulegram_sink.upstream_answer import MAX_ASKED_WAIT_S, retry_after_s
from joulegram_sink.upstream_destination import Tls
from simulators.forwarding import BUDGET_S, destination, forwarding, names, request
from simulators.otlp_server import OtlpHttpServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from simulators.forwarding import Forwarding


def run(
    tmp_path: Path,
    server: OtlpHttpServer,
    *requests: bytes,
    check: Callable[[Forwarding], None] = lambda forward: None,
    **options: Any,
) -> None:
    """Forward `requests` to the server and check what came of it."""

    async def main() -> None:
        there = destination(f"http://127.0.0.1:{server.port}", **options)
        async with forwarding(tmp_path, there, put=requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            check(forward)

    with server:
        asyncio.run(main())


def test_posts_protobuf_to_the_signals_path(tmp_path: Path) -> None:
    """H1, H2: /v1/traces and its siblings, application/x-protobuf, nothing compressed on loopback."""
    server = OtlpHttpServer()

    async def main() -> None:
        async with forwarding(tmp_path, destination(f"http://127.0.0.1:{server.port}/base")) as forward:
            for kind in (RecordKind.TRACES, RecordKind.METRICS, RecordKind.LOGS, RecordKind.PROFILES):
                forward.put(b"\x0a\x00", metadata=(("x-tenant", "red"),), kind=kind)
            assert await forward.upstream.drain(BUDGET_S)

    with server:
        asyncio.run(main())
    paths = [path for path, _, _ in server.calls]
    assert sorted(paths) == ["/base/v1/logs", "/base/v1/metrics", "/base/v1/traces", "/base/v1development/profiles"]
    for _, headers, body in server.calls:
        assert (headers["content-type"], headers["x-tenant"], body) == ("application/x-protobuf", "red", b"\x0a\x00")
        assert (headers["user-agent"], "content-encoding" in headers) == ("joulegram", False)


def test_a_signal_can_have_a_url_of_its_own(tmp_path: Path) -> None:
    """`traces_endpoint` is used as it is; the other signals go below the endpoint."""
    other = OtlpHttpServer()
    server = OtlpHttpServer()
    with other:
        own = (("traces", f"http://127.0.0.1:{other.port}/api/otlp"),)
        run(tmp_path, server, request("a"), signal_endpoints=own)
    assert [path for path, _, _ in other.calls] == ["/api/otlp"]
    assert server.calls == []


@pytest.mark.parametrize(
    ("compression", "inflate"),
    [("gzip", lambda data: zlib.decompress(data, 31)), ("zstd", zstandard.ZstdDecompressor().decompress)],
    ids=["gzip", "zstd"],
)
def test_compression(tmp_path: Path, compression: str, inflate: Callable[[bytes], bytes]) -> None:
    """The body is compressed and says so."""
    server = OtlpHttpServer()
    run(tmp_path, server, request("n" * 10_000), compression=compression)
    ((_, headers, body),) = server.calls
    assert (headers["content-encoding"], inflate(body)) == (compression, request("n" * 10_000))
    assert len(body) < 1000


def test_a_server_that_does_not_know_the_compression_gets_none(tmp_path: Path) -> None:
    """415 with an encoding: the encoding is left away from then on, nothing is put aside."""

    def check(forward: Forwarding) -> None:
        assert not forward.deadletter.exists()

    server = OtlpHttpServer((415, {}, b""))
    run(tmp_path, server, request("a"), compression="zstd", check=check)
    assert [headers.get("content-encoding") for _, headers, _ in server.calls] == ["zstd", None]
    assert names(server.taken) == ["a"]


def test_retryable_statuses_are_tried_again(tmp_path: Path) -> None:
    """H7: 429, 502, 503, 504; Retry-After in seconds or as a date."""
    past = formatdate(0, usegmt=True)
    answers = [(429, {"Retry-After": "0"}, b""), (502, {}, b""), (503, {"Retry-After": past}, b""), (504, {}, b"")]
    server = OtlpHttpServer(*answers)

    def check(forward: Forwarding) -> None:
        assert forward.failures("retry") == 4

    run(tmp_path, server, request("a"), check=check)
    assert (names(server.taken), len(server.calls)) == (["a"], 5)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept(tmp_path: Path, form: str) -> None:
    """The asked delay passes before the next try."""
    said = "1" if form == "seconds" else formatdate(time() + 2, usegmt=True)
    begun = monotonic()
    run(tmp_path, OtlpHttpServer((503, {"Retry-After": said}, b"")), request("a"))
    assert monotonic() - begun >= 0.9


RETRY_AFTER = {
    "3": 3.0,
    " 7 ": 7.0,
    "99999999999": MAX_ASKED_WAIT_S,
    formatdate(0, usegmt=True): 0.0,
    "soon": None,
    "-1": None,
    "": None,
    "Fri, 31 Dec 99999 23:59:59 GMT": None,
}


@pytest.mark.parametrize("header", RETRY_AFTER)
def test_forms_of_retry_after(header: str) -> None:
    """Seconds and dates, bounded; what is neither says nothing."""
    assert retry_after_s(header) == RETRY_AFTER[header]


def test_413_is_split_and_a_bad_request_put_aside(tmp_path: Path) -> None:
    """H4: 413 halves the batch; a lone 400 goes to the dead letters with the Status it came with (H5)."""
    status = status_pb2.Status(code=3, message="span name is empty").SerializeToString()
    server = OtlpHttpServer((413, {}, b""), (400, {"Content-Type": "application/x-protobuf"}, status))

    def check(forward: Forwarding) -> None:
        (said,) = forward.deadletter.glob("*.json")
        assert json.loads(said.read_bytes())["reason"] == "HTTP 400 Bad Request: span name is empty"
        assert said.with_suffix(".bin").read_bytes() == request("a")

    run(tmp_path, server, request("a"), request("b"), check=check)
    assert names(server.taken) == ["b"]


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405])
def test_other_statuses_are_refusals(tmp_path: Path, status: int) -> None:
    """Not retryable, and no part would fare better: one send, one dead letter."""
    server = OtlpHttpServer((status, {"Location": "/elsewhere"}, b"no"))

    def check(forward: Forwarding) -> None:
        assert len(list(forward.deadletter.glob("*.bin"))) == 1

    run(tmp_path, server, request("a"), request("b"), check=check)
    assert len(server.calls) == 1


def test_a_closed_idle_connection_is_no_failure(tmp_path: Path) -> None:
    """A server may close a kept connection; the next request opens another and arrives once."""
    server = OtlpHttpServer(close_each=True)

    async def main() -> None:
        async with forwarding(tmp_path, destination(f"http://127.0.0.1:{server.port}")) as forward:
            for name in ("a", "b", "c"):
                forward.put(request(name))
                assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("retry") == 0

    with server:
        asyncio.run(main())
    assert names(server.taken) == ["a", "b", "c"]


def test_connections_are_kept(tmp_path: Path) -> None:
    """One after the other they use the same one."""
    server = OtlpHttpServer()

    async def main() -> None:
        async with forwarding(tmp_path, destination(f"http://127.0.0.1:{server.port}")) as forward:
            for name in ("a", "b", "c"):
                forward.put(request(name))
                assert await forward.upstream.drain(BUDGET_S)

    with server:
        asyncio.run(main())
    assert (len(server.clients), len(set(server.clients))) == (3, 1)


def test_no_answer_in_time_is_tried_again(tmp_path: Path) -> None:
    """A server that hangs costs a time-out, not the data."""
    hang = Event()
    calls: list[int] = []

    def judge(signal: str, data: bytes) -> None:
        calls.append(1)
        if len(calls) == 1:
            hang.wait(5)

    server = OtlpHttpServer(judge=judge)

    def check(forward: Forwarding) -> None:
        assert forward.failures("retry") == 1
        assert "TimeoutError" in forward.upstream.status()[0].tally.last_error
        hang.set()

    run(tmp_path, server, request("a"), timeout_s=0.3, check=check)
    assert set(names(server.taken)) == {"a"}


def test_a_stop_ends_a_send_that_hangs(tmp_path: Path) -> None:
    """Leaving cuts the connection instead of waiting for the answer."""
    hang, started = Event(), Event()

    def judge(signal: str, data: bytes) -> None:
        started.set()
        hang.wait(20)

    server = OtlpHttpServer(judge=judge)

    async def main() -> None:
        there = destination(f"http://127.0.0.1:{server.port}", timeout_s=30.0)
        async with forwarding(tmp_path, there, put=(request("a"),)):
            await asyncio.to_thread(started.wait, 10)
            begun = monotonic()
        assert monotonic() - begun < 5

    with server:
        asyncio.run(main())
        hang.set()


BAD_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "tls without TLS": ({"tls": Tls()}, "upstream.endpoint: got 'http://127.0.0.1:1', expected https://"),
    "a compression": ({"compression": "brotli"}, "upstream.compression: got 'brotli', expected none, gzip or zstd"),
    "a signal's URL": (
        {"signal_endpoints": (("logs", "grpc://h:1"),)},
        "upstream.logs_endpoint: got 'grpc://h:1', expected http://",
    ),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_keys_that_do_not_go_together(tmp_path: Path, case: str) -> None:
    """Found at the start, each quoted with what was expected."""
    options, expected = BAD_KEYS[case]

    async def main() -> None:
        with pytest.raises(ConfigError) as error:
            async with forwarding(tmp_path, destination("http://127.0.0.1:1", **options)):
                pass
        assert str(error.value).startswith(expected)

    asyncio.run(main())
