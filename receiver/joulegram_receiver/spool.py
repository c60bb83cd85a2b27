"""The spool: one write-ahead log that many append to and that syncs once for all who wait (group commit).

Invariants:
    * an append returns only after its record is as safe as `sync` promises: by default on disk;
    * a reader is given only what is that safe, and with `interval` only what is on disk: nothing made of a record
      outlives it;
    * `received_ns` never falls along the log, whatever the wall clock does;
    * what waits to be written, and the log itself, are bounded: beyond a bound an append is refused at once, or the
      oldest segments go and a record in the log says what went (docs/spool.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from concurrent.futures import Future
from threading import Condition, Thread
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Literal, Self

from joulegram_pipeline.clock import Clock, SystemClock
from joulegram_pipeline.errors import BusyError, StorageError
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.trouble import LastTrouble
from joulegram_pipeline.wal import SEGMENT_BYTES, WriteAheadLog
from joulegram_pipeline.wal_segment import encode_metadata
from joulegram_receiver.spool_drop import Dropper
from joulegram_receiver.spool_group import COMPANY_S, Groups
from joulegram_receiver.spool_recent import Recent
from joulegram_receiver.spool_room import MAX_BYTES, MIN_FREE_BYTES, OWN, Room
from joulegram_receiver.spool_waiting import Waiting, tell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from threading import Event
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import LogRecord, Metadata
    from joulegram_pipeline.span_rows import Extract
    from joulegram_pipeline.wal import Entry
    from joulegram_receiver.spool_waiting import AnyFuture

MAX_QUEUED_BYTES = 64 * 1024 * 1024
SYNC_INTERVAL_S = 1.0

Sync = Literal["always", "interval", "none"]
Policy = Literal["refuse", "drop_oldest"]

_SEGMENTS_OF_CAP = 8
_MIN_SEGMENT_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


class Spool:
    """The durable queue between the receivers and the engine; an async context manager.

    Args:
        directory: of the log.
        metrics: those that begin with spool_.
        max_queued_bytes: of requests that wait for the disk, beyond which nothing more is taken. What comes before that
            is, however large; ticks and control records wait beside them.
        segment_bytes: of the log; smaller where `max_bytes` is small.
        clock: gives `received_ns`.
        log: the log itself, where a test brings one that fails.
        sync: when an append returns: `always` once it is on disk; `interval` once it is written, and it is on disk
            within `sync_interval_s`; `none` once it is written, and the kernel decides. Leaving syncs in any case.
        sync_interval_s: of `interval`.
        max_bytes: of log that is kept.
        policy: beyond `max_bytes`: `refuse`, or `drop_oldest`: whole segments, each drop with its record in the log.
        min_free_bytes: that the file system keeps free; 0 does not ask it.
        company_s: how long a record may wait for others under load.

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
        sync: Sync = "always",
        sync_interval_s: float = SYNC_INTERVAL_S,
        max_bytes: int = MAX_BYTES,
        policy: Policy = "refuse",
        min_free_bytes: int = MIN_FREE_BYTES,
        company_s: float = COMPANY_S,
    ) -> None:
        # A log of one segment could never let go of anything.
        segment_bytes = min(segment_bytes, max(_MIN_SEGMENT_BYTES, max_bytes // _SEGMENTS_OF_CAP))
        to_disk: Callable[[int], None] = _leave_to_the_kernel if sync == "none" else os.fdatasync
        self._log = log or WriteAheadLog(directory, segment_bytes=segment_bytes, sync=to_disk)
        self._metrics = metrics
        self._max_queued_bytes = max_queued_bytes
        self._max_bytes = max_bytes
        self._clock = clock or SystemClock()
        self._sync_s = sync_interval_s if sync == "interval" else None
        room = Room(directory, max_bytes, min_free_bytes)
        self._dropper = Dropper(directory, self._log, room, metrics) if policy == "drop_oldest" else None
        # Where the oldest makes room, only a disk that others fill refuses.
        self._gate = room if self._dropper is None else Room(directory, 1 << 62, min_free_bytes // 2)
        self._groups: Groups[Waiting] = Groups(0.0 if self._sync_s is not None else company_s)
        self._queued_bytes = 0
        """Of requests."""
        self._queued_own_bytes = 0
        self._refused_bytes = 0
        self._failure: str | None = None
        self.last_error = LastTrouble()
        """Why it last refused, or could not write or sync; still there when it takes again."""
        self._advanced = Condition()
        self._unsynced: list[tuple[list[Waiting], list[int], int]] = []
        self._written_lsn = 0
        self._sync_due: float | None = None
        self._recent = Recent()
        self._last_ns = 0
        self._damaged_told = 0
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
        with self._groups.lock:
            self._open = False
        self._groups.close()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._log.close)

    @property
    def start_lsn(self) -> int:
        """The oldest position that may be read; a reader whose own lies below goes on here."""
        return self._log.start_lsn

    @property
    def durable_lsn(self) -> int:
        """What lies below may be read."""
        return self._log.durable_lsn

    @property
    def written_lsn(self) -> int:
        """What lies below may be read once it is synced: by `interval` an append returns before that."""
        return max(self._written_lsn, self._log.durable_lsn)

    @property
    def end_lsn(self) -> int:
        """The position the next record gets; above `durable_lsn` too where a damaged end was cut at the start."""
        return self._log.end_lsn

    @property
    def damaged_records(self) -> int:
        """Records left out in reading so far because they were damaged."""
        return self._log.damaged_records

    @property
    def missing_bytes(self) -> int:
        """Of acknowledged records that no file had at the start."""
        return self._log.missing_bytes

    @property
    def max_bytes(self) -> int:
        """How much log is kept at most."""
        return self._max_bytes

    @property
    def fullness(self) -> float:
        """How full it is, 0 to 1 and above: by what waits for the disk, or by what the log may hold."""
        queue = self._queued_bytes / self._max_queued_bytes
        return queue if self._dropper is not None else max(queue, self._held() / self._max_bytes)

    @property
    def trouble(self) -> str | None:
        """Why it refuses requests at the moment, for /readyz; None where it takes them."""
        if self._log.poison is not None:
            return f"spool: {self._log.poison}; nothing is taken until the next start"
        if not self._open:
            return "spool: it is not open"
        if self._failure is not None:
            return self._failure
        with self._groups.lock:
            reason = self._gate.why_not(RecordKind.TRACES, max(1, self._refused_bytes), self._held())
            if reason is None:
                self._refused_bytes = 0
            return reason

    async def append(
        self,
        kind: RecordKind,
        payload: bytes,
        received_ns: int | None = None,
        parsed: Extract | None = None,
        metadata: Metadata = (),
    ) -> int:
        """Append one record from the loop the spool was entered in and wait until it is as safe as `sync` says.

        Args:
            kind: what the payload is.
            payload: as it came.
            received_ns: wall clock at receipt, now if None; never below that of the record before.
            parsed: what was read from a trace request already; handed to the reader while memory allows.
            metadata: headers that travel with the request.

        Returns:
            Its lsn.

        Raises:
            BusyError: too much waits for the disk, or the log or the disk is full; nothing was queued.
            StorageError: the disk refused it, its metadata is too large, or the spool is closed.
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

    def wait_beyond(self, lsn: int, timeout_s: float, stop: Event | None = None) -> bool:
        """Block until there is something durable above `lsn`, or until the time is over; whether there is.

        Args:
            lsn: a position.
            timeout_s: how long to wait.
            stop: set by another thread, which then calls `rouse`, ends the wait as well.
        """
        with self._advanced:
            self._advanced.wait_for(
                lambda: self._log.durable_lsn > lsn or (stop is not None and stop.is_set()), timeout_s
            )
            return self._log.durable_lsn > lsn

    def hurry(self) -> None:
        """Sync what was written without waiting for the end of the interval."""
        if self._sync_s is not None and self.written_lsn > self.durable_lsn:
            self._sync_due = monotonic()
            self._groups.rouse()

    def rouse(self) -> None:
        """Have who waits in `wait_beyond` look at its `stop`."""
        with self._advanced:
            self._advanced.notify_all()

    def read(self, lsn: int, max_bytes: int) -> list[LogRecord]:
        """Durable records from `lsn`; see `WriteAheadLog.read`. What was just written comes from memory, once.

        Raises:
            StorageError: as there; where `drop_oldest` took what stood at `lsn`, the reader goes on at `start_lsn`.
        """
        found = self._recent.take(lsn, max_bytes) or self._log.read(lsn, max_bytes)
        if found and self._dropper is not None:
            self._dropper.was_read(found[-1].next_lsn)
        self._count_damaged()
        return found

    def find(self, lsn: int) -> LogRecord | None:
        """The one durable record at `lsn`; see `WriteAheadLog.find`. One that is damaged is counted."""
        found = self._log.find(lsn)
        self._count_damaged()
        return found

    def _count_damaged(self) -> None:
        damaged = self._log.damaged_records - self._damaged_told
        if damaged:
            self._metrics.spool_damaged_records.inc(damaged)
            self._damaged_told += damaged

    def release(self, below_lsn: int) -> None:
        """Nobody will read below `below_lsn` any more; see `WriteAheadLog.release`."""
        self._log.release(below_lsn)
        self._measure()

    def _start(self) -> None:
        self._log.open()
        if self._log.last_lsn is not None:
            with contextlib.suppress(StorageError):
                self._last_ns = self._log.read_at(self._log.last_lsn).received_ns
        if self._log.healed_bytes:
            log.warning("spool: %d torn bytes were cut from its end and kept aside", self._log.healed_bytes)
        if self._log.missing_bytes:
            log.error("spool: %d bytes of acknowledged records are gone from its files", self._log.missing_bytes)
        if self._dropper is not None:
            self._dropper.take_up()
        self._metrics.spool_healed_bytes.inc(self._log.healed_bytes)
        self._metrics.spool_queue_bytes.set_function(lambda: self._queued_bytes)
        self._measure()
        self._open = True
        self._thread = Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def _enqueue(
        self,
        kind: RecordKind,
        payload: bytes,
        received_ns: int | None,
        future: AnyFuture,
        parsed: Extract | None = None,
        metadata: Metadata = (),
    ) -> None:
        size = len(payload)
        if metadata:
            size += len(encode_metadata(metadata))  # too much of it is refused here, alone
        with self._groups.lock:
            if not self._open:
                raise StorageError("the spool is closed; nothing more is taken")
            is_own = kind in OWN
            # What waits counts, not what comes: a large request might never find the queue as empty as it needs.
            if not is_own and self._queued_bytes >= self._max_queued_bytes:
                full = (
                    f"spool: {self._queued_bytes} bytes wait for the disk, got {size} more, "
                    f"expected them when fewer than {self._max_queued_bytes} wait; try again"
                )
                self.last_error.note(full)
                raise BusyError(full)
            reason = self._gate.why_not(kind, size, self._held())
            if reason is not None:
                self._refused_bytes = size
                self.last_error.note(reason)
                raise BusyError(reason)
            now_ns = self._clock.wall_ns() if received_ns is None else received_ns
            self._last_ns = max(self._last_ns, now_ns)
            if is_own:
                self._queued_own_bytes += size
            else:
                self._queued_bytes += size
            self._groups.put(Waiting(kind, self._last_ns, payload, metadata, size, future, parsed))

    def _held(self) -> int:
        return self._log.end_lsn - self._log.start_lsn + self._queued_bytes + self._queued_own_bytes

    def _run(self) -> None:
        """Write all that waits, sync once, tell all who wait; until closed and empty."""
        while True:
            due = self._sync_due
            group = self._groups.take(None if due is None else max(0.0, due - monotonic()))
            if group is None:
                break
            if group:
                result = self._commit(group)
                size = sum(each.size for each in group)
                own = sum(each.size for each in group if each.kind in OWN)
                with self._groups.lock:
                    self._queued_bytes -= size - own
                    self._queued_own_bytes -= own
                tell(group, result, self._loop)
            if self._sync_due is not None and monotonic() >= self._sync_due:
                self._sync_late()
        if self._sync_due is not None:
            self._sync_late()

    def _commit(self, group: list[Waiting]) -> list[int] | StorageError:
        try:
            lsns = self._write(group)
        except StorageError as error:
            self._failure = f"spool: {error}"
            self.last_error.note(self._failure)
            return error
        except Exception as error:
            # A dead thread would leave all who wait without an answer.
            log.exception("spool: a group could not be written")
            self._failure = f"spool: {type(error).__name__}: {error}"
            self.last_error.note(self._failure)
            return StorageError(self._failure)
        self._failure = None
        self._measure()
        return lsns

    def _write(self, group: list[Waiting]) -> list[int]:
        entries: list[Entry] = [each[:4] for each in group]
        gap = None if self._dropper is None else self._dropper.make_room(group[0].received_ns, entries)
        lsns = self._log.append(entries) if gap is None else self._log.append([gap, *entries])[1:]
        self._unsynced.append((group, lsns, self._log.end_lsn))
        self._written_lsn = self._log.end_lsn
        if self._sync_s is None:
            self._sync_written()
        elif gap is not None:
            # Not left to the interval: the note that carries a drop over a crash has room for one.
            self._sync_due = monotonic()
        elif self._sync_due is None:
            self._sync_due = monotonic() + self._sync_s
        return lsns

    def _sync_written(self) -> None:
        """Sync what was written since the last time, and give it to the reader."""
        written, self._unsynced, self._sync_due = self._unsynced, [], None
        begun = perf_counter()
        try:
            self._log.sync()
        except StorageError:
            self._written_lsn = 0  # nobody is ever to read it, so nobody waits for it
            raise
        self._metrics.spool_sync_seconds.observe(perf_counter() - begun)
        if self._dropper is not None:
            self._dropper.is_durable()
        for group, lsns, end_lsn in written:
            self._recent.put(group, lsns, end_lsn)
        with self._advanced:
            self._advanced.notify_all()

    def _sync_late(self) -> None:
        """The sync of `interval`: those who waited have had their answer."""
        try:
            self._sync_written()
        except StorageError as error:
            self.last_error.note(f"spool: {error}")
            log.critical("spool: acknowledged records are lost if the machine fails now: %s", error)

    def _measure(self) -> None:
        self._metrics.spool_bytes.set(self._log.end_lsn - self._log.start_lsn)


def _leave_to_the_kernel(fd: int) -> None:
    """The sync of `none`."""
