"""Several destinations behind one outbox: each at its own pace, none at the others' cost (A10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from joulegram_pipeline.errors import StorageError
from simulators.forwarding import BUDGET_S, destination, forwarding, names, request
from simulators.otlp_server import OtlpHttpServer, OtlpServer
from simulators.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from simulators.forwarding import Forwarding


async def put_many(forward: Forwarding, begin: int, end: int) -> None:
    """Requests of 10 kB each, appended in a thread as the engine does."""

    def put() -> None:
        for number in range(begin, end):
            forward.put(request(f"{number:05}" + "n" * 10_000))

    await asyncio.to_thread(put)


def numbers(server: OtlpServer | OtlpHttpServer) -> list[int]:
    return [int(name[:5]) for name in names(server.taken)]


def test_one_that_is_down_costs_the_other_nothing(tmp_path: Path) -> None:
    """The other gets everything at once; memory stays bounded; who comes back gets everything too."""
    port = free_port()
    bound = 1_000_000
    total = 600

    async def main(up: OtlpServer) -> None:
        both = destination(f"grpc://127.0.0.1:{up.port}", "up"), destination(f"grpc://127.0.0.1:{port}", "down")
        async with forwarding(tmp_path, *both, max_memory_bytes=bound) as forward:
            await put_many(forward, 0, total)
            await asyncio.to_thread(up.wait_for, lambda server: len(names(server.taken)) == total)
            assert forward.outbox.memory_bytes <= bound + 20_000
            assert forward.outbox.disk_bytes > 4_000_000
            first, second = forward.upstream.status()
            assert (first.name, first.tally.last_error) == ("up", "")
            assert (second.name, second.backlog_bytes > 5_500_000, second.oldest_age_s > 0) == ("down", True, True)
            with OtlpServer(port) as down:
                assert await forward.upstream.drain(BUDGET_S)
                assert numbers(down) == list(range(total))
            assert (forward.outbox.memory_bytes, forward.upstream.status()[1].backlog_bytes) == (0, 0)
        assert numbers(up) == list(range(total))

    with OtlpServer() as up:
        asyncio.run(main(up))


def test_over_restarts_each_goes_on_where_it_was(tmp_path: Path) -> None:
    """Of two, one over gRPC and one over HTTP, each is down in turn."""

    async def life(endpoints: tuple[str, str], put: tuple[int, int], budget_s: float) -> bool:
        both = destination(endpoints[0], "one"), destination(endpoints[1], "two")
        async with forwarding(tmp_path, *both) as forward:
            forward._lsn = put[0]
            await put_many(forward, *put)
            return await forward.upstream.drain(budget_s)

    nowhere = f"127.0.0.1:{free_port()}"
    with OtlpServer() as one, OtlpHttpServer() as two:
        here = f"grpc://127.0.0.1:{one.port}", f"http://127.0.0.1:{two.port}"
        assert not asyncio.run(life((here[0], f"http://{nowhere}"), (0, 20), 0.7))
        assert (numbers(one), numbers(two)) == (list(range(20)), [])
        assert not asyncio.run(life((f"grpc://{nowhere}", here[1]), (20, 40), 0.7))
        assert (numbers(one), numbers(two)) == (list(range(20)), list(range(40)))
        assert asyncio.run(life(here, (40, 41), BUDGET_S))
        assert numbers(one) == numbers(two) == list(range(41))


def test_a_refusal_of_one_is_its_own(tmp_path: Path) -> None:
    """The dead letter names who refused; the other took the same data."""

    async def main(good: OtlpServer, bad: OtlpServer) -> None:
        both = destination(f"grpc://127.0.0.1:{good.port}", "good"), destination(f"grpc://127.0.0.1:{bad.port}", "bad")
        async with forwarding(tmp_path, *both, put=(request("a"),)) as forward:
            assert await forward.upstream.drain(BUDGET_S)
            (said,) = forward.deadletter.glob("*-bad-traces.json")
            assert said.with_suffix(".bin").read_bytes() == request("a")
            assert [status.tally.dead_letters for status in forward.upstream.status()] == [0, 1]
        assert names(good.taken) == ["a"]

    with OtlpServer() as good, OtlpServer(judge=lambda signal, data: grpc.StatusCode.PERMISSION_DENIED) as bad:
        asyncio.run(main(good, bad))


def test_a_queue_that_is_full_makes_the_engine_wait(tmp_path: Path) -> None:
    """Nothing is dropped for one that is too far behind: the append is refused, and taken once there is room."""
    port = free_port()

    async def main(up: OtlpServer) -> None:
        small = destination(f"grpc://127.0.0.1:{port}", "down", queue_bytes=50_000)
        async with forwarding(tmp_path, destination(f"grpc://127.0.0.1:{up.port}", "up"), small) as forward:
            with pytest.raises(StorageError, match="the queue of destination 'down' is full"):
                await put_many(forward, 0, 10)
            made = forward.outbox.last_pos[0] + 1
            assert made == 5
            with OtlpServer(port) as down:
                assert await forward.upstream.drain(BUDGET_S)
                await put_many(forward, made, 10)
                assert await forward.upstream.drain(BUDGET_S)
                assert numbers(down) == numbers(up) == list(range(10))

    with OtlpServer() as up:
        asyncio.run(main(up))
