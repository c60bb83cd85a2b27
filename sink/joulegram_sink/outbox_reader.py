"""Reading the outbox for one destination: from memory where it keeps up, from disk where it does not.

Invariants:
    * items come in order of position, each once in the life of a reader;
    * the position moves only by `advance`, and never past what was read;
    * an item leaves memory when every destination took it, or when it is on disk and memory is needed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import StorageError
from joulegram_sink.outbox_items import NOTHING, HeldItems

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_sink.outbox_disk import OutboxDisk
    from joulegram_sink.outbox_items import OutboxItem, Pos
    from joulegram_sink.outbox_positions import PositionFile

log = logging.getLogger(__name__)

MAX_READ_ITEMS = 8192


@dataclass(slots=True)
class Shared:
    """What the outbox and its readers share; `lock` guards all but `disk`, which has its own.

    Args:
        disk: the part on disk.
        held: the part in memory.
        floor: what lies above is in memory.
        last_pos: the highest position known: appended, on disk, or taken by all.
        end_bytes: the stream's measure behind the last item.
    """

    disk: OutboxDisk
    held: HeldItems = field(default_factory=HeldItems)
    lock: Lock = field(default_factory=Lock)
    readers: list[OutboxReader] = field(default_factory=list)
    floor: Pos = NOTHING
    last_pos: Pos = NOTHING
    end_bytes: int = 0


class OutboxReader:
    """One destination's way through the outbox, used by one thread at a time.

    Args:
        name: of the destination.
        max_bytes: how far it may be behind before the outbox takes nothing more.
        position: where it stands.
        shared: with the outbox.
    """

    def __init__(self, name: str, max_bytes: int, position: PositionFile, shared: Shared) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self.position = position
        self.wants_more: Callable[[], None] | None = None
        """Set while it has nothing to read; the outbox calls it once when there is something."""
        disk = shared.disk
        self.taken_bytes = disk.end_lsn if position.pos >= disk.last_pos else disk.start_lsn
        self._shared = shared
        self._cursor = position.pos
        self._cursor_bytes = self.taken_bytes
        self._lsn: int | None = None
        self._ahead: list[OutboxItem] = []
        """Of the last read of the disk, what was more than was asked for."""
        self._taken_lsn: int | None = None
        self._taken_at_ns = 0

    @property
    def taken(self) -> Pos:
        """Everything up to this position is taken."""
        return self.position.pos

    @property
    def is_drained(self) -> bool:
        """Whether everything appended so far is taken."""
        return self.taken >= self._shared.last_pos

    @property
    def on_disk(self) -> bool:
        """Whether the next `read` may have to wait for the disk."""
        return self._cursor < self._shared.floor

    @property
    def backlog_bytes(self) -> int:
        """Bytes not taken yet; of those on disk nearly."""
        return 0 if self.is_drained else max(0, self._shared.end_bytes - self.taken_bytes)

    @property
    def unread_bytes(self) -> int:
        """Bytes not read yet; of those on disk nearly."""
        return max(0, self._shared.end_bytes - self._cursor_bytes)

    def oldest_age_s(self) -> float:
        """Seconds since the oldest item that is not taken was appended; 0 where there is none.

        Of items on disk it is nearly that and never less, and 0 if it is not known.
        """
        with self._shared.lock:
            if self.is_drained:
                return 0.0
            first = self._shared.held.first_after(self.taken) if self.taken >= self._shared.floor else None
            at_ns = max(self._taken_at_ns, self._shared.disk.at_ns(self.taken)) if first is None else first.at_ns
        return max(0.0, (time.time_ns() - at_ns) / 1e9) if at_ns else 0.0

    def rest(self, wake: Callable[[], None]) -> bool:
        """Have `wake` called, once and in the appending thread, when there is more; False if there is already."""
        with self._shared.lock:
            if self._cursor < self._shared.last_pos:
                return False
            self.wants_more = wake
            return True

    def read(self, max_bytes: int, max_items: int = MAX_READ_ITEMS) -> list[OutboxItem]:
        """The next items, about `max_bytes` of them, one at least where there is one.

        Raises:
            StorageError: the disk does not give them.
        """
        shared = self._shared
        while True:
            with shared.lock:
                if self._cursor >= shared.floor:
                    self._lsn, self._ahead = None, []
                    items = shared.held.after(self._cursor, max_bytes, max_items)
                    if items:
                        self._move(items[-1])
                    else:
                        # Positions at or below its own are not for it: nothing is left to be read.
                        self._cursor_bytes = shared.end_bytes
                    return items
                floor = shared.floor
            items = self._ahead
            if not items:
                lsn = shared.disk.find(self._cursor) if self._lsn is None else self._lsn
                items = shared.disk.read(lsn, self._cursor, max_bytes)
            items, self._ahead = items[:max_items], items[max_items:]
            if items:
                self._lsn = items[-1].next_lsn
                self._move(items[-1])
                return items
            # What is missing between here and memory was damaged; it has been told of and set aside.
            self._cursor = floor

    def advance(self, item: OutboxItem) -> None:
        """This destination took `item` and everything before it.

        A crash of the process keeps this; one of the machine keeps what the last `Outbox.sync` saw, and some items
        are then sent again.
        """
        shared = self._shared
        self.position.write(item.pos)
        with shared.lock:
            self.taken_bytes = item.end_bytes
            self._taken_lsn = item.next_lsn or None
            self._taken_at_ns = item.at_ns
            shared.held.drop_through(min([reader.taken for reader in shared.readers]))
            needed = min([reader.needed_lsn() for reader in shared.readers])
        try:
            shared.disk.release(needed)
        except StorageError as error:
            log.warning("the outbox cannot give disk space back: %s", error)

    def needed_lsn(self) -> int:
        """From here on the log on disk is needed."""
        disk = self._shared.disk
        if self._taken_lsn is not None and self.taken < disk.written_pos:
            return self._taken_lsn
        return disk.find(self.taken)

    def _move(self, last: OutboxItem) -> None:
        self._cursor = last.pos
        self._cursor_bytes = last.end_bytes
