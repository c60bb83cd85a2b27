"""The upstream: what the outbox holds goes to the next hop until it took it or refused it for good.

Invariants:
    * the outbox's position moves only behind items that were taken or written to ``deadletter/``;
    * what can be taken later is tried for ever: nothing is dropped because time passed;
    * delivery is at least once: a crash between the upstream's answer and the position sends a batch again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Self

from joulegram_pipeline.canonical import canonical_plain
from joulegram_pipeline.clock import utc_iso_ns
from joulegram_pipeline.errors import RetryableError, StorageError
from joulegram_pipeline.files import replace_file, safe_mkdir
from joulegram_sink.upstream_transport import SIGNALS, Verdict, transport_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import RecordKind
    from joulegram_sink.outbox import Outbox, OutboxItem
    from joulegram_sink.upstream_transport import Answer, Transport

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""Requests of one signal are sent as one up to this: what a gRPC server takes by default."""

_TIMEOUT_S = 10.0
_LINGER_S = 0.02
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0


class Upstream:
    """Forwards an outbox; an async context manager.

    Args:
        endpoint: ``grpc://host:port`` or ``http://host:port``.
        outbox: entered before this and left after it.
        metrics: forwarded_requests, forward_failures by ``retry``, ``refused`` and ``partial``.
        deadletter: directory for what the upstream refused for good; made when it is needed.
        timeout_s: of one send.
        linger_s: how long a small batch waits for company.
        max_batch_bytes: of one send, unless a single request is larger.

    Raises:
        ConfigError: (on enter) the endpoint is not one.
    """

    def __init__(
        self,
        endpoint: str,
        outbox: Outbox,
        metrics: Metrics,
        deadletter: Path,
        *,
        timeout_s: float = _TIMEOUT_S,
        linger_s: float = _LINGER_S,
        max_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        self._endpoint = endpoint
        self._outbox = outbox
        self._metrics = metrics
        self._deadletter = deadletter
        self._timeout_s = timeout_s
        self._linger_s = linger_s
        self._max_batch_bytes = max_batch_bytes
        self._more = asyncio.Event()
        self._progress = asyncio.Event()
        self._hurry = False
        self._transport: Transport | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._transport = transport_for(self._endpoint, self._timeout_s)
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._more.set)

        self._outbox.wake_with(wake)
        self._task = asyncio.create_task(self._run(), name="upstream")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once; what is not taken stays in the outbox. `drain` comes before, where there is time."""
        self._outbox.wake_with(None)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._transport is not None:
            await self._transport.close()

    async def drain(self, budget_s: float) -> bool:
        """Send without lingering until the outbox is empty or the budget is spent; whether it is empty."""
        self._hurry = True
        self._more.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(budget_s):
                while self._outbox.position < self._outbox.durable_lsn:
                    self._progress.clear()
                    await self._progress.wait()
        self._hurry = False
        return self._outbox.position >= self._outbox.durable_lsn

    async def _run(self) -> None:
        backoff = _Backoff()
        while True:
            self._more.clear()
            backlog = self._outbox.durable_lsn - self._outbox.position
            if not backlog:
                await self._more.wait()
                if not self._hurry:
                    await asyncio.sleep(self._linger_s)
                continue
            try:
                await self._forward(self._outbox.read(self._max_batch_bytes))
                backoff = _Backoff()
            except RetryableError:
                # The disk, not the upstream: the data is where it was.
                await asyncio.sleep(backoff.next_s())

    async def _forward(self, items: list[OutboxItem]) -> None:
        """Deliver one read of the outbox, each signal in order, and move the position behind it."""
        signals: dict[RecordKind, list[OutboxItem]] = {}
        for item in items:
            signals.setdefault(item.kind, []).append(item)
        async with asyncio.TaskGroup() as group:
            for kind, of_kind in signals.items():
                group.create_task(self._deliver(kind, of_kind))
        if items:
            self._outbox.advance(items[-1].next_lsn)
            self._progress.set()

    async def _deliver(self, kind: RecordKind, items: Sequence[OutboxItem]) -> None:
        """Send until the items are taken, or refused for good and put aside."""
        # Protobuf messages concatenate: repeated resource_spans of both follow each other.
        body = b"".join([item.request for item in items])
        backoff = _Backoff()
        while True:
            answer = await self._send(kind, body)
            match answer.verdict:
                case Verdict.TAKEN:
                    self._metrics.forwarded_requests.inc(len(items))
                    if answer.rejected or answer.text:
                        self._metrics.forward_failures.labels("partial").inc()
                    return
                case Verdict.RETRY:
                    self._metrics.forward_failures.labels("retry").inc()
                    await asyncio.sleep(max(backoff.next_s(), answer.retry_after_s or 0.0))
                case Verdict.SPLIT if len(items) > 1:
                    half = len(items) // 2
                    await self._deliver(kind, items[:half])
                    await self._deliver(kind, items[half:])
                    return
                case _:
                    try:
                        await asyncio.to_thread(self._put_aside, kind, items, body, answer.text)
                    except StorageError:
                        # Not even put aside, so not done with: it is offered again.
                        await asyncio.sleep(backoff.next_s())
                        continue
                    self._metrics.forward_failures.labels("refused").inc()
                    return

    async def _send(self, kind: RecordKind, body: bytes) -> Answer:
        assert self._transport is not None
        return await self._transport.send(kind, body)

    def _put_aside(self, kind: RecordKind, items: Sequence[OutboxItem], body: bytes, reason: str) -> None:
        """Write what was refused, then why; the reason's file stands only beside whole data."""
        directory = safe_mkdir(self._deadletter)
        wall_ns = time.time_ns()
        name = f"{wall_ns}-{SIGNALS[kind].name}"
        replace_file(directory / f"{name}.bin", body)
        said = {
            "at": utc_iso_ns(wall_ns),
            "bytes": len(body),
            "positions": [list(item.pos) for item in items],
            "reason": reason,
            "signal": SIGNALS[kind].name,
        }
        replace_file(directory / f"{name}.json", canonical_plain(said) + b"\n")


class _Backoff:
    """Waits that double from 0.1 s to 5 s, with chance in them: a thousand nodes must not come at once."""

    def __init__(self) -> None:
        self._next_s = _FIRST_BACKOFF_S

    def next_s(self) -> float:
        wait_s = self._next_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        self._next_s = min(self._next_s * 2, _LAST_BACKOFF_S)
        return wait_s
