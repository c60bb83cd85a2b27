"""The spool: acknowledged means on disk, and one sync serves all who wait (design section 2)."""

from __future__ import annotations

import asyncio
import errno
import os
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.errors import BusyError, StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.spool import Spool
from simulators.held_sync import HeldSync

if TYPE_CHECKING:
    from pathlib import Path

TRACES = RecordKind.TRACES


class SteppingClock:
    """Gives the wall times it was given, one for each question."""

    def __init__(self, *times_ns: int) -> None:
        self._times_ns = list(times_ns)

    def wall_ns(self) -> int:
        return self._times_ns.pop(0)

    def mono_ns(self) -> int:
        raise NotImplementedError


def payload_at(spool: Spool, lsn: int) -> bytes:
    """What the record at a position holds."""
    found = spool.find(lsn)
    assert found is not None
    return found.payload


def spool_with(directory: Path, sync: HeldSync, max_queued_bytes: int = 1 << 20) -> Spool:
    log = WriteAheadLog(directory, sync=sync)
    return Spool(directory, Metrics(), log=log, max_queued_bytes=max_queued_bytes)


def test_many_appends_share_a_sync_and_all_keep_their_order(tmp_path: Path) -> None:
    """While one sync runs the others queue; they are written together and synced once."""
    sync = HeldSync()

    async def main() -> None:
        async with spool_with(tmp_path, sync) as spool:
            first = asyncio.create_task(spool.append(TRACES, b"first"))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            rest = [asyncio.create_task(spool.append(TRACES, b"%d" % number)) for number in range(50)]
            await asyncio.sleep(0)
            assert not first.done()
            sync.go.set()
            lsns = await asyncio.gather(first, *rest)
            assert sync.calls == 2
            assert sorted(lsns) == lsns
            payloads = [record.payload for record in spool.read(0, 1 << 20)]
            assert payloads == [b"first", *(b"%d" % number for number in range(50))]
            assert payload_at(spool, lsns[7]) == b"6"

    asyncio.run(main())


def test_nothing_is_acknowledged_or_read_before_the_sync(tmp_path: Path) -> None:
    """An append waits for its sync, and so do readers."""
    sync = HeldSync()

    async def main() -> None:
        async with spool_with(tmp_path, sync) as spool:
            append = asyncio.create_task(spool.append(TRACES, b"a"))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            assert not append.done()
            assert (spool.durable_lsn, spool.read(0, 100)) == (0, [])
            assert not spool.wait_beyond(0, 0.0)
            reader = asyncio.create_task(asyncio.to_thread(spool.wait_beyond, 0, 20.0))
            sync.go.set()
            assert await append == 0
            assert await reader
            assert [record.payload for record in spool.read(0, 100)] == [b"a"]

    asyncio.run(main())


def test_beyond_the_bound_an_append_is_refused_at_once(tmp_path: Path) -> None:
    """Payload bytes that wait for the disk are bounded: at the bound an append raises BusyError and is not queued."""
    sync = HeldSync()

    async def main() -> None:
        async with spool_with(tmp_path, sync, max_queued_bytes=100) as spool:
            first = asyncio.create_task(spool.append(TRACES, b"x" * 60))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            second = asyncio.create_task(spool.append(TRACES, b"y" * 40))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="100 bytes wait for the disk, got 1 more, expected them when"):
                await spool.append(TRACES, b"z")
            sync.go.set()
            await asyncio.gather(first, second)
            await spool.append(TRACES, b"z" * 1000)
            assert [len(record.payload) for record in spool.read(0, 1 << 20)] == [60, 40, 1000]

    asyncio.run(main())


def test_below_the_bound_an_append_of_any_size_is_taken(tmp_path: Path) -> None:
    """A2: one of the largest size is not kept out for as long as smaller ones come."""
    sync = HeldSync()

    async def main() -> None:
        async with spool_with(tmp_path, sync, max_queued_bytes=100) as spool:
            first = asyncio.create_task(spool.append(TRACES, b"x" * 99))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            second = asyncio.create_task(spool.append(TRACES, b"y" * 1000))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="1099 bytes wait"):
                await spool.append(TRACES, b"z")
            sync.go.set()
            await asyncio.gather(first, second)
            assert [len(record.payload) for record in spool.read(0, 1 << 20)] == [99, 1000]

    asyncio.run(main())


