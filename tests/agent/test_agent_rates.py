"""How much may be asked: by a user in all, and held by the agent for a peer that does not read."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent import MAX_NAMED, conversation, protocol, rates
from joulegram_agent.conversation import Limits
from joulegram_agent.peers import Allowed, Peer
from joulegram_agent.protocol import answer
from joulegram_agent.rates import Bucket, Rates
from joulegram_agent.session import Session
from simulators.agent_lines import PAGE
from simulators.agent_node import converse, make_node, request, served, talking, until

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_agent.peers import Connection


class HandClock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=60))
def test_no_order_of_asking_gives_more_than_rate_and_burst(steps: list[tuple[float, int]]) -> None:
    """Over any time, what is charged while there is a token is at most burst + rate x time, and one last answer."""
    clock = HandClock()
    bucket = Bucket(10, 40, clock)
    charged = 0
    for passed_s, cost in steps:
        clock.s += passed_s
        if bucket.wait_s() == 0:
            bucket.charge(cost)
            charged += cost
    assert charged <= 40 + 10 * clock.s + 50


@given(st.integers(1, 10_000))
def test_debt_is_paid_off_by_waiting_as_long_as_it_says(cost: int) -> None:
    """After `wait_s` there is a token again, and not much before."""
    clock = HandClock()
    bucket = Bucket(10, 40, clock)
    bucket.charge(cost)
    wait_s = bucket.wait_s()
    assert (wait_s > 0) == (cost > 39)
    clock.s += wait_s * 0.99
    assert (bucket.wait_s() > 0) == (wait_s > 0)
    clock.s += wait_s * 0.010001
    assert bucket.wait_s() == pytest.approx(0, abs=1e-9)


def test_a_bucket_is_a_users_and_few_are_kept() -> None:
    """Connecting again gives nothing new; of too many users the one unused longest is forgotten."""
    users = Rates(10, 40, HandClock())
    first = users.of(1)
    assert users.of(1) is first
    for uid in range(2, rates.MAX_USERS + 2):
        users.of(uid)
    assert users.of(1) is not first
    assert len(users._buckets) == rates.MAX_USERS


def test_who_asks_too_much_is_told_and_slowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocol: without tokens a request gets too_fast with its id, the connection stays, and time makes it good."""
    monkeypatch.setattr(conversation, "TOO_FAST_S", 0.0)
    clock = HandClock()

    async def body() -> list[str]:
        async with served(tmp_path, rates=Rates(1_000, 3, clock)) as (node, server), talking(node.path) as talk:
            codes = []
            for _ in range(4):
                line = await talk.ask("counters")
                codes.append("ok" if line["ok"] else line["error"]["code"])
                assert line["id"] == 7
            clock.s += 1
            codes.append("ok" if (await talk.ask("counters"))["ok"] else "refused")
            assert server.counts.refusals == {"too_fast": codes.count("too_fast")}
            assert server.counts.requests == {"counters": codes.count("ok")}
            return codes

    assert asyncio.run(body()) == ["ok", "ok", "too_fast", "too_fast", "ok"]


def test_a_burst_has_its_answers_one_a_turn(tmp_path: Path) -> None:
    """Protocol: the counters are read and the others answered between two answers of a user with tokens left."""

    async def body() -> list[int]:
        async with served(tmp_path) as (node, server), talking(node.path) as talk:
            talk.writer.write(request("counters") * 200)
            seen = [0]
            while seen[-1] < 200:
                await asyncio.sleep(0)
                seen.append(server.counts.requests["counters"])
            return seen

    seen = asyncio.run(body())
    assert max(after - before for before, after in itertools.pairwise(seen)) == 1


def test_a_peer_that_has_gone_is_not_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A burst whose sender closed at once ends with the first answer that cannot be sent; asyncio logs none of it."""

    async def body() -> int:
        async with served(tmp_path) as (node, server):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(node.path))
                peer.sendall(request("counters") * 300)
            await until(lambda: server.counts.connections > 0 and server.connections == 0)
            return server.counts.requests["counters"]

    assert asyncio.run(body()) < 10
    assert not [record for record in caplog.records if "socket.send" in record.getMessage()]


def test_a_flood_is_not_answered_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocol: a peer in debt gets one refusal for each wait, however many requests it has sent."""
    waits: list[float] = []
    more = asyncio.Event()

    class Asleep:
        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def sleep(self, delay_s: float) -> None:
            if delay_s:
                waits.append(delay_s)
                await more.wait()

    monkeypatch.setattr(conversation, "asyncio", Asleep())

    async def body() -> int:
        async with served(tmp_path, rates=Rates(1, 3, HandClock())) as (node, server), talking(node.path) as talk:
            talk.writer.write(request("hello") * 500)
            await until(lambda: bool(waits))
            for _ in range(100):
                await asyncio.sleep(0)
            return server.counts.refusals["too_fast"] + sum(server.counts.requests.values())

    assert asyncio.run(body()) == 3
    assert waits == [pytest.approx(1.0)]


def test_connecting_again_and_again_is_slowed_too(tmp_path: Path) -> None:
    """Protocol: a connection costs a token, and without one it is told too_fast and closed."""

    async def body() -> list[str]:
        async with served(tmp_path, rates=Rates(1, 2, HandClock())) as (node, _):
            lines = [await converse(node.path) for _ in range(4)]
            return [line["error"]["code"] for answers in lines for line in answers]

    assert asyncio.run(body()) == ["too_fast", "too_fast"]


