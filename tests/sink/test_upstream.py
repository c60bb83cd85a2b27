"""The upstream: everything arrives, in order, whatever is away for a while (design 2; otlp reference 1.2, 2.3)."""

from __future__ import annotations

import asyncio
import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from joulegram_pipeline.records import RecordKind
from joulegram_sink.upstream_destination import Batching, Header
from simulators.forwarding import BUDGET_S, arrived, destination, forwarding, names, request, to
from simulators.otlp_server import OtlpServer
from simulators.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path


def test_requests_of_a_signal_are_sent_as_one(tmp_path: Path) -> None:
    """Protobuf concatenation: fewer sends, the same spans in the same order; signals stay apart."""
    logs = ExportLogsServiceRequest()
    logs.resource_logs.add()
    requests = [request(f"s{number}") for number in range(20)]

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=requests) as forward:
            forward.put(logs.SerializeToString(), kind=RecordKind.LOGS)
            assert await forward.upstream.drain(BUDGET_S)
            assert forward.upstream.status()[0].tally.sent_requests == 21
        assert sorted(signal for signal, _ in server.taken) == ["logs", "traces"]
        assert ("traces", b"".join(requests)) in server.taken
        assert ("logs", logs.SerializeToString()) in server.taken

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_profiles_are_never_joined(tmp_path: Path) -> None:
    """Two requests have two dictionaries, which concatenation would merge into a wrong one."""

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server))) as forward:
            forward.put(b"\x12\x00", b"\x12\x02\x12\x00", kind=RecordKind.PROFILES)
            assert await forward.upstream.drain(BUDGET_S)
        assert server.taken == [("profiles", b"\x12\x00"), ("profiles", b"\x12\x02\x12\x00")]

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_metadata_travels_and_separates(tmp_path: Path) -> None:
    """Headers a request brought are sent with it, and only with it; the configuration's win over the same name."""

    async def main(server: OtlpServer) -> None:
        fixed = Header("x-fixed", "always"), Header("x-own", "ours")
        async with forwarding(tmp_path, destination(to(server), headers=fixed)) as forward:
            forward.put(request("a"), request("b"), metadata=(("x-own", "theirs"), ("x-tenant", "red")))
            forward.put(request("c"), metadata=(("x-tenant", "blue"),))
            forward.put(request("d"), metadata=(("x-own", "theirs"), ("x-tenant", "red")))
            assert await forward.upstream.drain(BUDGET_S)
        assert [names([each]) for each in server.taken] == [["a", "b", "d"], ["c"]]
        assert [headers["x-tenant"] for headers in server.headers] == ["red", "blue"]
        assert {(headers["x-fixed"], headers["x-own"]) for headers in server.headers} == {("always", "ours")}
        assert server.headers[0]["user-agent"] == "joulegram"

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_a_header_from_a_file_follows_the_file(tmp_path: Path) -> None:
    """A token that is renewed is used from the next send on."""
    token = tmp_path / "token"
    token.write_text("first\n")

    async def main(server: OtlpServer) -> None:
        bearer = Header("authorization", file=token, prefix="Bearer ")
        async with forwarding(tmp_path, destination(to(server), headers=(bearer,))) as forward:
            for said in ("first", "second"):
                token.write_text(f"{said}\n")
                forward.put(request(said))
                assert await forward.upstream.drain(BUDGET_S)
            token.unlink()
            forward.put(request("third"))
            assert not await forward.upstream.drain(0.3)
            token.write_text("third")
            assert await forward.upstream.drain(BUDGET_S)
        assert [headers["authorization"] for headers in server.headers] == [
            "Bearer first",
            "Bearer second",
            "Bearer third",
        ]

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_a_batch_is_bounded(tmp_path: Path) -> None:
    """No send is larger than the bound, but for one request that is larger by itself; nor has it more requests."""
    requests = [request("n" * 300) for _ in range(10)]
    requests.insert(5, request("n" * 5000))

    async def main(server: OtlpServer) -> None:
        small = destination(to(server), batching=Batching(0.0, 1, 1000, 2))
        async with forwarding(tmp_path, small, put=requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert b"".join(data for _, data in server.taken) == b"".join(requests)
        assert [len(data) for _, data in server.taken if len(data) > 1000] == [len(requests[5])]
        assert max(len(names([each])) for each in server.taken) == 2

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_small_requests_wait_for_company(tmp_path: Path) -> None:
    """What comes within `flush_timeout` leaves as one; `min_size` does not wait."""

    async def main(server: OtlpServer) -> None:
        patient = destination(to(server), batching=Batching(flush_timeout_s=0.5, min_bytes=2000))
        async with forwarding(tmp_path, patient) as forward:
            begun = monotonic()
            for number in range(5):
                await asyncio.to_thread(forward.put, request(f"s{number}"))
            await asyncio.to_thread(server.wait_for, arrived(5))
            assert monotonic() - begun >= 0.45
            assert server.calls == 1
            begun = monotonic()
            forward.put(request("n" * 3000))
            await asyncio.to_thread(server.wait_for, arrived(6))
            assert monotonic() - begun < 0.45

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_an_upstream_that_was_down_gets_everything_once_it_is_up(tmp_path: Path) -> None:
    """Nothing is dropped while it is away, through a restart of the sidecar too, and nothing comes twice."""
    port = free_port()
    there = destination(f"grpc://127.0.0.1:{port}")

    async def down() -> None:
        async with forwarding(tmp_path, there, put=(request("a"), request("b"))) as forward:
            assert not await forward.upstream.drain(0.5)
            assert forward.failures("retry") >= 1
            (status,) = forward.upstream.status()
            assert status.tally.last_error.startswith("UNAVAILABLE")
            assert status.backlog_bytes == len(request("a") + request("b"))

    async def up(server: OtlpServer) -> None:
        async with forwarding(tmp_path, there) as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert names(server.taken) == ["a", "b"]

    asyncio.run(down())
    with OtlpServer(port) as server:
        asyncio.run(up(server))


def test_an_upstream_that_goes_away_for_a_while(tmp_path: Path) -> None:
    """Under load: all of it arrives, in order, once the server is back on its port."""
    total = 300

    async def main() -> None:
        with OtlpServer() as first:
            async with forwarding(tmp_path, destination(to(first))) as forward:
                for number in range(100):
                    forward.put(request(f"s{number:03}"))
                assert await forward.upstream.drain(BUDGET_S)  # answered too, or they would rightly come twice
                await asyncio.to_thread(first.__exit__, None, None, None)
                for number in range(100, total):
                    forward.put(request(f"s{number:03}"))
                assert not await forward.upstream.drain(0.4)
                with OtlpServer(first.port) as second:
                    assert await forward.upstream.drain(BUDGET_S)
                    assert names(first.taken + second.taken) == [f"s{number:03}" for number in range(total)]

    asyncio.run(main())


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "DATA_LOSS", "CANCELLED"]
)
def test_retryable_codes_are_tried_again(tmp_path: Path, code: str) -> None:
    """OTLP's table of retryable codes: the same bytes come again until they are taken."""
    refusals = [grpc.StatusCode[code]] * 2

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=(request("a"),)) as forward:
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
    requests = (request("a"), request("b"))

    def judge(signal: str, data: bytes) -> grpc.StatusCode | None:
        times.append(monotonic())
        return refusals.pop() if refusals else None

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert [data for _, data in server.taken] == [b"".join(requests)]
        assert times[1] - times[0] >= 0.6

    with OtlpServer(judge=judge, retry_after_s=0.6) as server:
        asyncio.run(main(server))


