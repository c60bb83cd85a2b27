"""What the upstream refuses: divided until it fits, or put aside with the reason (otlp reference 1.2, 2.3)."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from joulegram_sink.upstream_destination import Retry
from simulators.forwarding import BUDGET_S, destination, forwarding, names, request, to
from simulators.otlp_server import OtlpServer

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_too_large_is_split(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED without RetryInfo: halves are tried, in order, until they fit."""
    requests = [request(f"s{number}") for number in range(11)]

    def judge(signal: str, data: bytes) -> grpc.StatusCode | None:
        return grpc.StatusCode.RESOURCE_EXHAUSTED if len(names([(signal, data)])) > 3 else None

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert not forward.deadletter.exists()
        assert names(server.taken) == [f"s{number}" for number in range(11)]

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))


def test_a_request_too_large_by_itself_is_divided(tmp_path: Path) -> None:
    """A server's own limit: one request of many spans arrives in parts, each span once, and later batches fit."""
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    scope.scope.name = "lib"
    for number in range(2000):
        scope.spans.add(name=f"{number:05}", trace_id=bytes(16), span_id=bytes(8))
    whole = message.SerializeToString()
    limit = len(whole) // 3

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=(whole,)) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert not forward.deadletter.exists()
        assert names(server.taken) == [f"{number:05}" for number in range(2000)]
        assert all(len(data) <= limit for _, data in server.taken)

    with OtlpServer(max_recv_bytes=limit) as server:
        asyncio.run(main(server))


def test_a_limit_once_met_is_kept_to(tmp_path: Path) -> None:
    """Batches that follow a refusal for size begin at what fitted, so that the same refusal does not come for ever."""
    requests = [request(f"{number:04}" + "n" * 2000) for number in range(400)]
    limit = 128 * 1024

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            forward.put(*requests)
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.upstream.status()[0].tally.sent_requests == 800
        assert b"".join(data for _, data in server.taken) == b"".join(requests * 2)
        second = [len(data) for _, data in server.taken][-8:]
        assert max(second) <= limit

    with OtlpServer(max_recv_bytes=limit) as server:
        asyncio.run(main(server))


def test_one_bad_request_does_not_take_its_batch_along(tmp_path: Path) -> None:
    """What is refused for good is put aside alone, with the reason, whole; all others arrive."""
    requests = [request(name) for name in ("a", "b", "bad", "c", "d")]

    def judge(signal: str, data: bytes) -> grpc.StatusCode | None:
        return grpc.StatusCode.INVALID_ARGUMENT if "bad" in names([(signal, data)]) else None

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server))) as forward:
            forward.put(*requests, metadata=(("x-tenant", "red"),))
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("refused") == 1
            (said,) = forward.deadletter.glob("*-traces.json")
            reason = json.loads(said.read_bytes())
            assert reason["reason"] == "INVALID_ARGUMENT: told to answer INVALID_ARGUMENT"
            assert (reason["signal"], reason["positions"]) == ("traces", [[0, 2]])
            assert (reason["destination"], reason["metadata"]) == ("upstream", [["x-tenant", "red"]])
            assert said.with_suffix(".bin").read_bytes() == requests[2]
            assert {path.stat().st_mode & 0o777 for path in forward.deadletter.iterdir()} == {0o600}
        assert names(server.taken) == ["a", "b", "c", "d"]

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"])
def test_a_refusal_of_the_sender_is_not_split(tmp_path: Path, code: str) -> None:
    """Where no part would fare better the batch is put aside at once, in one send."""
    requests = [request("a"), request("b")]

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=requests) as forward:
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
        async with forwarding(tmp_path, destination(to(server)), put=(request("a"),)) as forward:
            assert not await forward.upstream.drain(0.5)
            assert not forward.outbox.reader("upstream").is_drained
            (tmp_path / "deadletter").unlink()
            assert await forward.upstream.drain(BUDGET_S)
            assert len(list(forward.deadletter.glob("*.bin"))) == 1

    with OtlpServer(judge=lambda signal, data: grpc.StatusCode.PERMISSION_DENIED) as server:
        asyncio.run(main(server))


def test_a_set_time_gives_up_into_the_dead_letters(tmp_path: Path) -> None:
    """Only who sets `max_elapsed_time` gives up, and what is given up is kept with the reason."""

    async def main(server: OtlpServer) -> None:
        hasty = destination(to(server), retry=Retry(initial_interval_s=0.05, max_elapsed_time_s=0.3))
        async with forwarding(tmp_path, hasty, put=(request("a"),)) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert (forward.failures("given_up"), forward.failures("refused")) == (1, 0)
            (said,) = forward.deadletter.glob("*.json")
            assert json.loads(said.read_bytes())["reason"].startswith("given up after 0.")
        assert server.calls >= 3

    with OtlpServer(judge=lambda signal, data: grpc.StatusCode.UNAVAILABLE) as server:
        asyncio.run(main(server))


def test_a_partial_success_is_counted_and_not_sent_again(tmp_path: Path) -> None:
    """A6: clients MUST NOT retry a partial success; what it left out is counted by its number."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 7

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=(request("a"),)) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("partial") == 1
            (status,) = forward.upstream.status()
            assert (status.tally.partial, status.tally.rejected_items) == (1, 7)
        assert server.calls == 1

    with OtlpServer(judge=lambda signal, data: response.SerializeToString()) as server:
        asyncio.run(main(server))


def test_a_batch_that_times_out_is_made_smaller(tmp_path: Path) -> None:
    """Over a slow link the whole never arrives in time; its halves do."""
    requests = [request(f"s{number}") for number in range(8)]
    waits = threading.Event()

    def judge(signal: str, data: bytes) -> None:
        if len(names([(signal, data)])) > 3:
            waits.wait(0.6)

    async def main(server: OtlpServer) -> None:
        slow = destination(to(server), timeout_s=0.3)
        async with forwarding(tmp_path, slow, put=requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.failures("retry") == 6, "two for the whole, two for each half"
        assert b"".join(requests) in b"".join(data for _, data in server.taken)

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))
