"""What a burst leaves behind goes back to the kernel."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time

from joulegram_receiver.memory import GROWN_BYTES, MemoryKeeper, resident_bytes


def test_what_lies_free_between_what_is_used_goes_back() -> None:
    """Half of many small pieces freed, every other one: glibc alone keeps it all."""

    async def main() -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else it would grow into what tests before left free
        async with MemoryKeeper(look_s=0.02, rest_s=0):
            await asyncio.sleep(0)  # it has looked
            before = resident_bytes()
            pieces = [bytearray(8192) for _ in range(4 * GROWN_BYTES // 8192)]
            full = resident_bytes()
            assert full - before > 3 * GROWN_BYTES
            kept = pieces[::8]
            del pieces
            until = time.monotonic() + 20
            while resident_bytes() - before > 2 * GROWN_BYTES:
                assert time.monotonic() < until, f"{resident_bytes() - before} bytes more than before"
                await asyncio.sleep(0.02)
            assert kept

    asyncio.run(main())
