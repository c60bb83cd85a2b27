"""The upstream: everything arrives, or is put aside with the reason (design 2; otlp reference 1.2, 1.3, 2.3)."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
from google.rpc import status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import Outgoing, RecordKind
from joulegram_sink.outbox import Outbox
from joulegram_sink.upstream import Upstream
from simulators.otlp_server import OtlpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

TRACES = RecordKind.TRACES
BUDGET_S = 20.0


def request(name: str) -> bytes:
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(name=name)
    return message.SerializeToString()


def names(requests: Iterable[tuple[str, bytes]]) -> list[str]:
    """The spans' names in the order they arrived."""
    return [
        span.name
        for signal, data in requests
        if signal == "traces"
        for resource_spans in ExportTraceServiceRequest.FromString(data).resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


class Forwarding:
    """An outbox and what sends it."""

    def __init__(self, outbox: Outbox, upstream: Upstream, metrics: Metrics, deadletter: Path) -> None:
        self.outbox = outbox
        self.upstream = upstream
        self.metrics = metrics
        self.deadletter = deadletter
        self._lsn = 0

    def put(self, *requests: bytes, kind: RecordKind = TRACES) -> None:
        self.outbox.append([Outgoing((self._lsn, ordinal), kind, data) for ordinal, data in enumerate(requests)])
        self._lsn += 1
        self.outbox.sync()

    def failures(self, kind: str) -> float | None:
        return self.metrics.registry.get_sample_value("joulegram_sink_forward_failures_total", {"kind": kind})


@asynccontextmanager
async def forwarding(tmp_path: Path, endpoint: str, *requests: bytes, **options: Any) -> AsyncIterator[Forwarding]:
    """`requests` are in the outbox, as one batch, before the upstream starts."""
    metrics = Metrics()
    deadletter = tmp_path / "deadletter"
    async with Outbox(tmp_path / "outbox", metrics) as outbox:
        upstream = Upstream(endpoint, outbox, metrics, deadletter, **({"linger_s": 0.0} | options))
        forward = Forwarding(outbox, upstream, metrics, deadletter)
        if requests:
            forward.put(*requests)
        async with upstream:
            yield forward


def arrived(count: int) -> Callable[[OtlpServer], bool]:
    return lambda server: len(names(server.taken)) == count


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_requests_of_a_signal_are_sent_as_one(tmp_path: Path) -> None:
    """Protobuf concatenation: fewer sends, the same spans in the same order; signals stay apart."""
    logs = ExportLogsServiceRequest()
    logs.resource_logs.add()

    async def main(server: OtlpServer) -> None:
        requests = [request(f"s{number}") for number in range(20)]
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", *requests) as forward:
            forward.put(logs.SerializeToString(), kind=RecordKind.LOGS)
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.metrics.registry.get_sample_value("joulegram_sink_forwarded_requests_total") == 21
        assert sorted(signal for signal, _ in server.taken) == ["logs", "traces"]
        assert ("traces", b"".join(requests)) in server.taken
        assert ("logs", logs.SerializeToString()) in server.taken

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_a_batch_is_bounded(tmp_path: Path) -> None:
    """No send is larger than the bound, but for one request that is larger by itself."""

    async def main(server: OtlpServer) -> None:
        requests = [request("n" * 300) for _ in range(10)]
        requests.insert(5, request("n" * 5000))
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", *requests, max_batch_bytes=1000) as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert b"".join(data for _, data in server.taken) == b"".join(requests)
        assert [len(data) for _, data in server.taken if len(data) > 1000] == [len(requests[5])]

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_an_upstream_that_was_down_gets_everything_once_it_is_up(tmp_path: Path) -> None:
    """Nothing is dropped while it is away, through a restart of the sidecar too, and nothing comes twice."""
    port = free_port()

    async def down() -> None:
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{port}", request("a"), request("b")) as forward:
            assert not await forward.upstream.drain(0.5)
            assert (forward.failures("retry") or 0) >= 1

    async def up(server: OtlpServer) -> None:
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{port}") as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert names(server.taken) == ["a", "b"]

    asyncio.run(down())
    with OtlpServer(port) as server:
        asyncio.run(up(server))


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "DATA_LOSS", "CANCELLED"]
)
def test_retryable_codes_are_tried_again(tmp_path: Path, code: str) -> None:
    """OTLP's table of retryable codes: the same bytes come again until they are taken."""
    refusals = [grpc.StatusCode[code]] * 2

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", request("a")) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("retry") == 2
        assert (names(server.taken), server.calls) == (["a"], 3)

    with OtlpServer(judge=lambda signal, data: refusals.pop() if refusals else None) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_retry_info_is_honoured(tmp_path: Path, code: str) -> None:
    """The delay the upstream asks for is kept; RESOURCE_EXHAUSTED with it is retryable, and not split."""
    refusals = [grpc.StatusCode[code]]
    times: list[float] = []

    def judge(signal: str, data: bytes) -> grpc.StatusCode | None:
        times.append(monotonic())
        return refusals.pop() if refusals else None

    async def main(server: OtlpServer) -> None:
        requests = (request("a"), request("b"))
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", *requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert [data for _, data in server.taken] == [b"".join(requests)]
        assert times[1] - times[0] >= 0.6

    with OtlpServer(judge=judge, retry_after_s=0.6) as server:
        asyncio.run(main(server))


