"""What a connection asked for that lasts: its subscription. The agent holds its names under this very object.

Invariants:
    * no tick is told twice or left out: a page begins where the last one ended, and a new epoch at its first tick;
    * nothing is kept for a subscriber: what it has not taken lies in the agent's ring, and goes when the ring drops it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from joulegram_agent.protocol import event_line, page_of
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from joulegram_agent.local import LocalAgent


class Session:
    """One connection's."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._request_id: int | str | None = None
        self._epoch: str | None = None
        self._after = 0

    @property
    def subscribed(self) -> bool:
        """Whether ticks are to be told."""
        return self._epoch is not None

    def begin(self, request_id: int | str | None, epoch: str, after: int) -> None:
        """Tell the ticks of this epoch above `after`, and all of those that follow.

        Raises:
            AgentError: it has a subscription.
        """
        if self.subscribed:
            raise AgentError("this connection is subscribed; unsubscribe first, or open another")
        self._request_id, self._epoch, self._after = request_id, epoch, after
        self.changed.set()

    def end(self) -> None:
        """Tell no more.

        Raises:
            AgentError: it has no subscription.
        """
        if not self.subscribed:
            raise AgentError("this connection is not subscribed")
        self._epoch = None
        self.changed.clear()

    def next_event(self, agent: LocalAgent) -> bytes | None:
        """The line to send now, with its line feed; None where no tick is new.

        Raises:
            AgentError: the sampling loop has ended.
        """
        agent.check()
        if not self.subscribed:
            return None
        newest = agent.sampler.ring.last
        if newest is None or (newest.seq <= self._after and agent.sampler.epoch == self._epoch):
            return None
        about = agent.sampler.about
        if about.epoch != self._epoch:
            self._epoch, self._after = about.epoch, 0
        page = page_of(about, agent.sampler.above(self._after))
        if not page.last_seq:
            return None
        self._after = page.last_seq
        return event_line(self._request_id, page)
