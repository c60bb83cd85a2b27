"""What was just written, kept in memory for the reader, who waits for it as a rule."""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

from joulegram_pipeline.records import LogRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from joulegram_receiver.spool_waiting import Waiting

MAX_RECENT_BYTES = 32 * 1024 * 1024
"""Of payload kept; a reader that is further behind reads the file."""


class Recent:
    """Records in order of position; one thread puts, another takes, and each is given once."""

    def __init__(self, max_bytes: int = MAX_RECENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._records: deque[LogRecord] = deque()
        self._bytes = 0
        self._lock = Lock()

    def put(self, group: Sequence[Waiting], lsns: Sequence[int], end_lsn: int) -> None:
        """Keep a group that is durable now and ends at `end_lsn`, as far as there is room."""
        kept = []
        size = 0
        for each, lsn, next_lsn in zip(group, lsns, [*lsns[1:], end_lsn], strict=True):
            size += len(each.payload)
            if self._bytes + size > self._max_bytes:
                size -= len(each.payload)
                break
            kept.append(LogRecord(lsn, next_lsn, each.kind, each.received_ns, each.payload, each.parsed, each.metadata))
        with self._lock:
            self._bytes += size
        self._records.extend(kept)

    def take(self, lsn: int, max_bytes: int) -> list[LogRecord]:
        """Records from `lsn`, about `max_bytes` of them; none if the one at `lsn` is not here. Older ones go."""
        records = self._records
        found: list[LogRecord] = []
        size = gone = 0
        while records and records[0].lsn < lsn:
            gone += len(records.popleft().payload)
        while records and records[0].lsn == lsn and size <= max_bytes:
            record = records.popleft()
            found.append(record)
            size += len(record.payload)
            lsn = record.next_lsn
        if size or gone:
            with self._lock:
                self._bytes -= size + gone
        return found
