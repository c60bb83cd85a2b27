"""The thread that reads the log, feeds the machine and commits what comes out.

Invariants:
    * outputs are committed in the order of their positions; every sink drops what it already holds;
    * a sink that refuses is asked again until it takes; nothing overtakes what it refused;
    * the spool is the promise: what a crash takes from a sink's unsynced end is made again from it, so the ledger is
      synced when there is nothing to do, once in a while, and before a snapshot, not behind every record;
    * the log is released only below a snapshot that is on disk, with every sink synced before it; until then the outbox
      need not be.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from joulegram_pipeline.errors import DocumentError, RetryableError, StorageError
from joulegram_pipeline.files import replace_file, safe_mkdir
from joulegram_pipeline.logs import words_of
from joulegram_pipeline.trouble import LastTrouble
from joulegram_sink.ledger_format import run_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import LogRecord, RunRecord
    from joulegram_processor.machine import Machine
    from joulegram_processor.machine_types import Outputs
    from joulegram_receiver.spool import Spool
    from joulegram_sink.documents import RunDocuments
    from joulegram_sink.ledger import Ledger
    from joulegram_sink.outbox import Outbox
    from joulegram_sink.tick_archive import TickArchive

log = logging.getLogger(__name__)

READ_BYTES = 8 * 1024 * 1024
SNAPSHOT_BYTES = 256 * 1024 * 1024
SNAPSHOTS_OF_CAP = 4
"""A small spool is let go of more often: it must not be full of what was dealt with."""

CROWDED, CROWDED_S = 0.5, 5.0
"""From this fullness of the spool on there is a snapshot this often: what was waited for at the last one, and held the
log, may be settled now, and a spool that is full brings no more records that would make one."""

SNAPSHOT_S = 60.0
LINGER_S = 0.05
LINGER_BYTES = 256 * 1024
"""Small requests are worked on together: unless this much waits, what comes within `LINGER_S` joins in. A span waits
for the second's energy anyway, and each round costs three threads a switch."""

PAUSE_S = 0.01
"""Without a record, after which the ledger is synced."""

REST_S = 1.0
"""How long there is nothing to do but to look at the clock, where all is synced."""

SYNC_S = 0.5
"""The ledger is synced at least this often while records come without a pause."""

