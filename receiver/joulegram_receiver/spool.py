"""The spool: one write-ahead log that many append to and that syncs once for all who wait (group commit).

Invariants:
    * an append returns only after its record is on disk;
    * `received_ns` never falls along the log, whatever the wall clock does;
    * what waits to be written is bounded: beyond the bound an append is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Self

from joulegram_pipeline.clock import Clock, SystemClock
from joulegram_pipeline.errors import BusyError, StorageError
from joulegram_pipeline.records import LogRecord
from joulegram_pipeline.wal import SEGMENT_BYTES, WriteAheadLog
from joulegram_pipeline.wal_segment import RECORD_HEADER_BYTES, encode_metadata

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_pipeline.span_rows import ScopeRows

MAX_QUEUED_BYTES = 64 * 1024 * 1024
MAX_RECENT_BYTES = 32 * 1024 * 1024
"""Of payload kept in memory for the reader; one that is further behind reads the file."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A record that is not on disk yet, and who waits for it: a task of the loop, or another thread."""

    kind: RecordKind
    received_ns: int
    payload: bytes
    future: asyncio.Future[int] | Future[int]
    parsed: list[ScopeRows] | None
    metadata: Metadata


class Spool:
    """The durable queue between the receivers and the engine; an async context manager.

    Args:
        directory: of the log.
        metrics: spool_bytes, spool_sync_seconds, spool_healed_bytes.
        max_queued_bytes: payload bytes that may wait for the disk.
        segment_bytes: of the log.
        clock: gives `received_ns`.
        log: the log itself, where a test brings one that fails.

    Raises (on enter):
        StorageError: the log cannot be opened.
    """

    def __init__(
        self,
        directory: Path,
        metrics: Metrics,
        *,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Clock | None = None,
        log: WriteAheadLog | None = None,
    ) -> None:
        self._log = log or WriteAheadLog(directory, segment_bytes=segment_bytes)
        self._metrics = metrics
        self._max_queued_bytes = max_queued_bytes
        self._clock = clock or SystemClock()
        self._changed = Condition()
        self._advanced = Condition()
        self._queue: list[_Waiting] = []
        self._queued_bytes = 0
        self._recent: deque[LogRecord] = deque()
        self._recent_bytes = 0
        self._last_ns = 0
        self._open = False
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._log.close)

    @property
    def start_lsn(self) -> int:
        """The oldest position that may be read."""
        return self._log.start_lsn

    @property
    def durable_lsn(self) -> int:
        """What lies below is on disk."""
        return self._log.durable_lsn

    async def append(
        self,
        kind: RecordKind,
        payload: bytes,
        received_ns: int | None = None,
        parsed: list[ScopeRows] | None = None,
        metadata: Metadata = (),
    ) -> int:
        """Append one record from the loop the spool was entered in and wait until it is on disk.

        Args:
            kind: what the payload is.
            payload: as it came.
            received_ns: wall clock at receipt, now if None; never below that of the record before.
            parsed: what was read from a trace request already; handed to the reader while memory allows.
            metadata: headers that travel with the request.

        Returns:
            Its lsn.

        Raises:
            BusyError: too much waits for the disk; nothing was queued.
            StorageError: the disk refused it, or the spool is closed.
        """
        assert self._loop is not None
        future: asyncio.Future[int] = self._loop.create_future()
        self._enqueue(kind, payload, received_ns, future, parsed, metadata)
        return await future

    def append_blocking(self, kind: RecordKind, payload: bytes, received_ns: int | None = None) -> int:
        """`append` for any other thread."""
        future: Future[int] = Future()
        self._enqueue(kind, payload, received_ns, future)
        return future.result()

    def wait_beyond(self, lsn: int, timeout_s: float) -> bool:
        """Block until there is something durable above `lsn`, or until the time is over; whether there is."""
        with self._advanced:
            return self._advanced.wait_for(lambda: self._log.durable_lsn > lsn, timeout_s)

    def read(self, lsn: int, max_bytes: int) -> list[LogRecord]:
        """Durable records from `lsn`; see `WriteAheadLog.read`. What was just written comes from memory, once."""
        recent = self._recent
        while recent and recent[0].lsn < lsn:
            self._forget_recent()
        found: list[LogRecord] = []
        size = 0
        while recent and recent[0].lsn == lsn and size <= max_bytes:
            record = self._forget_recent()
            found.append(record)
            size += len(record.payload)
            lsn = record.next_lsn
        return found or self._log.read(lsn, max_bytes)

    def _forget_recent(self) -> LogRecord:
        record = self._recent.popleft()
        with self._changed:
            self._recent_bytes -= len(record.payload)
        return record

    def _remember(self, group: list[_Waiting], lsns: list[int]) -> None:
        """Keep what is on disk now for the reader, who waits for it as a rule, as far as there is room."""
        with self._changed:
            for waiting, lsn in zip(group, lsns, strict=True):
                if self._recent_bytes + len(waiting.payload) > MAX_RECENT_BYTES:
                    return
                following = lsn + RECORD_HEADER_BYTES + len(encode_metadata(waiting.metadata)) + len(waiting.payload)
                self._recent_bytes += len(waiting.payload)
                self._recent.append(
                    LogRecord(
                        lsn,
                        following,
                        waiting.kind,
                        waiting.received_ns,
                        waiting.payload,
                        waiting.parsed,
                        waiting.metadata,
                    )
                )

    def read_at(self, lsn: int) -> LogRecord:
        """The one durable record at `lsn`; see `WriteAheadLog.read_at`."""
        return self._log.read_at(lsn)

    def release(self, below_lsn: int) -> None:
        """Nobody will read below `below_lsn` any more; see `WriteAheadLog.release`."""
        self._log.release(below_lsn)
        self._measure()

    def _start(self) -> None:
        self._log.open()
        if self._log.last_lsn is not None:
            with contextlib.suppress(StorageError):
                self._last_ns = self._log.read_at(self._log.last_lsn).received_ns
        self._metrics.spool_healed_bytes.inc(self._log.healed_bytes)
        self._measure()
        self._open = True
        self._thread = Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def _enqueue(
        self,
        kind: RecordKind,
        payload: bytes,
        received_ns: int | None,
        future: asyncio.Future[int] | Future[int],
        parsed: list[ScopeRows] | None = None,
        metadata: Metadata = (),
    ) -> None:
        with self._changed:
            if not self._open:
                raise StorageError("the spool is closed; nothing more is taken")
            if self._queued_bytes and self._queued_bytes + len(payload) > self._max_queued_bytes:
                raise BusyError(
                    f"spool: {self._queued_bytes} bytes wait for the disk, got {len(payload)} more, "
                    f"expected at most {self._max_queued_bytes} together; try again"
                )
            now_ns = self._clock.wall_ns() if received_ns is None else received_ns
            self._last_ns = max(self._last_ns, now_ns)
            self._queue.append(_Waiting(kind, self._last_ns, payload, future, parsed, metadata))
            self._queued_bytes += len(payload)
            self._changed.notify()

    def _run(self) -> None:
        """Write all that waits, sync once, tell all who wait; until closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or not self._open)
                group, self._queue = self._queue, []
            if not group:
                return
            result = self._commit(group)
            with self._changed:
                self._queued_bytes -= sum(len(waiting.payload) for waiting in group)
            with self._advanced:
                self._advanced.notify_all()
            self._tell(group, result)

    def _commit(self, group: list[_Waiting]) -> list[int] | StorageError:
        try:
            lsns = self._log.append([(each.kind, each.received_ns, each.payload, each.metadata) for each in group])
            begun = perf_counter()
            self._log.sync()
        except StorageError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a dead thread would leave all who wait without an answer
            return StorageError(f"spool: {type(error).__name__}: {error}")
        self._metrics.spool_sync_seconds.observe(perf_counter() - begun)
        self._remember(group, lsns)
        self._measure()
        return lsns

    def _tell(self, group: list[_Waiting], result: list[int] | StorageError) -> None:
        of_loop: list[tuple[asyncio.Future[int], int | StorageError]] = []
        for index, waiting in enumerate(group):
            outcome = result if isinstance(result, StorageError) else result[index]
            if isinstance(waiting.future, asyncio.Future):
                of_loop.append((waiting.future, outcome))
            else:
                _settle(waiting.future, outcome)
        if of_loop and self._loop is not None:
            # The loop is gone only where its tasks, and with them everyone who waited, are gone too.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle_all, of_loop)

    def _measure(self) -> None:
        self._metrics.spool_bytes.set(self._log.end_lsn - self._log.start_lsn)


def _settle(future: asyncio.Future[int] | Future[int], outcome: int | StorageError) -> None:
    if future.done():
        return
    if isinstance(outcome, StorageError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _settle_all(outcomes: list[tuple[asyncio.Future[int], int | StorageError]]) -> None:
    for future, outcome in outcomes:
        _settle(future, outcome)