def test_ticks_that_wait_take_no_room_from_requests_nor_requests_from_them(tmp_path: Path) -> None:
    """What the sidecar writes of itself is neither refused nor counted."""
    sync = HeldSync()

    async def main() -> None:
        async with spool_with(tmp_path, sync, max_queued_bytes=100) as spool:
            first = asyncio.create_task(spool.append(RecordKind.TICKS, b"t" * 100))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            kinds = [TRACES, RecordKind.CONTROL, RecordKind.TICKS]
            more = [asyncio.create_task(spool.append(kind, b"x" * 100)) for kind in kinds]
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="100 bytes wait for the disk, got 1 more"):
                await spool.append(TRACES, b"y")
            sync.go.set()
            await asyncio.gather(first, *more)
            second = [asyncio.create_task(spool.append(TRACES, b"z" * 50)) for _ in range(2)]
            await asyncio.gather(*second)
            assert [len(record.payload) for record in spool.read(0, 1 << 20)] == [100, 100, 100, 100, 50, 50]

    asyncio.run(main())


def test_a_failed_sync_refuses_those_who_waited_and_all_after(tmp_path: Path) -> None:
    """No acknowledgement follows a sync that failed, then or later."""

    def sync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        log = WriteAheadLog(tmp_path, sync=sync)
        async with Spool(tmp_path, Metrics(), log=log) as spool:
            for message in ("Input/output error", "takes nothing more"):
                with pytest.raises(StorageError, match=message):
                    await spool.append(TRACES, b"a")
            assert spool.durable_lsn == 0

    asyncio.run(main())


def test_received_ns_never_falls(tmp_path: Path) -> None:
    """A wall clock that steps back does not take the log with it, nor does a restart."""

    async def times(*wall_ns: int) -> list[int]:
        async with Spool(tmp_path, Metrics(), clock=SteppingClock(*wall_ns)) as spool:
            for _ in wall_ns:
                await spool.append(TRACES, b"a")
            await spool.append(TRACES, b"given", received_ns=3)
            return [record.received_ns for record in spool.read(0, 1 << 20)]

    assert asyncio.run(times(10, 20, 15, 30)) == [10, 20, 20, 30, 30]
    assert asyncio.run(times(5, 40)) == [10, 20, 20, 30, 30, 30, 40, 40]


def test_other_threads_append_too(tmp_path: Path) -> None:
    """`append_blocking` returns the lsn once it is durable; order within a thread is kept."""

    async def main() -> None:
        async with Spool(tmp_path, Metrics()) as spool:
            lsns: list[int] = []

            def work() -> None:
                lsns.extend(spool.append_blocking(RecordKind.CONTROL, b"%d" % number) for number in range(20))

            thread = Thread(target=work)
            thread.start()
            await asyncio.gather(*(spool.append(TRACES, b"t") for _ in range(20)))
            await asyncio.to_thread(thread.join)
            assert [payload_at(spool, lsn) for lsn in lsns] == [b"%d" % number for number in range(20)]
            assert len(spool.read(0, 1 << 20)) == 40

    asyncio.run(main())


def test_what_was_queued_at_stop_is_written(tmp_path: Path) -> None:
    """Leaving drains the queue; afterwards nothing is taken."""
    sync = HeldSync()

    async def main() -> None:
        spool = spool_with(tmp_path, sync)
        async with spool:
            tasks = [asyncio.create_task(spool.append(TRACES, b"%d" % number)) for number in range(3)]
            assert await asyncio.to_thread(sync.begun.wait, 20)
            sync.go.set()
        assert len(await asyncio.gather(*tasks)) == 3
        with pytest.raises(StorageError, match="closed"):
            await spool.append(TRACES, b"late")

    asyncio.run(main())


def test_healing_and_size_are_measured(tmp_path: Path) -> None:
    """spool_healed_bytes counts what a crash left torn; spool_bytes is what is there."""

    async def main() -> Metrics:
        metrics = Metrics()
        async with Spool(tmp_path, metrics) as spool:
            await spool.append(TRACES, b"abc")
        return metrics

    asyncio.run(main())
    (path,) = tmp_path.glob("*.wal")
    path.write_bytes(path.read_bytes() + b"torn!")
    registry = asyncio.run(main()).registry
    assert registry.get_sample_value("joulegram_spool_healed_bytes_total") == 5
    # The place of what was torn is not used again.
    assert registry.get_sample_value("joulegram_spool_bytes") == 2 * (24 + 3) + 5
    assert registry.get_sample_value("joulegram_spool_sync_seconds_count") == 1


def test_who_waits_for_records_can_be_told_to_stop(tmp_path: Path) -> None:
    """The wait ends when it is roused with its stop set, long before its time, and says that nothing came."""

    async def main() -> None:
        stop = Event()
        async with Spool(tmp_path, Metrics()) as spool:
            waiting = asyncio.create_task(asyncio.to_thread(spool.wait_beyond, 0, 300.0, stop))
            await asyncio.sleep(0)
            stop.set()
            while not waiting.done():  # it may not have begun to wait yet
                spool.rouse()
                await asyncio.wait([waiting], timeout=0.01)
            assert not waiting.result()

    asyncio.run(main())
