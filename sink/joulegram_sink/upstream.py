"""The upstream: what the outbox holds goes to every destination until that took it or refused it for good.

Invariants:
    * each destination has its own queue, position, pace and figures (A10); one that is away holds up no other until
      it is `queue_size` behind;
    * several destinations share one copy of the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from joulegram_sink.upstream_destination import MAX_BATCH_BYTES, Destination
from joulegram_sink.upstream_forwarder import Forwarder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_sink.outbox import Outbox
    from joulegram_sink.upstream_forwarder import Tally

__all__ = ["MAX_BATCH_BYTES", "Destination", "DestinationStatus", "Upstreams"]


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """How a destination stands, for metrics and the page of the pipelines.

    Args:
        name: of the destination.
        endpoint: of it.
        backlog_bytes: appended and not taken; of those on disk nearly.
        oldest_age_s: since the oldest of them was appended, 0 where there is none or it is not known.
        in_flight: reads of the outbox that are not done with.
        tally: what it did so far.
    """

    name: str
    endpoint: str
    backlog_bytes: int
    oldest_age_s: float
    in_flight: int
    tally: Tally


class Upstreams:
    """Forwards an outbox to its destinations; an async context manager.

    Args:
        destinations: one at least; the outbox was made with their names.
        outbox: entered before this and left after it.
        metrics: forwarded_requests and forward_failures of all destinations.
        deadletter: directory for what was refused for good; made when it is needed.

    Raises (on enter):
        ConfigError: a key of a destination cannot be used.
    """

    def __init__(self, destinations: Sequence[Destination], outbox: Outbox, metrics: Metrics, deadletter: Path) -> None:
        self._destinations = tuple(destinations)
        self._outbox = outbox
        self._metrics = metrics
        self._deadletter = deadletter
        self._forwarders: tuple[Forwarder, ...] = ()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            made = []
            for destination in self._destinations:
                reader = self._outbox.reader(destination.name)
                forwarder = Forwarder(destination, reader, self._metrics, self._deadletter)
                made.append(await stack.enter_async_context(forwarder))
            self._forwarders = tuple(made)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once; what is not taken stays in the outbox. `drain` comes before, where there is time."""
        await self._stack.__aexit__(kind, value, trace)

    async def drain(self, budget_s: float) -> bool:
        """Send without waiting for company until all is taken or the budget is spent; whether all is taken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(budget_s):
                await asyncio.gather(*(forwarder.drain() for forwarder in self._forwarders))
        return all(forwarder.reader.is_drained for forwarder in self._forwarders)

    def status(self) -> tuple[DestinationStatus, ...]:
        """How each destination stands, in the order of the configuration."""
        return tuple(
            DestinationStatus(
                forwarder.destination.name,
                forwarder.destination.endpoint,
                forwarder.reader.backlog_bytes,
                forwarder.reader.oldest_age_s(),
                forwarder.in_flight,
                forwarder.tally,
            )
            for forwarder in self._forwarders
        )
