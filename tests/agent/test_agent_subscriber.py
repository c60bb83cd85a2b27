"""The sidecar's side of a subscription: ticks without asking for each, and asking where that is in doubt."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from joulegram_agent import protocol, subscriber
from joulegram_agent.conversation import Limits
from joulegram_agent.sampler import Sampler
from joulegram_agent.server import AgentServer
from joulegram_agent.subscriber import Subscriber
from joulegram_pipeline.errors import AgentError
from simulators.agent_node import S, make_node, served, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from joulegram_pipeline.energy import TickBatch


async def first(source: Subscriber, after: int, fits: Callable[[TickBatch], bool]) -> TickBatch:
    """The first answer that fits."""
    async with asyncio.timeout(5):
        while not fits(batch := await source.ticks(after)):  # noqa: ASYNC110  (it comes over a socket and tells nobody)
            await asyncio.sleep(0)
    return batch


async def told(source: Subscriber, after: int) -> TickBatch:
    """The ticks above `after`, as soon as there are any."""
    return await first(source, after, lambda batch: bool(batch.ticks))


def test_ticks_are_told_and_not_asked_for(tmp_path: Path) -> None:
    """S3-03: what the agent published comes out unchanged, above `after` only, and it was asked once."""

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            node.run(2)
            assert await source.ticks(0) == node.agent.sampler.batch(0)
            await until(lambda: server.subscriptions == 1)
            assert (await source.ticks(2)).ticks == ()
            for after in range(2, 6):
                node.run(1)
                assert await told(source, after) == node.agent.sampler.batch(after)
            assert server.counts.requests["ticks"] == 1
            assert server.counts.events == 4

    asyncio.run(body())


def test_what_was_told_is_given_until_after_passes_it(tmp_path: Path) -> None:
    """What a spool could not take is asked for again, and a second reader has its own `after`."""

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            await source.ticks(0)
            await until(lambda: server.subscriptions == 1)
            node.run(1)
            await told(source, 0)
            node.run(1)
            await told(source, 1)
            both = node.agent.sampler.batch(0)
            assert [await source.ticks(after) for after in (0, 2, 1, 0)] == [
                both,
                node.agent.sampler.batch(2),
                node.agent.sampler.batch(1),
                both,
            ]
            assert server.counts.requests["ticks"] == 1

    asyncio.run(body())


def test_what_is_no_longer_kept_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent keeps more than its subscriber; the subscription goes on."""
    monkeypatch.setattr(subscriber, "KEPT", 2)

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            node.run(4)
            await source.ticks(0)
            await until(lambda: server.subscriptions == 1)
            assert [tick.seq for tick in (await source.ticks(2)).ticks] == [3, 4]
            assert server.counts.requests["ticks"] == 1
            assert [tick.seq for tick in (await source.ticks(1)).ticks] == [2, 3, 4]
            assert server.counts.requests["ticks"] == 2
            node.run(1)
            assert [tick.seq for tick in (await told(source, 4)).ticks] == [5]
            assert server.counts.requests == {"ticks": 2, "subscribe": 1}

    asyncio.run(body())


@pytest.mark.parametrize("limit", ["SILENT_S", "ASK_S"])
def test_silent_agent_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """S3-08: that nothing was told is no sign of life; and a connection that asks nothing is closed, names and all."""
    monkeypatch.setattr(subscriber, limit, 0.0)

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            for asked in range(1, 4):
                node.run(1)
                assert [tick.seq for tick in (await source.ticks(asked - 1)).ticks] == [asked]
                assert server.counts.requests["ticks"] == asked

    asyncio.run(body())


def test_new_epoch_is_answered_whole(tmp_path: Path) -> None:
    """D-29: after the wall clock fell back `after` counts from 1 again: the epoch says so, as where it is asked."""

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            node.run(3)
            before = await source.ticks(0)
            await until(lambda: server.subscriptions == 1)
            node.clock.step_wall(-10 * S)
            node.run(2)
            batch = await first(source, 3, lambda batch: batch.epoch != before.epoch)
            assert batch == node.agent.sampler.batch(3)
            assert await source.ticks(0) == node.agent.sampler.batch(0)
            newest = batch.ticks[-1].seq
            node.run(1)
            assert await told(source, newest) == node.agent.sampler.batch(newest)

    asyncio.run(body())


