"""What becomes of freed memory: a little is kept for the next request, and what a burst left behind goes back.

glibc hands back what lies free at a heap's end, after each request, and faults it in again for the next; what lies free
further down, as after a bomb that was refused, it keeps for ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from pathlib import Path
from typing import Self

from joulegram_pipeline.life import Background

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_KEPT_BYTES = 4 * 1024 * 1024
_TOP_PAD_BYTES = 1 * 1024 * 1024
_MMAP_BYTES = 8 * 1024 * 1024

_STATM = Path("/proc/self/statm")

GROWN_BYTES = 12 * 1024 * 1024
"""Grown by this much since memory was last given back, the process gives it back again."""


def settle_memory() -> None:
    """Have one heap for all threads, and keep up to 4 MiB freed in it: a request parses into 1 MB, as does the next.

    What is above 8 MiB in one piece goes back at once. To be called before there is a second thread, which would have a
    heap of its own by then; without glibc it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, _MMAP_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    ):
        mallopt(option, value)


class MemoryKeeper(Background):
    """Gives memory back that a burst left behind; an async context manager. Without glibc it does nothing.

    Args:
        look_s: how often it looks how much is resident.
        rest_s: between two times of giving back, because under load what is given back is soon faulted in again.
    """

    def __init__(self, look_s: float = 1.0, rest_s: float = 10.0) -> None:
        super().__init__(self._watch, "memory")
        self._look_s = look_s
        self._rest_s = rest_s
        self._library = ctypes.CDLL(None)

    async def __aenter__(self) -> Self:
        if hasattr(self._library, "malloc_trim"):
            await super().__aenter__()
        return self

    async def _watch(self) -> None:
        low, given_s = resident_bytes(), float("-inf")
        while True:
            await asyncio.sleep(self._look_s)
            now = resident_bytes()
            low = min(low, now)
            if now - low < GROWN_BYTES or time.monotonic() - given_s < self._rest_s:
                continue
            # In a thread: it looks through every heap, and lets others run meanwhile.
            await asyncio.to_thread(self._library.malloc_trim, 0)
            # `low` stays: what is in use now and freed later would else be taken for what it always needs.
            given_s = time.monotonic()


def resident_bytes() -> int:
    """What this process has in memory (proc(5), statm, second field)."""
    return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