def test_what_is_too_large_is_split(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED without RetryInfo: halves are tried, in order, until they fit."""

    def judge(signal: str, data: bytes) -> grpc.StatusCode | None:
        return grpc.StatusCode.RESOURCE_EXHAUSTED if len(names([(signal, data)])) > 3 else None

    async def main(server: OtlpServer) -> None:
        requests = [request(f"s{number}") for number in range(11)]
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", *requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert not forward.deadletter.exists()
        assert names(server.taken) == [f"s{number}" for number in range(11)]

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))


def test_one_bad_request_does_not_take_its_batch_along(tmp_path: Path) -> None:
    """What is refused for good is put aside alone, with the reason, whole; all others arrive."""

    def judge(signal: str, data: bytes) -> grpc.StatusCode | None:
        return grpc.StatusCode.INVALID_ARGUMENT if "bad" in names([(signal, data)]) else None

    async def main(server: OtlpServer) -> None:
        requests = [request(name) for name in ("a", "b", "bad", "c", "d")]
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", *requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("refused") == 1
            (said,) = forward.deadletter.glob("*-traces.json")
            reason = json.loads(said.read_bytes())
            assert reason["reason"] == "INVALID_ARGUMENT: told to answer INVALID_ARGUMENT"
            assert (reason["signal"], reason["positions"]) == ("traces", [[0, 2]])
            assert said.with_suffix(".bin").read_bytes() == requests[2]
        assert names(server.taken) == ["a", "b", "c", "d"]

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"])
def test_a_refusal_of_the_sender_is_not_split(tmp_path: Path, code: str) -> None:
    """Where no part would fare better the batch is put aside at once, in one send."""

    async def main(server: OtlpServer) -> None:
        requests = [request("a"), request("b")]
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", *requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            (data,) = forward.deadletter.glob("*.bin")
            assert data.read_bytes() == b"".join(requests)
        assert server.calls == 1

    with OtlpServer(judge=lambda signal, data: grpc.StatusCode[code]) as server:
        asyncio.run(main(server))


def test_what_cannot_be_put_aside_stays_in_the_outbox(tmp_path: Path) -> None:
    """No item is ever deleted without an acknowledgement or a dead letter."""
    (tmp_path / "deadletter").write_bytes(b"a file where the directory should be")

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", request("a")) as forward:
            assert not await forward.upstream.drain(0.5)
            assert forward.outbox.position == 0
            (tmp_path / "deadletter").unlink()
            assert await forward.upstream.drain(BUDGET_S)
            assert len(list(forward.deadletter.glob("*.bin"))) == 1

    with OtlpServer(judge=lambda signal, data: grpc.StatusCode.PERMISSION_DENIED) as server:
        asyncio.run(main(server))


def test_a_partial_success_is_counted_and_not_sent_again(tmp_path: Path) -> None:
    """A6: clients MUST NOT retry a partial success."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", request("a")) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("partial") == 1
        assert server.calls == 1

    with OtlpServer(judge=lambda signal, data: response.SerializeToString()) as server:
        asyncio.run(main(server))


def test_what_comes_later_is_sent_without_being_asked(tmp_path: Path) -> None:
    """Each sync of the outbox wakes the sender."""

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, f"grpc://127.0.0.1:{server.port}", linger_s=0.01) as forward:
            for number in range(3):
                await asyncio.to_thread(forward.put, request(f"s{number}"))
                expected = number + 1
                await asyncio.to_thread(server.wait_for, arrived(expected))
        assert names(server.taken) == ["s0", "s1", "s2"]

    with OtlpServer() as server:
        asyncio.run(main(server))


