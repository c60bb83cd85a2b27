"""Ticks told as they are published: all of them, once, to who takes them, and nothing finer than one second."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_agent import protocol
from joulegram_agent.client import AgentClient
from joulegram_agent.conversation import Limits
from joulegram_agent.server import AgentServer
from joulegram_pipeline.errors import AgentError
from simulators.agent_node import J, S, make_node, refused, request, said, served, talking, until

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_pipeline.energy import TickBatch


def test_each_tick_is_told_once_as_it_is_published(tmp_path: Path) -> None:
    """S3-03: from the next tick on, one batch for each, whole, in order, until the consumer leaves."""

    async def body() -> tuple[list[TickBatch], tuple[Any, ...], int]:
        async with served(tmp_path) as (node, server), AgentClient(node.path) as client:
            node.run(2)
            got = []
            async with aclosing(client.subscribe()) as batches:
                waiting = asyncio.ensure_future(anext(batches))
                await until(lambda: server.subscriptions == 1)
                for _ in range(3):
                    node.run(1)
                    got.append(await waiting)
                    waiting = asyncio.ensure_future(anext(batches))
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting
            await until(lambda: server.connections == 0)
            return got, node.agent.sampler.published, server.counts.events

    got, published, events = asyncio.run(body())
    assert [batch.ticks for batch in got] == [(tick,) for tick in published[2:]]
    assert {batch.source for batch in got} == {"powercap"}
    assert events == 3


def test_it_begins_above_after_with_what_is_kept(tmp_path: Path) -> None:
    """S3-03: a client that was away gets what it missed in one batch, and then goes on."""

    async def body() -> list[list[int]]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            node.run(5)
            async with aclosing(client.subscribe(after=2)) as batches:
                first = await anext(batches)
                node.run(1)
                return [[tick.seq for tick in batch.ticks] for batch in (first, await anext(batches))]

    assert asyncio.run(body()) == [[3, 4, 5], [6]]


def test_an_after_of_another_epoch_begins_at_the_first_tick(tmp_path: Path) -> None:
    """Protocol: a client that knew an agent before this one misses nothing of what this one has."""

    async def body() -> list[int]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            node.run(2)
            async with aclosing(client.subscribe(after=5_000)) as batches:
                return [tick.seq for tick in (await anext(batches)).ticks]

    assert asyncio.run(body()) == [1, 2]


def test_a_new_epoch_is_told_from_its_first_tick(tmp_path: Path) -> None:
    """D-29: after the wall clock fell back the subscriber gets the new epoch's ticks from 1, and its name."""

    async def body() -> list[tuple[str, list[int]]]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            node.run(3)
            async with aclosing(client.subscribe(after=0)) as batches:
                got = [await anext(batches)]
                node.clock.step_wall(-100 * S)
                node.run(5)
                got.append(await anext(batches))
                return [(batch.epoch, [tick.seq for tick in batch.ticks]) for batch in got]

    (first, old), (second, new) = asyncio.run(body())
    assert first != second
    assert (old, new) == ([1, 2, 3], [1, 2, 3, 4])


def test_other_questions_are_answered_between_events(tmp_path: Path) -> None:
    """Protocol: events carry the id of the subscription, answers their own; after `unsubscribe` there are none."""

    async def body() -> list[dict[str, Any]]:
        async with served(tmp_path) as (node, server), talking(node.path) as talk:
            lines = [await talk.ask("subscribe"), await talk.ask("subscribe")]
            node.run(1)
            lines.append(await talk.line())
            talk.writer.write(request("counters") + request("unsubscribe"))
            lines += [await talk.line(), await talk.line()]
            await until(lambda: server.subscriptions == 0)
            node.run(1)
            return [
                *lines,
                await talk.ask("hello"),
                await talk.ask("unsubscribe"),
                await talk.ask("subscribe", after=0),
            ]

    lines = asyncio.run(body())
    kinds = [line.get("event") or line["ok"] for line in lines]
    assert kinds == [True, False, "ticks", True, True, True, False, True]
    assert [line["error"]["code"] for line in lines if line.get("ok") is False] == ["refused", "refused"]
    assert {line["id"] for line in lines} == {7}


BAD = [{"after": -1}, {"after": "x"}, {"after": [1]}]


@pytest.mark.parametrize("params", BAD, ids=str)
def test_a_subscription_to_nonsense_is_refused(tmp_path: Path, params: dict[str, Any]) -> None:
    """Protocol: what is no `seq` is bad_params, and the connection has no subscription."""
    lines = (request("subscribe", **params), request("unsubscribe"))
    assert refused(tmp_path, *lines) == [(7, "bad_params"), (7, "refused")]


def test_a_subscriber_that_does_not_take_its_lines_is_cut_off(tmp_path: Path) -> None:
    """Protocol: what is not taken does not pile up: one line at most waits, then the connection ends, counted."""

    async def body() -> tuple[int, int, int]:
        async with served(tmp_path, Limits(take_s=0.05)) as (node, server):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(node.path))
                peer.sendall(request("subscribe"))
                await until(lambda: server.subscriptions == 1)
                held = 0
                while server.connections:
                    node.run(1)
                    held = max(held, *(c._writer.transport.get_write_buffer_size() for c in server._sessions), 0)
                    await asyncio.sleep(0)
            longest = len(protocol.page_of(node.agent.sampler.about, node.agent.sampler.above(0)).data)
            return server.counts.cut_off["slow"], held, longest

    cut_off, held, longest = asyncio.run(body())
    assert cut_off == 1
    assert 0 < held < longest + 200