RETRY_S = 1.0
GC_THRESHOLDS = (50_000, 20, 20)
SINKS = ("ticks", "ledger", "documents", "outbox", "snapshot")
"""What the engine writes to, as its troubles name them."""


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where outputs go; the outbox only where there is an upstream."""

    ledger: Ledger
    outbox: Outbox | None
    archive: TickArchive
    documents: RunDocuments


class Engine:
    """Runs the machine over the spool; an async context manager.

    Args:
        machine: made, not yet loaded.
        spool: entered before the engine.
        sinks: entered before the engine.
        state_file: the snapshot.
        metrics: documents and failures are counted there.
        on_pids: told, on the engine's thread, of processes that spans name.
        on_run: told, on the engine's thread, of each run published, with the files written for it.
    """

    def __init__(
        self,
        machine: Machine,
        spool: Spool,
        sinks: Sinks,
        state_file: Path,
        metrics: Metrics,
        on_pids: Callable[[set[int]], None],
        on_run: Callable[[RunRecord, dict[str, Path]], None],
    ) -> None:
        self._machine = machine
        self._spool = spool
        self._sinks = sinks
        self._state_file = state_file
        self._metrics = metrics
        self._on_pids = on_pids
        self._on_run = on_run
        self._thread = threading.Thread(target=self._run, name="joulegram engine", daemon=True)
        self._stop = threading.Event()
        self._done = threading.Condition()
        self._position = 0
        self.trouble: str | None = None
        """Why nothing is committed at the moment, for /readyz."""
        self.last_errors = {sink: LastTrouble() for sink in SINKS}
        """What each sink last refused, also when it takes again."""
        self.failure: BaseException | None = None
        """What ended the thread; the sidecar stops then."""
        self.failed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._load)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._spool.rouse()
        await asyncio.to_thread(self._thread.join)

    async def drain(self, budget_s: float) -> bool:
        """Wait until everything that was appended by now is committed; False if the budget ran out first."""
        target = self._spool.written_lsn
        self._spool.hurry()

        def wait() -> bool:
            with self._done:
                return self._done.wait_for(lambda: self._position >= target or self.failure is not None, budget_s)

        return await asyncio.to_thread(wait) and self.failure is None

    def _load(self) -> None:
        state_dir = safe_mkdir(self._state_file.parent)
        for half_written in state_dir.glob(f".{self._state_file.name}.*.tmp"):  # a kill fell into a snapshot
            with contextlib.suppress(OSError):
                half_written.unlink()
        archived = self._sinks.archive.load()
        state = None
        if self._state_file.exists():
            try:
                state = json.loads(self._state_file.read_bytes())
            except ValueError as error:
                raise DocumentError(f"got snapshot {str(self._state_file)!r} that is no JSON: {error}") from error
        position = self._spool.start_lsn if state is None else int(state["position"])
        self._check_ahead(position)
        if state is not None:
            self._machine.load_scopes(state)
        for lsn, batch in archived:
            if lsn < position:
                self._machine.store.add(batch)
        if state is not None:
            self._machine.load(state)
        else:
            self._machine.position = position
        self._position = position

    def _check_ahead(self, position: int) -> None:
        """Refuse a spool that ends before what was made from it: its positions would be used twice.

        Raises:
            StorageError: quoting both positions and what to do.
        """
        last, outbox = self._sinks.ledger.last_pos, self._sinks.outbox
        ahead = max(position, 0 if last is None else last[0], 0 if outbox is None else outbox.highest_pos[0])
        if ahead > self._spool.durable_lsn:
            raise StorageError(
                f"the spool ends at position {self._spool.durable_lsn}, but other records were made from one up "
                f"to {ahead}: the spool was removed, replaced or cut. Put it back, or start on another --data-dir"
            )

    def _run(self) -> None:
        # Spans come and go by the ten thousand and make no cycles: looking for some at the default pace costs a tenth
        # of the CPU, and looking through what the start left behind costs the most.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        try:
            self._work()
        except BaseException as error:
            log.critical("the engine stopped: %s", words_of(error), exc_info=error)
            self.failure = error
            with self._done:
                self._done.notify_all()
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self.failed.set)

    def _work(self) -> None:
        machine, spool = self._machine, self._spool
        snapshot_bytes = min(SNAPSHOT_BYTES, spool.max_bytes // SNAPSHOTS_OF_CAP)
        snapshot_at, snapshot_lsn = time.monotonic(), machine.position
        synced_at, synced_lsn = time.monotonic(), machine.position
        while True:
            rest_s = REST_S if machine.position == synced_lsn else PAUSE_S
            idle = not spool.wait_beyond(machine.position, rest_s, self._stop)
            now = time.monotonic()
            if machine.position > synced_lsn and (idle or now - synced_at >= SYNC_S):
                if not self._retry(self._sinks.ledger.sync, "ledger"):
                    return
                synced_at, synced_lsn = now, machine.position
            due_s = SNAPSHOT_S if spool.fullness < CROWDED else min(CROWDED_S, SNAPSHOT_S)
            if machine.position > snapshot_lsn and (
                machine.position - snapshot_lsn >= snapshot_bytes or now - snapshot_at >= due_s
            ):
                self._snapshot()
                snapshot_at, snapshot_lsn = now, machine.position
            if idle:
                if self._stop.is_set():
                    break
                continue
            if spool.durable_lsn - machine.position < LINGER_BYTES:
                self._stop.wait(LINGER_S)
            # What a full spool dropped was counted there, and a record of the gap follows.
            machine.position = max(machine.position, spool.start_lsn)
            for record in self._read():
                for outputs in machine.feed(record):
                    if not self._commit(outputs):
                        return  # stopped while a sink refused: the next start replays from the last snapshot
            with self._done:
                self._position = machine.position
                self._done.notify_all()
        if machine.position > snapshot_lsn:
            self._snapshot()

    def _read(self) -> list[LogRecord]:
        """The records that follow; none where a full spool drops them in this moment."""
        try:
            return self._spool.read(self._machine.position, READ_BYTES)
        except StorageError:
            if self._machine.position < self._spool.start_lsn:
                return []
            raise

    def _commit(self, outputs: Outputs) -> bool:
        sinks = self._sinks
        if outputs.pids:
            self._on_pids(outputs.pids)
        if outputs.ticks and not self._retry(lambda: sinks.archive.append(outputs.ticks), "ticks"):
            return False
        if outputs.lines and not self._retry(lambda: sinks.ledger.append_lines(outputs.lines), "ledger"):
            return False
        if outputs.records and not self._retry(lambda: self._record(outputs.records), "ledger"):
            return False
        outbox = sinks.outbox
        if outbox is not None and outputs.forward and not self._retry(lambda: outbox.append(outputs.forward), "outbox"):
            return False
        return all(self._publish(run) for run in outputs.runs)

    def _record(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records; one that has no place in a ledger is logged and left out, and must not stop the others."""
        ledger = self._sinks.ledger
        try:
            ledger.append(records)
        except DocumentError:
            for record in records:
                try:
                    ledger.append([record])
                except DocumentError as error:
                    log.error("a record is left out of the ledger: %s", error.plain)  # noqa: TRY400 - expected
                    self.last_errors["ledger"].note("a record was left out, as the log says")

    def _publish(self, run: RunRecord) -> bool:
        """Documents first, then the run's line: a run in the ledger has its documents; a replay writes the same."""
        last = self._sinks.ledger.last_pos
        if last is not None and run.pos <= last:
            return True
        written: dict[str, Path] = {}

        def write() -> None:
            written.update(self._sinks.documents.write(run))

        try:
            if not self._retry(write, "documents"):
                return False
        except DocumentError as error:
            log.warning("run %s: %s", run.run_id, error.plain)
            self.last_errors["documents"].note(f"not all of run {run.run_id} was written, as the log says")
        if not self._retry(lambda: self._sinks.ledger.append([run_line(run)]), "ledger"):
            return False
        self._on_run(run, written)
        return True

    def _retry(self, work: Callable[[], object], sink: str) -> bool:
        """Do `work` until the sink takes it; False if the engine is stopped meanwhile."""
        while True:
            try:
                work()
            except RetryableError as error:
                if self.trouble is None:
                    log.error("%s refuses, trying again every %g s: %s", sink, RETRY_S, error)  # noqa: TRY400 - expected
                self.trouble = f"{sink}: {error}"
                self.last_errors[sink].note(str(error))
                if self._sinks.ledger.must_reopen:
                    raise  # what was not synced may be lost: only a start from the last snapshot brings it back
                if self._stop.wait(RETRY_S):
                    return False
            else:
                self.trouble = None
                return True

    def _snapshot(self) -> None:
        sinks = self._sinks
        for sync in (sinks.ledger.sync, sinks.archive.sync, *((sinks.outbox.sync,) if sinks.outbox else ())):
            if not self._retry(sync, "snapshot"):
                return
        state = json.dumps(self._machine.dump(), separators=(",", ":")).encode()
        if self._retry(lambda: replace_file(self._state_file, state), "snapshot"):
            self._spool.release(min(self._machine.position, self._machine.oldest_needed()))
