"""The poller: time advances in the log once, in order, whether or not the agent is there (docs/architecture.md)."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import Domain, DomainKind, Method, Tick, TickBatch
from joulegram_pipeline.errors import AgentError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_receiver.poller import OVERLAP_REASON, Poller
from joulegram_receiver.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

S = 1_000_000_000
START = 1000 * S


class Wall:
    """A wall clock the test sets."""

    def __init__(self) -> None:
        self.now_ns = START

    def wall_ns(self) -> int:
        return self.now_ns

    def mono_ns(self) -> int:
        return self.now_ns


class Agent:
    """A tick source whose ticks, epoch and absence the test decides."""

    def __init__(self) -> None:
        self.epoch = "boot-1"
        self.published: list[Tick] = []
        self.away: str | None = None
        self.asked: list[int] = []
        self.answered = asyncio.Event()
        self.named: list[tuple[int, ...]] = []

    def publish(self, start_ns: int, end_ns: int) -> None:
        seq = len(self.published) + 1
        self.published.append(Tick(seq, start_ns, end_ns, {"package-0": 5}))

    def restart(self, epoch: str) -> None:
        self.epoch, self.published = epoch, []

    async def ticks(self, after: int) -> TickBatch:
        if self.away is not None:
            raise AgentError(self.away)
        self.asked.append(after)
        self.answered.set()
        ticks = tuple(tick for tick in self.published if tick.seq > after)
        domains = (Domain("package-0", DomainKind.CPU),)
        return TickBatch(self.epoch, "powercap", Method.MEASURED, None, domains, ticks)

    async def name(self, pids: Sequence[int]) -> None:
        if self.away is not None:
            raise AgentError(self.away)
        self.named.append(tuple(pids))


def batches(spool: Spool) -> list[TickBatch]:
    records = spool.read(0, 1 << 20)
    assert all(record.kind is RecordKind.TICKS for record in records)
    return [TickBatch.from_bytes(record.payload) for record in records]


def spans(spool: Spool) -> list[tuple[int, int]]:
    """Start and end of every tick in the log, in seconds since START."""
    ticks = [tick for batch in batches(spool) for tick in batch.ticks]
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(ticks))
    return [((tick.start_ns - START) // S, (tick.end_ns - START) // S) for tick in ticks]


def poll(
    tmp_path: Path, body: Callable[[Poller, Agent, Wall, Spool], Awaitable[None]], patience_s: float = 0.0
) -> None:
    """Run `body` with a poller that asks only when it is told to: its own interval is an hour."""

    async def main() -> None:
        agent, wall = Agent(), Wall()
        async with (
            Spool(tmp_path, Metrics()) as spool,
            Poller(agent, spool, 3600.0, clock=wall, patience_s=patience_s) as poller,
        ):
            await asyncio.sleep(0)
            await body(poller, agent, wall, spool)

    asyncio.run(main())


def test_ticks_go_to_the_log_once(tmp_path: Path) -> None:
    """Each poll asks behind the last tick; an empty answer appends nothing."""

    async def body(poller: Poller, agent: Agent, wall: Wall, spool: Spool) -> None:
        agent.publish(START, START + S)
        agent.publish(START + S, START + 2 * S)
        assert await poller.flush_until(START + 2 * S, 5)
        assert not await poller.flush_until(START + 3 * S, 0.15)
        agent.publish(START + 2 * S, START + 3 * S)
        assert await poller.flush_until(START + 3 * S, 5)
        assert spans(spool) == [(0, 1), (1, 2), (2, 3)]
        first, second = batches(spool)
        assert (first.source, first.method, len(first.ticks), len(second.ticks)) == (
            "powercap",
            Method.MEASURED,
            2,
            1,
        )
        assert agent.asked[-1] == 2

    poll(tmp_path, body)


def test_while_the_agent_is_away_time_advances_without_energy(tmp_path: Path) -> None:
    """A heartbeat covers the time since the last tick, says why, and never says 0 J."""

    async def body(poller: Poller, agent: Agent, wall: Wall, spool: Spool) -> None:
        agent.publish(START, START + S)
        assert await poller.flush_until(START + S, 5)
        agent.away = "connection refused"
        for second in (3, 4):
            wall.now_ns = START + second * S
            assert await poller.flush_until(wall.now_ns, 5)
        assert spans(spool) == [(0, 1), (1, 3), (3, 4)]
        _, first, second_beat = batches(spool)
        assert (first.method, first.source, first.reason, first.domains) == (
            Method.UNAVAILABLE,
            "none",
            "connection refused",
            (),
        )
        assert first.ticks[0].energy_uj == {}
        assert [(gap.domain, gap.reason) for gap in first.ticks[0].gaps] == [("*", "connection refused")]
        assert (first.epoch, second_beat.ticks[0].seq) == (second_beat.epoch, first.ticks[0].seq + 1)

    poll(tmp_path, body)


def test_what_the_agent_kept_from_before_is_taken(tmp_path: Path) -> None:
    """Ticks from before the sidecar began, while the log has none: a sidecar that was killed loses no energy."""

    async def body(poller: Poller, agent: Agent, wall: Wall, spool: Spool) -> None:
        agent.publish(START - 2 * S, START - S)
        agent.publish(START - S, START)
        assert await poller.flush_until(START, 5)
        assert spans(spool) == [(-2, -1), (-1, 0)]

    poll(tmp_path, body)


def test_an_agent_that_is_away_briefly_loses_nothing(tmp_path: Path) -> None:
    """Until patience ends no time is written off, and what the agent measured meanwhile is taken when it is back."""

    async def body(poller: Poller, agent: Agent, wall: Wall, spool: Spool) -> None:
        agent.publish(START, START + S)
        assert await poller.flush_until(START + S, 5)
        agent.away = "connection refused"
        wall.now_ns += 3 * S
        assert not await poller.flush_until(wall.now_ns, 0.15)
        agent.away = None
        agent.publish(START + S, START + 4 * S)
        assert await poller.flush_until(START + 4 * S, 5)
        assert spans(spool) == [(0, 1), (1, 4)]
        assert batches(spool)[1].ticks[0].energy_uj == {"package-0": 5}

    poll(tmp_path, body, patience_s=5.0)


def test_energy_of_time_already_recorded_is_missing_not_doubled(tmp_path: Path) -> None:
    """Ticks the agent kept while away: those under a heartbeat go, one that reaches out of it is cut, with a reason."""

    async def body(poller: Poller, agent: Agent, wall: Wall, spool: Spool) -> None:
        agent.away = "away"
        wall.now_ns = START + 5 * S
        assert await poller.flush_until(wall.now_ns, 5)
        agent.away = None
        for begin in (0, 2, 4, 6):
            agent.publish(START + begin * S, START + (begin + 2) * S)
        assert await poller.flush_until(START + 8 * S, 5)
        assert spans(spool) == [(0, 5), (5, 6), (6, 8)]
        cut, whole = batches(spool)[1].ticks
        assert (cut.energy_uj, cut.gaps[0].reason) == ({}, OVERLAP_REASON)
        assert whole.energy_uj == {"package-0": 5}

    poll(tmp_path, body)


def test_a_new_epoch_is_asked_from_its_beginning(tmp_path: Path) -> None:
    """A restarted agent counts from 1 again; nothing of it is hidden behind the old count."""

    async def body(poller: Poller, agent: Agent, wall: Wall, spool: Spool) -> None:
        for second in range(3):
            agent.publish(START + second * S, START + (second + 1) * S)
        assert await poller.flush_until(START + 3 * S, 5)
        agent.restart("boot-2")
        agent.publish(START + 3 * S, START + 4 * S)
        assert await poller.flush_until(START + 4 * S, 5)
        assert spans(spool) == [(0, 1), (1, 2), (2, 3), (3, 4)]
        assert [batch.epoch for batch in batches(spool)] == ["boot-1", "boot-2"]

    poll(tmp_path, body)


def test_names_are_repeated_when_the_agent_comes_back(tmp_path: Path) -> None:
    """A process named while the agent was away, or before it restarted, is named to the new one."""

    async def body(poller: Poller, agent: Agent, wall: Wall, spool: Spool) -> None:
        agent.away = "away"
        await poller.name([7, 8])
        assert agent.named == []
        agent.away = None
        agent.publish(START, START + S)
        assert await poller.flush_until(START + S, 5)
        assert agent.named == [(7, 8)]
        agent.restart("boot-2")
        agent.publish(START + S, START + 2 * S)
        assert await poller.flush_until(START + 2 * S, 5)
        assert agent.named == [(7, 8), (7, 8)]

    poll(tmp_path, body)


def test_an_agent_that_does_not_answer_counts_as_away(tmp_path: Path) -> None:
    """A source that hangs holds up neither the log's time nor the stop."""

    class Hanging(Agent):
        async def ticks(self, after: int) -> TickBatch:
            await asyncio.Event().wait()
            raise AssertionError

    async def main() -> None:
        wall = Wall()
        async with Spool(tmp_path, Metrics()) as spool:
            async with Poller(Hanging(), spool, 3600.0, clock=wall, answer_s=0.02, patience_s=0):
                wall.now_ns += 2 * S
            assert spans(spool) == [(0, 2)]
            assert batches(spool)[0].reason == "the agent did not answer within 0.02 s"

    asyncio.run(main())


def test_it_polls_by_itself_and_brings_a_last_tick_at_stop(tmp_path: Path) -> None:
    """Polled each interval; what was published since is brought at stop."""

    async def main() -> None:
        agent = Agent()
        async with Spool(tmp_path, Metrics()) as spool:
            async with Poller(agent, spool, 0.01, clock=Wall()):
                agent.publish(START, START + S)
                assert await asyncio.to_thread(spool.wait_beyond, 0, 20.0)
            async with Poller(agent, spool, 3600.0, last_end_ns=START + S, clock=Wall()):
                agent.answered.clear()
                await agent.answered.wait()
                agent.publish(START + S, START + 2 * S)
            assert spans(spool) == [(0, 1), (1, 2)]

    asyncio.run(main())
