"""One destination's worker: reads its part of the outbox, sends, and moves its position behind what is done with.

Invariants:
    * the position moves in order, only behind items that were taken or written to ``deadletter/``;
    * what can be taken later is offered again for ever, unless `max_elapsed_time` was set;
    * delivery is at least once: a crash between an answer and the position sends a batch again;
    * at most `num_consumers` sends are under way, and each keeps its place until its batch is done with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.life import start_task
from joulegram_sink.upstream_answer import Answer, Verdict
from joulegram_sink.upstream_batch import Batch, batches
from joulegram_sink.upstream_deadletter import put_aside
from joulegram_sink.upstream_transport import transport_for

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_sink.outbox import OutboxItem, OutboxReader
    from joulegram_sink.upstream_destination import Destination, Retry
    from joulegram_sink.upstream_transport import Transport

log = logging.getLogger(__name__)

_TELL_EVERY_S = 60.0
_SMALLEST_BATCH_BYTES = 64 * 1024
_TIMEOUTS_TO_SPLIT = 2


@dataclass(slots=True)
class Tally:
    """What a destination did so far.

    Args:
        sent_requests: taken; one that was divided counts once for each part.
        sent_bytes: of them, before compression.
        rejected_items: spans, data points or records that partial successes left out.
        partial: sends whose success was partial.
        retries: sends that failed and are offered again.
        dead_letters: batches put aside.
        last_error: the last refusal, by its code; the upstream's words may quote the data.
        failing_since: monotonic time of the first failure since the last success, None where there is none.
        failed_at: monotonic time of `last_error`.
    """

    sent_requests: int = 0
    sent_bytes: int = 0
    rejected_items: int = 0
    partial: int = 0
    retries: int = 0
    dead_letters: int = 0
    last_error: str = ""
    failing_since: float | None = None
    failed_at: float = 0.0


@dataclass(slots=True)
class _Window:
    """What one read gave: done when all its batches are."""

    last: OutboxItem
    open: int


class Forwarder:
    """Sends what the outbox has for one destination; an async context manager.

    Args:
        destination: where to.
        reader: of the outbox, which is entered before this and left after it.
        metrics: forwarded_requests, forward_failures by ``retry``, ``refused``, ``given_up`` and ``partial``,
            forward_rejected_items.
        deadletter: directory for what was refused for good; made when it is needed.

    Raises (on enter):
        ConfigError: a key of the destination cannot be used.
    """

    def __init__(self, destination: Destination, reader: OutboxReader, metrics: Metrics, deadletter: Path) -> None:
        self.destination = destination
        self.reader = reader
        self.tally = Tally()
        self._metrics = metrics
        self._deadletter = deadletter
        self._limit_bytes = destination.batching.max_bytes
        """What the destination takes at once, as far as is known."""
        self._max_bytes = self._limit_bytes
        """What it takes at once in time: shrinks with time-outs, grows again with what is taken."""
        self._slots = asyncio.Semaphore(destination.num_consumers)
        self._windows: deque[_Window] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._more = asyncio.Event()
        self._settled = asyncio.Event()
        self._poke = asyncio.Event()
        self._hurry = False
        self._told_at = float("-inf")
        self._transport: Transport | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        self._transport = transport_for(self.destination)
        name = f"upstream {self.destination.name}"
        self._threads = ThreadPoolExecutor(self.destination.num_consumers, thread_name_prefix=name)
        loop = asyncio.get_running_loop()

        def wake() -> None:
            # The loop may have ended before the thread that appends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._more.set)

        self._start(self._run(wake), name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once; what is not taken stays in the outbox. `drain` comes before, where there is time."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._transport is not None and self._threads is not None:
            await asyncio.to_thread(self._transport.close)
            await asyncio.to_thread(self._threads.shutdown)

    @property
    def in_flight(self) -> int:
        """Reads of the outbox that are not done with."""
        return len(self._windows)

    async def drain(self) -> None:
        """Send without waiting for company until the outbox has nothing more for this destination."""
        self._hurry = True
        try:
            # Whoever waits for company, or for a try of its own accord, waits no longer.
            self._poke.set()
            self._poke.clear()
            while not self.reader.is_drained:
                self._settled.clear()
                await self._settled.wait()
        finally:
            self._hurry = False

    async def _run(self, wake: Callable[[], None]) -> None:
        backoff = Backoff(self.destination.retry)
        batching = self.destination.batching
        while True:
            while True:
                self._more.clear()
                if not self.reader.rest(wake):
                    break
                await self._more.wait()
            if not self._hurry and self.reader.unread_bytes < min(batching.min_bytes, self._max_bytes):
                await self._pause(batching.flush_timeout_s)
            while len(self._windows) >= 2 * self.destination.num_consumers:
                self._settled.clear()
                await self._settled.wait()
            try:
                items = await self._read()
            except StorageError as error:
                # The disk, not the upstream: the data is where it was.
                self._tell("destination %r cannot be given what is in the outbox, trying again: %s", str(error))
                await self._pause(backoff.next_s())
                continue
            backoff = Backoff(self.destination.retry)
            if items:
                await self._dispatch(items)

    async def _read(self) -> list[OutboxItem]:
        max_bytes, max_requests = self._max_bytes, self.destination.batching.max_requests
        if self.reader.on_disk:
            return await asyncio.to_thread(self.reader.read, max_bytes, max_requests)
        return self.reader.read(max_bytes, max_requests)

    async def _dispatch(self, items: list[OutboxItem]) -> None:
        parts = batches(items)
        window = _Window(items[-1], len(parts))
        self._windows.append(window)
        for batch in parts:
            await self._slots.acquire()
            self._start(self._work(window, batch), f"upstream {self.destination.name} send")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = start_task(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, window: _Window, batch: Batch) -> None:
        backoff = Backoff(self.destination.retry)
        try:
            while True:
                try:
                    await self._deliver(batch)
                    break
                except Exception:
                    # A fault of ours: the data must not be lost for it, nor what is behind it wait without a word.
                    log.exception("destination %r: a send failed in an unexpected way", self.destination.name)
                    await self._pause(backoff.next_s())
        finally:
            self._slots.release()
        window.open -= 1
        last = None
        while self._windows and not self._windows[0].open:
            last = self._windows.popleft().last
        if last is not None:
            self.reader.advance(last)
        self._settled.set()

    async def _deliver(self, batch: Batch) -> None:
        """Send until the batch is taken, or put aside."""
        retry = self.destination.retry
        backoff = Backoff(retry)
        started = time.monotonic()
        timeouts = 0
        while True:
            answer = await self._send(batch)
            parts = None
            label, given_up = "refused", ""
            match answer.verdict:
                case Verdict.TAKEN:
                    self._took(batch, answer)
                    return
                case Verdict.RETRY:
                    self._failed(answer)
                    elapsed_s = time.monotonic() - started
                    timeouts = timeouts + 1 if answer.timed_out else 0
                    if timeouts >= _TIMEOUTS_TO_SPLIT:
                        # Perhaps the link is too slow for so much at once.
                        parts = batch.parted()
                        self._max_bytes = _at_least(min(self._max_bytes, batch.size // 2))
                    if parts is None:
                        wait_s = backoff.next_s() if answer.retry_after_s is None else answer.retry_after_s
                        limit_s = retry.max_elapsed_time_s
                        if retry.enabled and (not limit_s or elapsed_s + wait_s <= limit_s):
                            await self._wait(answer, wait_s)
                            continue
                        label, given_up = "given_up", f"given up after {elapsed_s:.1f} s: "
                case Verdict.SPLIT:
                    parts = batch.parted()
                case Verdict.TOO_LARGE:
                    parts = batch.divided()
                    self._limit_bytes = _at_least(min(self._limit_bytes, batch.size // 2))
                    self._max_bytes = min(self._max_bytes, self._limit_bytes)
                case Verdict.REFUSED:
                    pass
            if parts is not None:
                for part in parts:
                    await self._deliver(part)
                return
            if await self._put_aside(batch, label, given_up, answer):
                return
            # Not even put aside, so not done with: it is offered again.
            await self._pause(backoff.next_s())

    async def _send(self, batch: Batch) -> Answer:
        transport = self._transport
        assert transport is not None
        # In a thread: the join and the compression take as long as the network.
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: transport.send(batch.kind, batch.body, batch.metadata)
        )

    async def _put_aside(self, batch: Batch, label: str, given_up: str, answer: Answer) -> bool:
        name = self.destination.name
        reason = given_up + answer.reason
        try:
            await asyncio.to_thread(put_aside, self._deadletter, name, batch.kind, batch.metadata, batch.items, reason)
        except StorageError as error:
            self._tell("what destination %r refused for good cannot be put aside, trying again: %s", str(error))
            return False
        self.tally.failed_at = time.monotonic()
        self._metrics.forward_failures.labels(name, label).inc()
        self.tally.dead_letters += 1
        self.tally.last_error = given_up + answer.text
        self._tell("destination %r did not take a batch, which is in deadletter/: %s", self.tally.last_error)
        return True

    def _took(self, batch: Batch, answer: Answer) -> None:
        tally = self.tally
        tally.sent_requests += len(batch.items)
        tally.sent_bytes += batch.size
        self._max_bytes = min(self._limit_bytes, self._max_bytes + _SMALLEST_BATCH_BYTES)
        name = self.destination.name
        self._metrics.forwarded_requests.labels(name).inc(len(batch.items))
        if answer.rejected or answer.said:
            tally.partial += 1
            tally.rejected_items += answer.rejected
            self._metrics.forward_failures.labels(name, "partial").inc()
            self._metrics.forward_rejected_items.labels(name).inc(answer.rejected)
        if tally.failing_since is not None:
            since, tally.failing_since = tally.failing_since, None
            if self._told_at >= since:
                seconds = time.monotonic() - since
                log.info("destination %r takes data again, after %.1f s", name, seconds)

    def _failed(self, answer: Answer) -> None:
        tally = self.tally
        tally.retries += 1
        tally.last_error = answer.text
        tally.failed_at = time.monotonic()
        self._metrics.forward_failures.labels(self.destination.name, "retry").inc()
        if tally.failing_since is None:
            tally.failing_since = time.monotonic()
        self._tell("destination %r does not take data, trying again: %s", answer.text)

    def _tell(self, message: str, what: str) -> None:
        """Log, but not more than once a minute: an upstream that is away is away for every send."""
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            log.warning(message, self.destination.name, what)

    async def _wait(self, answer: Answer, wait_s: float) -> None:
        if answer.retry_after_s is None:
            await self._pause(wait_s)
        else:
            # Asked for, so kept, at a stop too. Not all at once afterwards: a thousand nodes were asked the same.
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))  # noqa: S311 - spreads load, guards nothing

    async def _pause(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._poke.wait()


def _at_least(size: int) -> int:
    """No batch is made smaller than this for a guess at what fits."""
    return max(_SMALLEST_BATCH_BYTES, size)


class Backoff:
    """Waits that grow from try to try, with chance in them: a thousand nodes must not come at once."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._interval_s = retry.initial_interval_s

    def next_s(self) -> float:
        retry = self._retry
        spread = retry.randomization_factor
        wait_s = self._interval_s * random.uniform(1 - spread, 1 + spread)  # noqa: S311 - spreads load, guards nothing
        self._interval_s = min(self._interval_s * retry.multiplier, retry.max_interval_s)
        return wait_s
