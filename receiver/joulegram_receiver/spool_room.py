"""Whether the spool may take more: its size cap and the free space of its file system.

Invariants:
    * a request is refused before the cap is passed, and before the file system is filled;
    * ticks and control records have a reserve of their own behind both bounds: without them what is in the spool
      would never be finished with, and a full spool would stay full.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING

from joulegram_pipeline.records import RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BYTES = 10 * 1024 * 1024 * 1024
MIN_FREE_BYTES = 256 * 1024 * 1024
RESERVE_BYTES = 16 * 1024 * 1024
"""Beyond `max_bytes`, and of `min_free_bytes`, for what is not a request; some hours of ticks."""

_LOOK_EVERY_S = 0.25
_LOOK_EVERY_BYTES = 16 * 1024 * 1024
OWN = frozenset({RecordKind.TICKS, RecordKind.CONTROL})
"""What is not a request: few, small, and never in the way of one."""


class Room:
    """The bounds of one spool; its caller holds a lock.

    Args:
        directory: of the spool.
        max_bytes: of log that may be kept.
        min_free_bytes: that the file system keeps free; 0 does not ask it.
        free_bytes: asks the file system.
    """

    def __init__(
        self, directory: Path, max_bytes: int, min_free_bytes: int, free_bytes: Callable[[Path], int] | None = None
    ) -> None:
        self.max_bytes = max_bytes
        self.min_free_bytes = min_free_bytes
        self._directory = directory
        self._ask = free_bytes or free_bytes_of
        self._free = 0
        self._looked_at = float("-inf")
        self._since_look = 0

    def why_not(self, kind: RecordKind, size: int, held: int) -> str | None:
        """Why `size` bytes more are not taken beside `held`; None if they are."""
        reserve = RESERVE_BYTES if kind in OWN else 0
        if held + size > self.max_bytes + reserve:
            return (
                f"spool: it holds {held} of at most {self.max_bytes} bytes ({100 * held // max(1, self.max_bytes)} %), "
                f"got {size} more; try again when the upstream has caught up"
            )
        if self.min_free_bytes and self.free_bytes(size) - size < max(0, self.min_free_bytes - reserve):
            return (
                f"spool: {self._free} bytes are free in {str(self._directory)!r}, expected at least "
                f"{self.min_free_bytes} behind {size} more; try again when there is room"
            )
        return None

    def free_bytes(self, growth: int = 0) -> int:
        """Bytes that are free; looked up again when enough time or data has passed since."""
        self._since_look += growth
        now = monotonic()
        if now - self._looked_at > _LOOK_EVERY_S or self._since_look > _LOOK_EVERY_BYTES:
            self._looked_at, self._since_look = now, growth
            self._free = self._ask(self._directory)
        return self._free - self._since_look + growth


def free_bytes_of(directory: Path) -> int:
    """Bytes that an unprivileged process may still write there; without bound where nobody can say."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 1 << 62
    return found.f_bavail * found.f_frsize