def test_agent_that_went_is_an_error_until_it_is_back_with_all_names(tmp_path: Path) -> None:
    """S3-08: the caller goes on without energy and asks again later; what was named is named there too."""

    async def body() -> None:
        node, again = make_node(tmp_path / "a"), make_node(tmp_path / "b")
        node.proc.start(10)
        again.proc.start(10)
        again.clock.advance(S)
        again.agent.sampler = Sampler(again.agent.reader, proc_root=again.proc.root, clock=again.clock)
        again.agent.sampler.sample()
        async with Subscriber(node.path) as source:
            async with AgentServer(node.agent, node.path) as server:
                await source.name([10])
                epoch = (await source.ticks(0)).epoch
                await until(lambda: server.subscriptions == 1)
                node.run(2)
                assert len((await told(source, 0)).ticks) >= 1
            # What was told is still given; behind it there is nobody to ask.
            last = (await source.ticks(0)).ticks[-1].seq
            with pytest.raises(AgentError, match=re.escape(str(node.path))):
                await first(source, last, lambda batch: last < 2 and bool(batch.ticks))
            async with AgentServer(again.agent, node.path) as server:
                assert (await source.ticks(0)).epoch != epoch
                await until(lambda: server.subscriptions == 1)
                assert again.agent.sampler.trees.roots == {10}
            await until(lambda: server.connections == 0)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    asyncio.run(body())


def test_backlog_is_asked_for_page_by_page_before_anything_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that comes late: told all of it at once it would have nothing left to ask with, and keep the last."""
    monkeypatch.setattr(protocol, "PAGE_BYTES", 500)
    monkeypatch.setattr(subscriber, "KEPT", 4)

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            node.run(30)
            got: list[int] = []
            while len(got) < 30:
                assert server.counts.requests["subscribe"] == 0
                got += [tick.seq for tick in (await source.ticks(got[-1] if got else 0)).ticks]
            assert got == list(range(1, 31))
            await until(lambda: server.subscriptions == 1)
            assert server.counts.refusals == {}

    asyncio.run(body())


def test_subscription_refused_is_not_asked_for_at_each_tick(tmp_path: Path) -> None:
    """Somebody who may have one connection alone is answered on that."""

    async def body() -> None:
        async with served(tmp_path, Limits(connections=1)) as (node, server), Subscriber(node.path) as source:
            for after in range(4):
                node.run(1)
                assert await told(source, after) == node.agent.sampler.batch(after)
                await until(lambda: server.counts.refusals["busy"] == 1)
            assert server.counts.connections == 1

    asyncio.run(body())


def test_names_come_back_with_the_next_question_after_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question given up closes its connection, and what was named on it: the next is asked, told or not."""
    monkeypatch.setattr(subscriber, "KEPT", 1)

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            node.proc.start(10)
            node.run(3)
            await source.name([10])
            await source.ticks(0)
            await until(lambda: server.subscriptions == 1)
            asked = asyncio.ensure_future(source.ticks(0))
            await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await until(lambda: node.agent.sampler.trees.roots == frozenset())
            assert (await source.ticks(3)).ticks == ()
            assert node.agent.sampler.trees.roots == {10}

    asyncio.run(body())


def test_replacing_a_subscription_keeps_its_callers_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that comes while the old one ends is the caller's."""
    monkeypatch.setattr(subscriber, "SILENT_S", 0.0)

    async def body() -> None:
        async with served(tmp_path) as (node, server), Subscriber(node.path) as source:
            node.run(1)
            await source.ticks(0)
            await until(lambda: server.subscriptions == 1)
            for turns in range(30):
                asked = asyncio.ensure_future(source.ticks(0))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if asked.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await asked

    asyncio.run(body())


def test_leaving_ends_both_connections(tmp_path: Path) -> None:
    """What was named is let go of, and nobody is told any more."""

    async def body() -> None:
        async with served(tmp_path) as (node, server):
            node.proc.start(10)
            async with Subscriber(node.path) as source:
                await source.name([10])
                await source.ticks(0)
                await until(lambda: (server.subscriptions, server.connections) == (1, 2))
            await until(lambda: server.connections == 0)
            assert node.agent.sampler.trees.roots == frozenset()

    asyncio.run(body())