def test_several_sends_are_under_way_at_once(tmp_path: Path) -> None:
    """`num_consumers` of them, and the position waits for the first."""
    together = threading.Barrier(2)
    requests = [request(name) for name in ("a", "b", "c", "d")]

    def judge(signal: str, data: bytes) -> None:
        together.wait(10)

    async def main(server: OtlpServer) -> None:
        two = destination(to(server), num_consumers=2, batching=Batching(0.0, max_bytes=1))
        async with forwarding(tmp_path, two, put=requests) as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert sorted(names(server.taken)) == ["a", "b", "c", "d"]

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))


def test_the_position_moves_in_order(tmp_path: Path) -> None:
    """What is taken behind something that is not is offered again after a crash, and nothing is left out."""

    def judge(signal: str, data: bytes) -> grpc.StatusCode | None:
        return grpc.StatusCode.UNAVAILABLE if "a" in names([(signal, data)]) else None

    async def main(server: OtlpServer) -> None:
        two = destination(to(server), num_consumers=2, batching=Batching(0.0, max_bytes=1))
        async with forwarding(tmp_path, two, put=[request("a"), request("b")]) as forward:
            await asyncio.to_thread(server.wait_for, arrived(1))
            assert not await forward.upstream.drain(0.2)
            assert forward.outbox.reader("upstream").taken == (-1, -1)

    async def again(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server))) as forward:
            assert await forward.upstream.drain(BUDGET_S)
        assert names(server.taken) == ["a", "b"]

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))
    with OtlpServer() as server:
        asyncio.run(again(server))


def test_gzip_on_grpc(tmp_path: Path) -> None:
    """Compressed by the library; the server sees the same bytes."""

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server), compression="gzip")) as forward:
            forward.put(request("n" * 10_000))
            assert await forward.upstream.drain(BUDGET_S)
        assert server.taken == [("traces", request("n" * 10_000))]

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_what_comes_later_is_sent_without_being_asked(tmp_path: Path) -> None:
    """An append wakes the sender."""

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server))) as forward:
            for number in range(3):
                await asyncio.to_thread(forward.put, request(f"s{number}"))
                await asyncio.to_thread(server.wait_for, arrived(number + 1))
        assert names(server.taken) == ["s0", "s1", "s2"]

    with OtlpServer() as server:
        asyncio.run(main(server))


def test_a_stop_ends_a_send_that_hangs(tmp_path: Path) -> None:
    """Leaving does not wait for an answer that does not come; the item is still there."""
    hang = threading.Event()

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server), timeout_s=30.0), put=(request("a"),)) as forward:
            await asyncio.to_thread(started.wait, 10)
            begun = monotonic()
        assert monotonic() - begun < 5
        assert not forward.outbox.reader("upstream").is_drained

    started = threading.Event()

    def judge(signal: str, data: bytes) -> None:
        started.set()
        hang.wait(20)

    with OtlpServer(judge=judge) as server:
        asyncio.run(main(server))
        hang.set()


def test_the_log_has_no_content_and_is_not_flooded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line when it fails, one when it works again; an upstream's words that may quote the data are not in it."""
    refusals = [grpc.StatusCode.UNAVAILABLE] * 3
    caplog.set_level(logging.INFO, "joulegram_sink")

    async def main(server: OtlpServer) -> None:
        async with forwarding(tmp_path, destination(to(server)), put=(request("secret"),)) as forward:
            assert await forward.upstream.drain(BUDGET_S)

    with OtlpServer(judge=lambda signal, data: refusals.pop() if refusals else None) as server:
        asyncio.run(main(server))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "destination 'upstream' does not take data, trying again: UNAVAILABLE" in caplog.text
    assert "secret" not in caplog.text
