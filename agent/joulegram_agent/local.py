"""The agent in this process: the sampler's loop as a task, its ticks for whoever asks, and the sensors beside."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from joulegram_agent import MAX_NAMED
from joulegram_agent.restart import SAVE_NS
from joulegram_pipeline.energy import PUBLISH_S
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from types import TracebackType

    from joulegram_agent.reader import Reader
    from joulegram_agent.sampler import Sampler
    from joulegram_agent.sensors import Sensors, SensorTotals
    from joulegram_agent.state import Instant, StateFile
    from joulegram_pipeline.energy import Tick, TickBatch

_LATE_S = 0.01


class LocalAgent:
    """Samples while it is entered, and is a `joulegram_pipeline.energy.TickSource`.

    Names are held for a holder (a connection, or the agent's own caller) and end with it or with the process
    named.

    Args:
        reader: the source; closed when the agent is left.
        sampler: made on `reader`.
        sensors: shown beside, closed when the agent is left. They are read in a thread: firmware may take long.
        state: where the counts survive a restart.
    """

    def __init__(
        self, reader: Reader, sampler: Sampler, *, sensors: Sensors | None = None, state: StateFile | None = None
    ) -> None:
        self.reader = reader
        self.sampler = sampler
        self._sensors = sensors
        self._sensing: asyncio.Task[None] | None = None
        self._state = state
        self._saved_at: Instant | None = None
        self._holders: dict[Hashable, set[int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        left = None if self._state is None else self._state.load()
        if left is not None:
            self.sampler.resume(left)
        self.sampler.sample()
        # What was left and not added to is not written back: another agent may hold the socket, and the file with it.
        self._saved_at = self.sampler.counted_at
        self._task = asyncio.create_task(self.sampler.run(self.published), name="joulegram agent sampler")
        self._task.add_done_callback(lambda _: self._tell())
        if self._sensors is not None and self._sensors.totals:
            self._sensing = asyncio.create_task(_sense(self._sensors), name="joulegram agent sensors")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for task in (self._sensing, self._task):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
        finally:
            self.sampler.close()
            self._save()
            self.close()

    def close(self) -> None:
        """Give back what the reader and the sensors hold; entered or not; a second call does nothing."""
        self.reader.close()
        if self._sensors is not None:
            self._sensors.close()

    @property
    def beside(self) -> tuple[SensorTotals, ...]:
        """The sensors beside the measured set, as of their last read; in no sum."""
        return () if self._sensors is None else self._sensors.totals

    async def ticks(self, after: int) -> TickBatch:
        """The kept ticks whose `seq` is above `after`.

        Raises:
            AgentError: the loop has ended, so no tick will come.
        """
        self.check()
        return self.sampler.batch(after)

    async def name(self, pids: Sequence[int]) -> None:
        """Have these processes read in every tick until they end, beside those named before.

        Raises:
            AgentError: more than `MAX_NAMED` would be named.
        """
        self.name_for(self, pids)

    def name_for(self, holder: Hashable, pids: Sequence[int]) -> list[int]:
        """As `name`, until `holder` is released; the pids of those that exist.

        Raises:
            AgentError: more than `MAX_NAMED` would be named; then none of these is.
        """
        trees = self.sampler.trees
        if len(trees.roots.union(pids)) > MAX_NAMED:
            raise AgentError(f"got {len(pids)} pids beside {len(trees.roots)} named, expected at most {MAX_NAMED}")
        found = trees.name_all(pids)
        held = self._holders.setdefault(holder, set())
        held.intersection_update(trees.roots)
        held.update(found)
        return found

    def release(self, holder: Hashable) -> None:
        """Let go of what `holder` named and nobody else did."""
        gone = self._holders.pop(holder, set())
        for pid in gone.difference(*self._holders.values()):
            self.sampler.trees.forget(pid)

    async def final_tick(self, wall_ns: int, timeout_s: float = 3.0) -> bool:
        """Wait until a published tick ends at or after `wall_ns`, so that energy up to there is known.

        Returns:
            False if that did not happen within `timeout_s`, or the loop has ended.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._passed(wall_ns):
                    await self._news.wait()
        return self._passed(wall_ns)

    async def news(self) -> None:
        """Wait for the next tick, or for the end of the loop."""
        await self._news.wait()

    async def stopped(self) -> None:
        """Wait for the loop, which ends by cancellation or by an error, which is then raised."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def check(self) -> None:
        """Raise AgentError if the loop has ended."""
        if self._task is not None and self._task.done():
            raise AgentError(f"the agent's sampling loop has ended: {self._task!r}")

    def _passed(self, wall_ns: int) -> bool:
        newest = self.sampler.ring.last
        return newest is not None and newest.end_ns >= wall_ns

    def _save(self) -> None:
        state = self.sampler.state
        if self._state is not None and state is not None and state.at != self._saved_at:
            self._state.save(state)
            self._saved_at = state.at

    def published(self, _tick: Tick) -> None:
        """Keep the counts now and then, and wake those who wait for a tick."""
        at, saved = self.sampler.counted_at, self._saved_at
        if at is not None and (saved is None or at.mono_ns - saved.mono_ns >= SAVE_NS):
            self._save()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


async def _sense(sensors: Sensors) -> None:
    """Read the sensors each second, or as often as they answer."""
    loop = asyncio.get_running_loop()
    while True:
        began_s = loop.time()
        await asyncio.to_thread(sensors.sample)
        # Not early: what comes before its second is over is not read.
        await asyncio.sleep(max(0.0, began_s + PUBLISH_S - loop.time()) + _LATE_S)