def test_one_user_cannot_take_every_place(tmp_path: Path) -> None:
    """Protocol: a user has half of the connections at most; another still gets in."""
    users = iter([1, 1, 1, 2])

    def who(_: Connection) -> Peer:
        return Peer(next(users), frozenset({5}))

    async def body() -> list[bool | str]:
        limits = Limits(connections=4, connections_of_user=2)
        served_to = served(tmp_path, limits, who=who, allowed=Allowed(frozenset({5})))
        async with served_to as (node, _), talking(node.path) as one, talking(node.path) as two:
            got: list[bool | str] = [(await one.ask("hello"))["ok"], (await two.ask("hello"))["ok"]]
            async with talking(node.path) as three, talking(node.path) as four:
                return [*got, (await three.line())["error"]["message"], (await four.ask("hello"))["ok"]]

    assert asyncio.run(body()) == [True, True, "2 connections of user 1 are open", True]


COSTS = [
    ({"op": "hello"}, 1),
    ({"op": "counters"}, 1),
    ({"op": "reset"}, 1),
    ({"op": "window", "start_ns": 0, "end_ns": "2000000000"}, 10),
    ({"op": "name", "pids": list(range(100_000, 100_300))}, 301),
    ({"op": "name", "pids": "x"}, 1),
]


@pytest.mark.parametrize(("asked", "cost"), COSTS, ids=str)
def test_what_an_answer_costs(tmp_path: Path, asked: dict[str, Any], cost: int) -> None:
    """docs/agent-protocol.md: a request costs what the page says, refused or not."""
    agent = make_node(tmp_path).agent
    assert answer(agent, Session(), {"v": 1, **asked}).cost == cost
    assert answer(agent, Session(), {"v": 1, **asked}, 3 * protocol.COST_BYTES).cost == cost + 3


def test_ticks_cost_by_their_size(tmp_path: Path) -> None:
    """docs/agent-protocol.md: the whole ring costs what its bytes do."""
    node = make_node(tmp_path)
    node.run(600)
    reply = answer(node.agent, Session(), {"v": 1, "op": "ticks", "after": 0})
    assert reply.cost == 1 + len(reply.line) // protocol.COST_BYTES
    assert reply.cost > 10


def test_memory_is_bounded_where_peers_ask_much_and_read_nothing(tmp_path: Path) -> None:
    """Protocol: peers that ask for everything a thousand times and take nothing hold one page each."""
    held = []

    async def body() -> None:
        limits = Limits(take_s=0.2)
        async with served(tmp_path, limits, rates=Rates(1e9, 1e9)) as (node, server):
            node.run(600)
            page = len(protocol.page_of(node.agent.sampler.about, node.agent.sampler.above(0)).data) + 200
            tracemalloc.start()
            peers = [await asyncio.open_unix_connection(node.path) for _ in range(8)]
            for _, writer in peers:
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads as well
                writer.write(request("ticks", after=0) * 1_000)
            await until(lambda: server.connections == 8)
            conversations = list(server._sessions)
            while server.connections:
                buffers = [c._writer.transport.get_write_buffer_size() for c in server._sessions]
                held.append(max(buffers, default=0))
                assert held[-1] <= page
                assert tracemalloc.get_traced_memory()[0] < 8 * (page + 300_000)
                await asyncio.sleep(0.01)
            tracemalloc.stop()
            assert server.counts.cut_off == {"slow": 8}
            assert [c._writer.transport.get_write_buffer_size() for c in conversations] == [0] * 8, "thrown away"
            for _, writer in peers:
                writer.transport.abort()

    asyncio.run(body())
    assert max(held) > 10_000


def test_small_answers_do_not_pile_up_either(tmp_path: Path) -> None:
    """Protocol: what waits for a peer is one line, not what a transport would take before it says that it is full."""

    async def body() -> int:
        async with served(tmp_path, Limits(take_s=0.2), rates=Rates(1e9, 1e9)) as (node, server):
            _, writer = await asyncio.open_unix_connection(node.path)
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads as well
            writer.write(request("hello") * 20_000)
            held = 0
            await until(lambda: server.connections == 1)
            while server.connections:
                held = max([held, *(c._writer.transport.get_write_buffer_size() for c in server._sessions)])
                await asyncio.sleep(0)
            writer.transport.abort()
            return held

    assert 0 < asyncio.run(body()) < 1_000


def test_events_are_paid_for_like_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocol: subscribing again and again to all that is kept is no way around the rate."""
    monkeypatch.setattr(conversation, "TOO_FAST_S", 0.0)

    async def body() -> list[Any]:
        async with served(tmp_path, rates=Rates(1_000, 8, HandClock())) as (node, _), talking(node.path) as talk:
            node.run(600)
            lines = [await talk.ask("subscribe", after=0), await talk.line(), await talk.ask("unsubscribe")]
            return [line.get("event") or line.get("error", {}).get("code") for line in lines]

    assert asyncio.run(body()) == [None, "ticks", "too_fast"]


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    """docs/agent-protocol.md: each limit stands there as it is."""
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE))
    limits = Limits()
    rate = f"each user has {rates.BURST:.0f} tokens, and {rates.RATE_PER_S:.0f} more each second up to that;"
    assert rows["request line"] == f"{protocol.MAX_REQUEST_BYTES} bytes"
    assert rows["connections"].startswith(f"{limits.connections}, and {limits.connections_of_user} of one user;")
    assert rows["silence"].startswith(f"{limits.idle_s:g} s,")
    assert rows["a line that is not taken"].startswith(f"{limits.take_s:g} s,")
    assert str(protocol.PAGE_BYTES) in rows["ticks in one line"]
    assert rows["rate"].startswith(rate)
    assert f"1 for each {protocol.COST_BYTES} bytes" in rows["rate"]
    assert rows["named processes"] == f"{MAX_NAMED} in all"
    assert len(rows) == 7
