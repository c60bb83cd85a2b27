"""The agent in this process: the sampler's loop as a task, and its ticks for whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from types import TracebackType

    from joulegram_agent.reader import Reader
    from joulegram_agent.sampler import Sampler
    from joulegram_pipeline.energy import Tick, TickBatch

MAX_NAMED = 1_024
"""Named processes in all; beyond this a name is refused, because each costs a look at every tick."""


class LocalAgent:
    """Samples while it is entered, and is a `joulegram_pipeline.energy.TickSource`.

    Names are held for a holder (a connection, or the agent's own caller) and end with it or with the process
    named.

    Args:
        reader: the source; closed when the agent is left.
        sampler: made on `reader`.
    """

    def __init__(self, reader: Reader, sampler: Sampler) -> None:
        self.reader = reader
        self.sampler = sampler
        self._holders: dict[Hashable, set[int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.sampler.sample()
        self._task = asyncio.create_task(self.sampler.run(self._published), name="joulegram agent sampler")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._task is not None:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task
        finally:
            self.sampler.close()
            self.reader.close()

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
        found = [pid for pid in pids if trees.name(pid)]
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

    async def stopped(self) -> None:
        """Wait for the loop, which ends by cancellation or by an error, which is then raised."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def check(self) -> None:
        """Raise AgentError if the loop has ended."""
        if self._task is not None and self._task.done():
            raise AgentError(f"the agent's sampling loop has ended: {self._task!r}")

    def _passed(self, wall_ns: int) -> bool:
        published = self.sampler.published
        return bool(published) and published[-1].end_ns >= wall_ns

    def _published(self, _tick: Tick) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
