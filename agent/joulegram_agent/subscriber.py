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
import math
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
        self._asked_s = -math.inf
        self._is_left = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left = True
        if self._told is not None:
            await self._told.stop()
        await self._client.close()

    async def ticks(self, after: int) -> TickBatch:
        """The kept ticks whose `seq` is above `after`; the first of them, where they are more than a page."""
        told, now_s = self._told, asyncio.get_running_loop().time()
        batch = None if told is None else told.above(after, now_s)
        if batch is not None and now_s - self._asked_s < ASK_S:
            return batch
        # A question that fails closes its connection, and the agent lets go of what was named there.
        self._asked_s = -math.inf
        try:
            asked, is_more = await self._client.page(after)
        except AgentError:
            if batch is None or not batch.ticks:
                raise
            return batch
        self._asked_s = now_s
        # Not behind a page: the agent would tell all the rest at once, at the price of what can be asked meanwhile.
        if not is_more and not self._is_left:
            await self._subscribe(asked, after, now_s)
        return asked

    async def name(self, pids: Sequence[int]) -> None:
        """Have these processes read in every tick until they end, beside those named before."""
        asked_s, self._asked_s = self._asked_s, -math.inf
        await self._client.name(pids)
        self._asked_s = asked_s

    async def _subscribe(self, asked: TickBatch, after: int, now_s: float) -> None:
        """Begin a subscription, unless there is one that serves, or the last came to nothing and is not long ago."""
        before = self._told
        if before is not None:
            if before.lives(now_s) and before.about.epoch == asked.epoch:
                return
            if not before.has_told and now_s - before.begun_s < ASK_S:
                return
        self._told = _Told(self._client, asked, after)
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
        self.has_told = False
        self.begun_s = asyncio.get_running_loop().time()
        self._ticks = deque(asked.ticks, KEPT)
        self._last = asked.ticks[-1].seq if asked.ticks else after
        self._heard_s = self.begun_s
        self._task = asyncio.create_task(self._listen(client), name="ticks of the agent")

    def lives(self, now_s: float) -> bool:
        """Whether it would know of a tick."""
        return not self._task.done() and now_s - self._heard_s < SILENT_S

    def above(self, after: int, now_s: float) -> TickBatch | None:
        """The ticks above `after`; None where they are not all kept, or there are none and it would not know of one."""
        begins = self._ticks[0].seq - 1 if self._ticks else self._last
        if not begins <= after <= self._last or (after == self._last and not self.lives(now_s)):
            return None
        return replace(self.about, ticks=tuple(tick for tick in self._ticks if tick.seq > after))

    async def stop(self) -> None:
        """End the subscription."""
        self._task.cancel()
        # Not awaited itself: it would not be told whose cancellation came, the task's or the caller's.
        await asyncio.wait([self._task])

    async def _listen(self, client: AgentClient) -> None:
        with contextlib.suppress(AgentError):  # who asks next is told
            async with aclosing(client.subscribe(self._last)) as batches:
                async for batch in batches:
                    self.has_told = True
                    if batch.epoch != self.about.epoch or not batch.ticks:
                        return
                    self.about = replace(batch, ticks=())
                    self._ticks.extend(batch.ticks)
                    self._last = batch.ticks[-1].seq
                    self._heard_s = asyncio.get_running_loop().time()
