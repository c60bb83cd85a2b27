"""Items of the outbox and the part of them that is in memory."""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from joulegram_pipeline.records import Metadata, RecordKind

Pos = tuple[int, int]
"""(lsn, ordinal): the spool record an output came of, and its place among the outputs of that record."""

NOTHING: Pos = (-1, -1)
"""Below every position."""

MAX_MEMORY_BYTES = 64 * 1024 * 1024
MAX_BACKLOG_BYTES = 4 * 1024 * 1024 * 1024
"""How far a destination may be behind unless it is told otherwise."""

ITEM_OVERHEAD_BYTES = 400
"""What an item takes in memory beside its request; it counts, or a million small requests would weigh nothing."""

_position_of = itemgetter(0)


class OutboxItem(NamedTuple):
    """One request for the upstream.

    Args:
        pos: its position.
        kind: its signal.
        request: protobuf bytes, whole or in pieces that follow each other.
        metadata: headers that travel with it.
        size: bytes of the request.
        end_bytes: where it ends in the stream of everything appended; for measuring only, not exact on disk.
        at_ns: wall clock when it was appended; 0 if that is not known.
        next_lsn: the position behind it in the log on disk; 0 if it was read from memory.
    """

    pos: Pos
    kind: RecordKind
    request: bytes | memoryview | Sequence[bytes]
    metadata: Metadata
    size: int
    end_bytes: int
    at_ns: int
    next_lsn: int = 0

    @property
    def pieces(self) -> Sequence[bytes | memoryview]:
        """The request in pieces, not copied."""
        request = self.request
        return (request,) if isinstance(request, bytes | memoryview) else request


class HeldItems:
    """The newest items, in order of position; not safe for threads by itself."""

    def __init__(self) -> None:
        self._items: list[OutboxItem] = []
        self._bytes = 0

    @property
    def cost_bytes(self) -> int:
        """What they take in memory, nearly."""
        return self._bytes + ITEM_OVERHEAD_BYTES * len(self._items)

    def add(self, item: OutboxItem) -> None:
        """Put an item behind the last one."""
        self._items.append(item)
        self._bytes += item.size

    def after(self, pos: Pos, max_bytes: int, max_items: int) -> list[OutboxItem]:
        """The items above `pos`: as many as fit into `max_bytes` and `max_items`, one at least where there is one."""
        begin = self._index(pos)
        items = self._items
        end = limit = min(len(items), begin + max_items)
        if begin < limit and items[limit - 1].end_bytes - items[begin].end_bytes + items[begin].size > max_bytes:
            end, size = begin, 0
            while end < limit and (size := size + items[end].size) <= max_bytes:
                end += 1
            end = max(end, begin + 1)
        return items[begin:end]

    def all_after(self, pos: Pos) -> list[OutboxItem]:
        """Every item above `pos`."""
        return self._items[self._index(pos) :]

    def first_after(self, pos: Pos) -> OutboxItem | None:
        """The lowest item above `pos`."""
        index = self._index(pos)
        return self._items[index] if index < len(self._items) else None

    def oldest(self, keep_bytes: int) -> list[OutboxItem]:
        """The items from the front without which `cost_bytes` would be `keep_bytes` at most."""
        excess = self.cost_bytes - keep_bytes
        end = 0
        while excess > 0 and end < len(self._items):
            excess -= self._items[end].size + ITEM_OVERHEAD_BYTES
            end += 1
        return self._items[:end]

    def drop_through(self, pos: Pos) -> None:
        """Forget the items up to and with `pos`."""
        end = self._index(pos)
        if end:
            self._bytes -= sum([item.size for item in self._items[:end]])
            del self._items[:end]

    def _index(self, pos: Pos) -> int:
        items = self._items
        if not items or items[0].pos > pos:
            return 0
        return bisect_right(items, pos, key=_position_of)
