"""What an acknowledgement promises: `always`, `interval` and `none`, and what a failure makes of each."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from threading import Event
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.spool import Spool
from joulegram_receiver.spool_group import Groups
from simulators.sidecar import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TRACES = RecordKind.TRACES


class Syncs:
    """Counts syncs, holds them back while told to, fails where told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.calls = 0
        self.fails = fails
        self.go = Event()
        self.go.set()

    def __call__(self, fd: int) -> None:
        assert self.go.wait(20)
        self.calls += 1
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)


def test_interval_acknowledges_what_is_written_and_reads_what_is_synced(tmp_path: Path) -> None:
    """Appends do not wait for the disk; the reader gets them after the one sync of their interval."""
    syncs = Syncs()

    async def main() -> None:
        log = WriteAheadLog(tmp_path, sync=syncs)
        async with Spool(tmp_path, Metrics(), log=log, sync="interval", sync_interval_s=0.2) as spool:
            for number in range(30):
                await spool.append(TRACES, b"%d" % number)
            assert (syncs.calls, spool.durable_lsn, spool.read(0, 1000)) == (0, 0, [])
            assert spool.written_lsn == spool.end_lsn > 0
            assert await asyncio.to_thread(spool.wait_beyond, 0, 10.0)
            assert syncs.calls == 1
            assert [record.payload for record in spool.read(0, 1000)] == [b"%d" % number for number in range(30)]
            begun = time.monotonic()
            await spool.append(TRACES, b"later")
            assert await asyncio.to_thread(spool.wait_beyond, spool.durable_lsn, 10.0)
            assert 0.1 < time.monotonic() - begun < 5

    asyncio.run(main())


def test_who_is_in_a_hurry_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    """A stop reads what was acknowledged a moment ago; asked with nothing to sync, nothing is."""
    syncs = Syncs()

    async def main() -> None:
        log = WriteAheadLog(tmp_path, sync=syncs)
        async with Spool(tmp_path, Metrics(), log=log, sync="interval", sync_interval_s=600) as spool:
            spool.hurry()
            await spool.append(TRACES, b"a request")
            assert (syncs.calls, spool.read(0, 1000)) == (0, [])
            spool.hurry()
            assert await asyncio.to_thread(spool.wait_beyond, 0, 10.0)
            assert (syncs.calls, spool.durable_lsn) == (1, spool.written_lsn)
            spool.hurry()
            await spool.append(TRACES, b"another")
            assert syncs.calls == 1

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["interval", "none"])
def test_leaving_makes_everything_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Whatever the mode promised meanwhile, a stop syncs the file."""
    synced = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        fsync(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fsync", noted)

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), sync=mode, sync_interval_s=60) as spool:  # type: ignore[arg-type]
            await spool.append(TRACES, b"a" * 1000)
            synced.clear()

    asyncio.run(main())
    (path,) = tmp_path.glob("*.wal")
    assert synced[-1] == path.stat().st_size == 16 + 24 + 1000
    log = WriteAheadLog(tmp_path)
    log.open()
    assert [record.payload for record in log.read(0, 100)] == [b"a" * 1000]
    log.close()


def test_none_never_asks_for_the_disk_and_reads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written may be read; no fdatasync is made for it."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), sync="none") as spool:
            await spool.append(TRACES, b"a")
            assert [record.payload for record in spool.read(0, 100)] == [b"a"]
            assert calls == []

    asyncio.run(main())


def test_a_failed_late_sync_refuses_all_that_come_after(tmp_path: Path) -> None:
    """With `interval` those before had their answer; nobody gets another one, and /readyz is told why."""

    async def main() -> None:
        log = WriteAheadLog(tmp_path, sync=Syncs(fails=True))
        async with Spool(tmp_path, Metrics(), log=log, sync="interval", sync_interval_s=0.01) as spool:
            await spool.append(TRACES, b"a")
            await asyncio.to_thread(wait_until, lambda: spool.trouble is not None, "the sync to fail")
            assert spool.trouble is not None
            assert "Input/output error" in spool.trouble
            with pytest.raises(StorageError, match="takes nothing more until the next start"):
                await spool.append(TRACES, b"b")
            assert (spool.durable_lsn, spool.read(0, 100)) == (0, [])
            assert spool.written_lsn == 0, "a stop waits for nothing that can never be read"

    asyncio.run(main())


def test_trouble_says_why_a_poisoned_spool_refuses_and_does_not_end(tmp_path: Path) -> None:
    """After a failed sync of `always` the reason stays, though the disk is well again."""
    syncs = Syncs(fails=True)

    async def main() -> None:
        spool = Spool(tmp_path, Metrics(), log=WriteAheadLog(tmp_path, sync=syncs))
        assert spool.trouble == "spool: it is not open"
        async with spool:
            assert spool.trouble is None
            with pytest.raises(StorageError, match="Input/output error"):
                await spool.append(TRACES, b"a")
            syncs.fails = False
            with pytest.raises(StorageError, match="takes nothing more"):
                await spool.append(TRACES, b"a")
            assert spool.trouble is not None
            assert "sync of 00000000000000000000.wal failed: Input/output error" in spool.trouble
            assert syncs.calls == 1
        assert spool.trouble == "spool: it is not open"

    asyncio.run(main())


def test_trouble_ends_with_the_first_write_that_works(tmp_path: Path) -> None:
    """A write error refuses its group and is said; nothing of it is in the log, and the next one is taken."""
    failing: list[int] = []

    def write(fd: int, buffers: Sequence[bytes], offset: int, /) -> int:
        if failing:
            raise OSError(failing.pop(), "Input/output error")
        return os.pwritev(fd, buffers, offset)

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), log=WriteAheadLog(tmp_path, write=write)) as spool:
            await spool.append(TRACES, b"a")
            failing.append(errno.EIO)
            with pytest.raises(StorageError, match="cannot append 25 bytes"):
                await spool.append(TRACES, b"b")
            assert spool.trouble is not None
            assert "cannot append 25 bytes" in spool.trouble
            await spool.append(TRACES, b"c")
            assert spool.trouble is None
            assert [record.payload for record in spool.read(0, 1000)] == [b"a", b"c"]

    asyncio.run(main())


def test_who_is_roused_before_it_sleeps_does_not_sleep() -> None:
    """It had looked at the time before: who was in a hurry meanwhile is not left to the end of an interval."""
    groups: Groups[int] = Groups()
    groups.rouse()
    assert groups.take() == []


def test_one_alone_is_taken_at_once_and_a_crowd_waits_for_its_like() -> None:
    """Nothing waits for company that never came; where groups are large, the next one is waited for, not for long."""
    groups: Groups[int] = Groups(company_s=0.05)

    def put(*items: int) -> None:
        with groups.lock:
            for item in items:
                groups.put(item)

    for number in range(3):
        put(number)
        begun = time.monotonic()
        assert groups.take() == [number]
        assert time.monotonic() - begun < 0.04
    put(*range(8))
    assert groups.take() == list(range(8))
    put(1)
    begun = time.monotonic()
    assert groups.take() == [1]
    assert time.monotonic() - begun >= 0.05
    put(*range(8))
    begun = time.monotonic()
    assert groups.take() == list(range(8))
    assert time.monotonic() - begun < 0.04
    assert groups.take(0.001) == []
    put(9)
    groups.close()
    assert groups.take() == [9]
    assert groups.take() is None
