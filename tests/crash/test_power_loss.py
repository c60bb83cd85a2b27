"""Power loss: of each file what was synced is there, what was written later may be there in part, or as garbage."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACES = RecordKind.TRACES
PREALLOCATED = 4 * 1024 * 1024

Image = dict[str, bytes]
"""What the disk has of each file of a log."""


class Disk:
    """Syncs as the kernel does and keeps what was on the disk then; a sync makes nothing of later writes durable."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.durable: Image = {}

    def __call__(self, fd: int) -> None:
        os.fdatasync(fd)
        self.durable = self.now()

    def now(self) -> Image:
        """Every file as a process sees it, without the zeros that were only preallocated."""
        return {path.name: path.read_bytes().rstrip(b"\0") for path in sorted(self._directory.glob("*.wal"))}


def restored(directory: Path, image: Image) -> tuple[list[tuple[int, bytes]], WriteAheadLog]:
    """The records a start finds on a disk, and the log, open."""
    directory.mkdir()
    for name, data in image.items():
        (directory / name).write_bytes(data)
    log = WriteAheadLog(directory, segment_bytes=300)
    log.open()
    found = []
    lsn = log.start_lsn
    while records := log.read(lsn, 1 << 20):
        found += [(record.lsn, record.payload) for record in records]
        lsn = records[-1].next_lsn
    return found, log


def behind(durable: bytes, written: bytes) -> Iterator[bytes]:
    """What a disk may have of a file of which `durable` was synced and `written` was written."""
    for cut in range(len(durable), len(written) + 1):
        yield written[:cut]
        yield written[:cut] + bytes(PREALLOCATED // 1024)
        yield written[:cut] + b"\xa5" * 77
        # Blocks go to disk in any order: the end may be there and what stands before it not.
        yield durable + bytes(cut - len(durable)) + written[cut:]


def test_every_acknowledged_record_is_there_at_every_cut(tmp_path: Path) -> None:
    """Cut at each byte behind the last sync, with nothing, zeros or garbage after it: none lost, none wrong."""
    disk = Disk(tmp_path / "log")
    log = WriteAheadLog(tmp_path / "log", segment_bytes=300, sync=disk)
    log.open()
    number, tried = 0, 0
    acknowledged: list[tuple[int, bytes]] = []
    written: list[tuple[int, bytes]] = []
    for batch in (1, 2, 1, 3, 2):
        payloads = [b"%d " % (number + index) * (5 + index) for index in range(batch)]
        number += batch
        lsns = log.append([(TRACES, 1, payload) for payload in payloads])
        written += zip(lsns, payloads, strict=True)
        # The power goes here: nothing of this batch was acknowledged.
        seen = disk.now()
        last = max(seen)
        durable = {name: disk.durable.get(name, data[:16]) for name, data in seen.items()}
        for data in behind(durable[last], seen[last]):
            tried += 1
            found, again = restored(tmp_path / f"try-{tried}", {**durable, last: data})
            assert set(acknowledged) <= set(found) <= set(written)
            assert found == sorted(found)
            assert again.missing_bytes == 0
            (lsn,) = again.append([(TRACES, 1, b"next")])
            again.sync()
            assert lsn >= max([0, *(at for at, _ in found)])
            assert again.read_at(lsn).payload == b"next"
            again.close()
        log.sync()
        acknowledged = list(written)
    log.close()
    assert len(list((tmp_path / "log").glob("*.wal"))) > 1
    assert tried > 1000


@pytest.mark.parametrize("seed", range(3))
def test_what_the_spool_acknowledged_is_on_the_disk(tmp_path: Path, seed: int) -> None:
    """At every acknowledgement under load, the disk alone gives all that was acknowledged until then."""
    chance = random.Random(seed)
    disk = Disk(tmp_path / "spool")
    acknowledged: set[bytes] = set()
    checks = 0

    async def client(spool: Spool, name: int) -> None:
        nonlocal checks
        for number in range(25):
            payload = b"%d-%d " % (name, number) * chance.randrange(1, 20)
            await spool.append(TRACES, payload)
            acknowledged.add(payload)
            if chance.random() < 0.1:
                checks += 1
                image, expected = disk.durable, set(acknowledged)
                found, log = restored(tmp_path / f"check-{checks}", image)
                log.close()
                assert expected <= {each for _, each in found}
            if chance.random() < 0.3:
                await asyncio.sleep(0.001)

    async def main() -> None:
        log = WriteAheadLog(tmp_path / "spool", segment_bytes=3000, sync=disk)
        async with Spool(tmp_path / "spool", Metrics(), log=log) as spool:
            await asyncio.gather(*(client(spool, name) for name in range(6)))

    asyncio.run(main())
    assert len(acknowledged) == 150
    assert checks > 3


def test_a_power_loss_within_the_interval_costs_that_much_and_no_more(tmp_path: Path) -> None:
    """`interval`: what was read by the engine is on disk, so nothing made of a record outlives it."""
    disk = Disk(tmp_path / "spool")

    async def main() -> list[bytes]:
        log = WriteAheadLog(tmp_path / "spool", sync=disk)
        async with Spool(tmp_path / "spool", Metrics(), log=log, sync="interval", sync_interval_s=0.1) as spool:
            await asyncio.gather(*(spool.append(TRACES, b"%d" % number) for number in range(5)))
            assert await asyncio.to_thread(spool.wait_beyond, 0, 10.0)
            await spool.append(TRACES, b"after the sync")
            read = [record.payload for record in spool.read(0, 1000)]
            found, log = restored(tmp_path / "after", disk.durable)
            log.close()
            assert {payload for _, payload in found} >= set(read)
            return read

    assert asyncio.run(main()) == [b"%d" % number for number in range(5)]
