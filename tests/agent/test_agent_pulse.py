"""How the sampling goes, as it is counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.local import LocalAgent
from joulegram_agent.pulse import BOUNDS_S, Pulse
from joulegram_agent.reader import NoEnergyReader, Reading
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.units import NS_PER_S
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MS = 1_000_000


def test_a_read_falls_into_the_bucket_of_its_time() -> None:
    """Each bound takes what is up to it; beyond the last is the open bucket."""
    pulse = Pulse()
    for bound in BOUNDS_S:
        pulse.sampled(round(bound * NS_PER_S))
    pulse.sampled(round(BOUNDS_S[0] * NS_PER_S) + 1)
    pulse.sampled(5 * NS_PER_S)
    assert pulse.reads_by_bound == [1, 2, *[1] * (len(BOUNDS_S) - 2), 1]
    assert pulse.samples == sum(pulse.reads_by_bound)
    assert pulse.read_ns == sum(round(bound * NS_PER_S) for bound in BOUNDS_S) + 100_001 + 5 * NS_PER_S


class SlowReader(NoEnergyReader):
    """Takes the times it is given, one a read, then none."""

    def __init__(self, clock: ManualClock, *times_ns: int) -> None:
        super().__init__("test")
        self._clock = clock
        self._times_ns = iter(times_ns)

    def read(self) -> Reading:
        self._clock.advance(next(self._times_ns, 0))
        return Reading()


@pytest.mark.parametrize(
    ("times_ms", "oversleep_ms", "missed"),
    [((), 0, 0), ((0, 0, 250), 0, 2), ((0, 99), 0, 0), ((0, 101), 0, 1), ((), 30, 0), ((), 230, 2 * 20)],
    ids=["in time", "a slow read", "nearly", "just", "late, in time", "late each time"],
)
def test_deadlines_that_passed_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times_ms: tuple[int, ...],
    oversleep_ms: int,
    missed: int,
) -> None:
    """S3-03: each 0.1 s that a slow read or a late wake-up left out counts once, over 20 sleeps and their samples."""
    clock = ManualClock()
    reader = SlowReader(clock, *(each * MS for each in times_ms))
    sampler = Sampler(reader, proc_root=FakeProc(tmp_path).root, clock=clock)
    sampler.sample()
    sleeps = iter(range(21))

    async def body() -> None:
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        assert running is not None

        def call_later(delay_s: float, step: Callable[[], None]) -> asyncio.Handle:
            if next(sleeps) == 20:
                running.cancel()
                return loop.call_soon(clock.mono_ns)
            clock.advance(round(delay_s * NS_PER_S) + oversleep_ms * MS)
            return loop.call_soon(step)

        monkeypatch.setattr(loop, "call_later", call_later)
        await sampler.run(lambda tick: None)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(body())
    assert (sampler.pulse.missed_samples, sampler.pulse.samples) == (missed, 21)
    assert sampler.pulse.ticks == len(sampler.published) > 0


def test_the_end_of_the_loop_is_news() -> None:
    """S3-08: who waits for a tick is woken when none will come."""

    class Broken(NoEnergyReader):
        reads = 0

        def read(self) -> Reading:
            self.reads += 1
            if self.reads > 1:
                raise RuntimeError("broken")
            return Reading()

    async def body() -> None:
        reader = Broken("test")
        async with LocalAgent(reader, Sampler(reader, sample_s=0.001)) as agent:
            async with asyncio.timeout(5):
                await agent.news()
            woken.append(True)

    woken: list[bool] = []
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(body())
    assert woken == [True]
