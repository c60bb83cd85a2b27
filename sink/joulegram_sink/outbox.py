"""The outbox: requests on their way upstream, in memory while every destination keeps up, on disk where one does not.

The machine is a function of the spool: after a crash it is fed again from its last snapshot on and makes the same items
with the same positions. So an item needs no disk of its own until the spool lets go of its record.

Invariants:
    * positions grow; an item that all took, or that is here already, is skipped when a replay brings it again;
    * behind `sync` everything appended is taken by all or on disk: only then may the spool be released;
    * nothing is dropped: where there is no room, `append` refuses and the item stays in the spool;
    * the engine's thread appends and syncs, the loop's reads and advances.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Self

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.wal import SEGMENT_BYTES
from joulegram_sink.outbox_disk import OutboxDisk
from joulegram_sink.outbox_items import MAX_BACKLOG_BYTES, MAX_MEMORY_BYTES, NOTHING, OutboxItem, Pos
from joulegram_sink.outbox_positions import PositionFile, open_positions
from joulegram_sink.outbox_reader import OutboxReader, Shared

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import Outgoing

__all__ = ["MAX_BACKLOG_BYTES", "MAX_MEMORY_BYTES", "NOTHING", "Outbox", "OutboxItem", "OutboxReader", "Pos"]

log = logging.getLogger(__name__)


class Outbox:
    """A queue for several destinations that share one copy of each item; an async context manager.

    Args:
        directory: of the log and of ``positions/``.
        metrics: forward_backlog_bytes and forward_oldest_age_s.
        destinations: how many bytes each may be behind, by name; names are names of files.
        max_memory_bytes: of items; beyond, the oldest go to disk. One `append` may exceed it by what it brings.
        segment_bytes: of the log.

    Raises (on enter):
        StorageError: the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        metrics: Metrics,
        destinations: Mapping[str, int] | None = None,
        *,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._directory = directory
        self._destinations = dict(destinations) if destinations else {"upstream": MAX_BACKLOG_BYTES}
        self._max_memory_bytes = max_memory_bytes
        self._disk = OutboxDisk(directory, segment_bytes)
        self._shared = Shared(self._disk)
        self._metrics = metrics
        self._positions: dict[str, PositionFile] = {}
        self._readers: dict[str, OutboxReader] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    @property
    def last_pos(self) -> Pos:
        """The highest position appended, on disk or taken by all; `NOTHING` in a new outbox."""
        return self._shared.last_pos

    @property
    def highest_pos(self) -> Pos:
        """The highest position ever seen here: a spool that ends below it is not the one this was made from."""
        return max([self._shared.last_pos, *(position.pos for position in self._positions.values())])

    @property
    def memory_bytes(self) -> int:
        """What the items in memory take, nearly."""
        with self._shared.lock:
            return self._shared.held.cost_bytes

    @property
    def disk_bytes(self) -> int:
        """What the items on disk take."""
        return self._disk.end_lsn - self._disk.start_lsn

    def reader(self, destination: str) -> OutboxReader:
        """The one reader of a destination, behind what it took."""
        return self._readers[destination]

    def append(self, items: Iterable[Outgoing]) -> int:
        """Take the items that are not here yet; durable after `sync`, readable at once.

        Args:
            items: in order of position; their bytes must not change afterwards.

        Returns:
            How many were new.

        Raises:
            StorageError: a destination is too far behind, or the disk refused; none was taken.
        """
        self._make_room()
        shared = self._shared
        now_ns = time.time_ns()
        with shared.lock:
            held, last, end = shared.held, shared.last_pos, shared.end_bytes
            count = 0
            for pos, kind, request, metadata in items:
                if pos <= last:
                    continue
                size = len(request) if isinstance(request, bytes) else sum(map(len, request))
                end += size
                held.add(OutboxItem(pos, kind, request, metadata, size, end, now_ns))
                last = pos
                count += 1
            shared.last_pos, shared.end_bytes = last, end
            if not count:
                return 0
            idle = [reader for reader in shared.readers if reader.wants_more is not None]
            wakes = [reader.wants_more for reader in idle]
            for reader in idle:
                reader.wants_more = None
        for wake in wakes:
            if wake is not None:
                wake()
        return count

    def sync(self) -> None:
        """Make everything durable that was appended and not taken by all, and every destination's position.

        Raises:
            StorageError: the disk refused; what it refused is still in memory.
        """
        with self._shared.lock:
            items = self._shared.held.all_after(self._disk.written_pos)
        self._disk.write(items)
        self._disk.sync()
        for position in self._positions.values():
            position.sync()

    def _make_room(self) -> None:
        """Bring memory under its bound by writing the oldest items to disk.

        Raises:
            StorageError: a destination is too far behind, or the disk refused.
        """
        shared = self._shared
        for reader in shared.readers:
            if shared.end_bytes - reader.taken_bytes >= reader.max_bytes and reader.backlog_bytes >= reader.max_bytes:
                raise StorageError(
                    f"the queue of destination {reader.name!r} is full: {reader.backlog_bytes} bytes are waiting, "
                    f"expected under sending_queue.queue_size = {reader.max_bytes}"
                )
        if shared.held.cost_bytes <= self._max_memory_bytes:
            return
        with shared.lock:
            # A quarter at a time: few syncs, each short.
            oldest = shared.held.oldest(self._max_memory_bytes * 3 // 4)
        if not oldest:
            return
        self._disk.write(oldest)
        self._disk.sync()
        with shared.lock:
            shared.floor = max(shared.floor, oldest[-1].pos)
            shared.held.drop_through(oldest[-1].pos)

    def _open(self) -> None:
        shared, disk = self._shared, self._disk
        disk.open()
        try:
            names = set(self._destinations)
            self._positions, gone = open_positions(self._directory / "positions", names, disk.last_pos)
        except BaseException:
            disk.close()
            raise
        for name, pos in gone.items():
            unsent = "; what it had not taken is given up" if pos < disk.last_pos else ""
            log.warning("destination %r is no longer configured and is forgotten%s", name, unsent)
        taken = [position.pos for position in self._positions.values()]
        shared.floor = disk.last_pos
        shared.last_pos = max(disk.last_pos, min(taken))
        shared.end_bytes = disk.end_lsn
        for name, max_bytes in self._destinations.items():
            reader = self._readers[name] = OutboxReader(name, max_bytes, self._positions[name], shared)
            # Asked for when somebody looks, because an append must cost next to nothing.
            self._metrics.forward_backlog_bytes.labels(name).set_function(partial(getattr, reader, "backlog_bytes"))
            self._metrics.forward_oldest_age_s.labels(name).set_function(reader.oldest_age_s)
        shared.readers.extend(self._readers.values())

    def _close(self) -> None:
        try:
            for position in self._positions.values():
                # A position that is not kept costs a repetition.
                with contextlib.suppress(StorageError):
                    position.sync()
                position.close()
        finally:
            self._disk.close()