class HttpUpstream:
    """An OTLP/HTTP server that answers with what it was given, then 200; `taken` holds (path, type, bytes)."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes], close_each: bool = False) -> None:
        self.calls: list[tuple[str, str, bytes]] = []
        self.taken: list[tuple[str, bytes]] = []
        self._answers = list(answers)
        self._changed = Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.calls.append((self.path, self.headers["Content-Type"], body))
                status, headers, data = outer._answers.pop(0) if outer._answers else (200, {}, b"")
                if status == 200:
                    outer.taken.append((self.path.removeprefix("/v1/"), body))
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                # Without a "Connection: close": what an idle timeout of a real server looks like.
                self.close_connection = close_each

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def run_http(tmp_path: Path, server: HttpUpstream, check: Callable[[Forwarding], None], *requests: bytes) -> None:
    async def main() -> None:
        async with forwarding(tmp_path, server.endpoint, *requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            check(forward)

    with server:
        asyncio.run(main())


def test_http_posts_protobuf_to_the_signals_path(tmp_path: Path) -> None:
    """H1, H2: /v1/traces, application/x-protobuf."""
    server = HttpUpstream()
    run_http(tmp_path, server, lambda forward: None, request("a"), request("b"))
    assert server.calls == [("/v1/traces", "application/x-protobuf", request("a") + request("b"))]


def test_http_retryable_statuses_are_tried_again_after_the_asked_delay(tmp_path: Path) -> None:
    """H7: 429, 502, 503, 504; Retry-After in seconds or as a date."""
    past = formatdate(0, usegmt=True)
    answers = [(429, {"Retry-After": "0"}, b""), (502, {}, b""), (503, {"Retry-After": past}, b""), (504, {}, b"")]
    server = HttpUpstream(*answers)
    started = monotonic()

    def check(forward: Forwarding) -> None:
        assert forward.failures("retry") == 4

    run_http(tmp_path, server, check, request("a"))
    assert (names(server.taken), len(server.calls)) == (["a"], 5)
    asked = HttpUpstream((503, {"Retry-After": "1"}, b""))
    started = monotonic()
    run_http(tmp_path / "asked", asked, lambda forward: None, request("a"))
    assert monotonic() - started >= 1


def test_http_413_is_split_and_a_bad_request_put_aside(tmp_path: Path) -> None:
    """413 halves the batch; a lone 400 goes to the dead letters with the Status it came with."""
    status = status_pb2.Status(code=3, message="span name is empty").SerializeToString()
    server = HttpUpstream((413, {}, b""), (400, {"Content-Type": "application/x-protobuf"}, status))

    def check(forward: Forwarding) -> None:
        (said,) = forward.deadletter.glob("*.json")
        assert json.loads(said.read_bytes())["reason"] == "HTTP 400 Bad Request: span name is empty"
        assert said.with_suffix(".bin").read_bytes() == request("a")

    run_http(tmp_path, server, check, request("a"), request("b"))
    assert names(server.taken) == ["b"]


def test_http_a_closed_idle_connection_is_no_failure(tmp_path: Path) -> None:
    """A server may close a kept connection; the next request opens another and arrives once."""
    server = HttpUpstream(close_each=True)

    async def main() -> None:
        async with forwarding(tmp_path, server.endpoint) as forward:
            for name in ("a", "b", "c"):
                forward.put(request(name))
                assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("retry") is None
        assert names(server.taken) == ["a", "b", "c"]

    with server:
        asyncio.run(main())


BAD_ENDPOINTS = {
    "another scheme": "https://127.0.0.1:4318",
    "no scheme": "127.0.0.1:4317",
    "no port": "grpc://127.0.0.1",
    "no host": "grpc://:4317",
    "a port that is none": "grpc://127.0.0.1:otlp",
    "a path": "http://127.0.0.1:4318/v1/traces",
    "a user": "http://user@127.0.0.1:4318",
    "nothing": "",
}


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS.values(), ids=BAD_ENDPOINTS.keys())
def test_a_bad_endpoint_is_a_config_error(tmp_path: Path, endpoint: str) -> None:
    """The error names the key, quotes the value and says what may stand there."""

    async def main() -> None:
        with pytest.raises(ConfigError, match="expected grpc://host:port or http://host:port") as error:
            async with forwarding(tmp_path, endpoint):
                pass
        assert (error.value.key, error.value.got) == ("upstream.endpoint", endpoint)

    asyncio.run(main())