def test_a_subscriber_that_is_silent_but_takes_its_lines_stays(tmp_path: Path) -> None:
    """Protocol: silence ends a connection; one that is told ticks need not speak."""

    async def body() -> tuple[bytes, dict[str, Any]]:
        async with served(tmp_path, Limits(idle_s=0.3)) as (node, server), talking(node.path) as subscriber:
            await subscriber.ask("subscribe")
            async with talking(node.path) as silent:
                ended = await silent.reader.read()
            assert server.counts.cut_off == {"idle": 1}
            node.run(1)
            return ended, await subscriber.line()

    ended, event = asyncio.run(body())
    assert ended == b""
    assert event["batch"]["ticks"][0]["seq"] == 1


def test_events_and_answers_hold_no_more_than_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design section 4: what does not fit one line follows in the next; nothing is lost, nothing comes twice."""
    monkeypatch.setattr(protocol, "PAGE_BYTES", 1_000)

    async def body() -> tuple[list[dict[str, Any]], list[list[int]]]:
        async with served(tmp_path) as (node, _), talking(node.path) as talk:
            node.run(20)
            pages: list[dict[str, Any]] = []
            after = 0
            while not pages or pages[-1].get("more"):
                pages.append((await talk.ask("ticks", after=after))["result"])
                after = pages[-1]["ticks"][-1]["seq"]
            await talk.ask("subscribe", after=0)
            events: list[list[int]] = []
            while sum(map(len, events)) < 20:
                events.append([tick["seq"] for tick in (await talk.line())["batch"]["ticks"]])
            return pages, events

    pages, events = asyncio.run(body())
    seqs = [[tick["seq"] for tick in page["ticks"]] for page in pages]
    assert len(seqs) > 2
    assert seqs == events
    assert [seq for page in seqs for seq in page] == list(range(1, 21))
    assert ["more" in page for page in pages] == [True] * (len(pages) - 1) + [False]


def test_an_agent_that_ends_ends_the_iteration_with_its_path(tmp_path: Path) -> None:
    """S3-08: a subscriber whose agent goes, or was never there, gets AgentError and nothing else."""

    async def body() -> list[str]:
        messages = []
        client = AgentClient(tmp_path / "agent.sock")
        with pytest.raises(AgentError) as caught:
            await anext(client.subscribe())
        messages.append(str(caught.value))
        node = make_node(tmp_path)
        async with AgentServer(node.agent, node.path) as server:
            waiting = asyncio.ensure_future(anext(client.subscribe()))
            await until(lambda: server.subscriptions == 1)
        with pytest.raises(AgentError) as caught:
            await waiting
        return [*messages, str(caught.value)]

    for message in asyncio.run(body()):
        assert re.search(r"agent\.sock", message)


NONSENSE = [
    b"",
    b"hello\n",
    b"[1]\n",
    b'{"v":1,"id":1,"event":"other","batch":{}}\n',
    b'{"v":1,"id":1,"event":"ticks","batch":5}\n',
    b'{"v":1,"id":1,"event":"ticks","batch":{"epoch":"x"}}\n',
]


@pytest.mark.parametrize("line", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_in_place_of_an_event_is_an_agent_error(tmp_path: Path, line: bytes) -> None:
    """S3-08: whatever is told, the consumer gets AgentError and nothing else."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"v":1,"id":1,"ok":true,"result":{"epoch":"x","after":0}}\n' + line)
        writer.close()

    async def body() -> None:
        server = await asyncio.start_unix_server(reply, tmp_path / "s")
        async with server:
            await anext(AgentClient(tmp_path / "s").subscribe())

    with pytest.raises(AgentError):
        asyncio.run(body())


def test_nothing_shows_energy_finer_than_a_tick(tmp_path: Path) -> None:
    """PLATYPUS (energy.md 0.6): between two ticks, energy spent changes no answer of any op and brings no event."""

    async def ask_all(path: Path) -> list[dict[str, Any]]:
        async with talking(path) as talk:
            ops: list[tuple[str, dict[str, Any]]] = [
                ("hello", {}),
                ("ticks", {"after": 0}),
                ("counters", {}),
                ("window", {"start_ns": 0, "end_ns": str(2**62)}),
                ("subscribe", {}),
                ("unsubscribe", {}),
            ]
            return [await talk.ask(op, **params) for op, params in ops]

    async def body() -> list[list[dict[str, Any]]]:
        async with served(tmp_path) as (node, server), talking(node.path) as subscriber:
            node.run(2)
            await subscriber.ask("subscribe")
            seen = [await ask_all(node.path)]
            for _ in range(9):
                node.tree.advance({"package-0": 3 * J})
                node.clock.advance(S // 10)
                node.agent.sampler.sample()
                seen.append(await ask_all(node.path))
            assert server.counts.events == 0
            node.run(1)
            assert said(await subscriber.reader.readline())["batch"]["ticks"][0]["energy_uj"]["package-0"] == 37 * J
            return seen

    first, *others = asyncio.run(body())
    assert others == [first] * 9
