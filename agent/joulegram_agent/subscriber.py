"""The ticks of an agent behind a socket, told as they are published, so that it need not be asked for each.

Invariants:
    * `ticks` gives what the agent would have answered, but for what is on its way;
    * what was told is given to whoever asks for it, as often as it is asked for, while it is kept;
    * whatever is not plain (silence, a new epoch, an `after` older than what is kept) is settled by asking;
    * something is asked each `ASK_S`: an agent closes a connection that asks nothing, and lets go of what it named.

Being asked costs an agent of 10 named processes and 50 cgroups 0.8 ms a time: it is woken up for it with cold caches
and answers through the whole of asyncio. Telling in the moment of publishing is half of that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from joulegram_agent.client import TIMEOUT_S, AgentClient
from joulegram_pipeline.energy import PUBLISH_S, TickBatch
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

KEPT = 60
"""Ticks kept of what was told."""

SILENT_S = 3 * PUBLISH_S
"""An agent that told nothing for this long is asked whether it is there."""

ASK_S = 60.0


class Subscriber:
    """A `joulegram_pipeline.energy.TickSource` behind a socket, for who takes every tick; an async context manager.

    Raises what `AgentClient` raises, when it does.

    Args:
        path: of the socket.
        timeout_s: for one question, connecting included.
    """

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._client = AgentClient(path, timeout_s)
        self._told: _Told | None = None
        self._asked_s = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._begin(None)
        await self._client.close()

    async def ticks(self, after: int) -> TickBatch:
        """The kept ticks whose `seq` is above `after`."""
        told, now_s = self._told, asyncio.get_running_loop().time()
        if told is not None and told.lives(now_s) and now_s - self._asked_s < ASK_S:
            batch = told.above(after)
            if batch is not None:
                return batch
        batch = await self._client.ticks(after)
        self._asked_s = now_s
        if told is None or not told.lives(now_s) or told.about.epoch != batch.epoch:
            await self._begin(_Told(self._client, batch, after))
        return batch

    async def name(self, pids: Sequence[int]) -> None:
        """Have these processes read in every tick until they end, beside those named before."""
        await self._client.name(pids)

    async def _begin(self, told: _Told | None) -> None:
        before, self._told = self._told, told
        if before is not None:
            await before.stop()


class _Told:
    """A subscription, and the last ticks it told.

    Args:
        client: of the agent.
        asked: what it answered; the subscription begins behind that.
        after: what it was asked.
    """

    def __init__(self, client: AgentClient, asked: TickBatch, after: int) -> None:
        self.about = replace(asked, ticks=())
        self._ticks = deque(asked.ticks, KEPT)
        self._last = asked.ticks[-1].seq if asked.ticks else after
        self._heard_s = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._listen(client), name="ticks of the agent")

    def lives(self, now_s: float) -> bool:
        """Whether it would know of a tick."""
        return not self._task.done() and now_s - self._heard_s < SILENT_S

    def above(self, after: int) -> TickBatch | None:
        """The ticks above `after`; None where some of them are not kept, or `after` is of no tick known."""
        begins = self._ticks[0].seq - 1 if self._ticks else self._last
        if not begins <= after <= self._last:
            return None
        return replace(self.about, ticks=tuple(tick for tick in self._ticks if tick.seq > after))

    async def stop(self) -> None:
        """End the subscription."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _listen(self, client: AgentClient) -> None:
        with contextlib.suppress(AgentError):  # who asks next is told
            async with aclosing(client.subscribe(self._last)) as batches:
                async for batch in batches:
                    if batch.epoch != self.about.epoch or not batch.ticks:
                        return
                    self.about = replace(batch, ticks=())
                    self._ticks.extend(batch.ticks)
                    self._last = batch.ticks[-1].seq
                    self._heard_s = asyncio.get_running_loop().time()
