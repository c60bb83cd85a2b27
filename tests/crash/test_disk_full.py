"""A disk that is full or fails: refuse rather than lie, take the half-written back, go on when there is room."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.errors import BusyError, StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACES, TICKS = RecordKind.TRACES, RecordKind.TICKS
MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"this machine lets us mount no small file system: {made.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def read_all(log: WriteAheadLog | Spool) -> list[bytes]:
    out, lsn = [], log.start_lsn
    while records := log.read(lsn, MIB):
        out += [record.payload for record in records]
        lsn = records[-1].next_lsn
    return out


def body(number: int, size: int) -> bytes:
    return b"%08d" % number + bytes(size - 8)


async def append_until_refused(spool: Spool, size: int, acknowledged: list[int]) -> None:
    for number in range(1000):
        await spool.append(TRACES, body(number, size))
        acknowledged.append(number)


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as handle:
        while True:
            handle.write(bytes(4096))


@pytest.mark.parametrize("size", [100_000, 3 * MIB])
def test_a_full_disk_refuses_until_there_is_room(small_disk: Path, size: int) -> None:
    """ENOSPC: those who waited are refused, those acknowledged are there, and with room it goes on by itself."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 * MIB))
    acknowledged: list[int] = []

    async def main() -> None:
        async with Spool(small_disk / "spool", Metrics(), min_free_bytes=0, segment_bytes=MIB) as spool:
            with pytest.raises(StorageError, match="No space left on device"):
                await append_until_refused(spool, size, acknowledged)
            assert acknowledged
            assert spool.trouble is not None
            assert "No space left on device" in spool.trouble
            # Until there is room every one is refused, and none of them is half in the log.
            for again in range(3):
                with pytest.raises(StorageError, match="No space left on device"):
                    await spool.append(TRACES, body(again, size))
            assert [int(payload[:8]) for payload in read_all(spool)] == acknowledged
            ballast.unlink()
            await spool.append(TRACES, body(9999, size))
            acknowledged.append(9999)
            assert spool.trouble is None

    asyncio.run(main())
    log = WriteAheadLog(small_disk / "spool")
    log.open()
    assert [int(payload[:8]) for payload in read_all(log)] == acknowledged
    assert (log.healed_bytes, log.missing_bytes, log.damaged_records) == (0, 0, 0)
    log.close()


def test_the_reserve_keeps_the_disk_from_filling(small_disk: Path) -> None:
    """With min_free_bytes requests are refused before the file system is full; what the ledger writes still fits."""

    async def main() -> None:
        async with Spool(small_disk / "spool", Metrics(), min_free_bytes=2 * MIB, segment_bytes=MIB) as spool:
            with pytest.raises(BusyError, match=r"bytes are free in .*, expected at least 2097152"):
                await append_until_refused(spool, 100_000, [])
            await spool.append(TICKS, b"a tick")

    asyncio.run(main())
    (small_disk / "ledger").write_bytes(bytes(MIB))


def test_a_full_disk_does_not_keep_a_log_shut(small_disk: Path) -> None:
    """A start heals a torn tail though there is no byte to keep it in, and reads; it takes nothing until there is."""
    log = WriteAheadLog(small_disk / "spool")
    log.open()
    log.append([(TRACES, 1, b"kept")])
    log.close()
    (path,) = (small_disk / "spool").glob("*.wal")
    path.write_bytes(path.read_bytes() + b"torn" * 3000)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        fill_up(ballast)
    log = WriteAheadLog(small_disk / "spool")
    log.open()
    assert (read_all(log), log.healed_bytes) == ([b"kept"], 12_000)
    with pytest.raises(StorageError, match="No space left"):
        log.append([(TRACES, 1, bytes(100_000))])
    ballast.unlink()
    log.append([(TRACES, 1, b"next")])
    log.sync()
    assert read_all(log) == [b"kept", b"next"]
    log.close()


WRITER = """
import resource, sys
from pathlib import Path
from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.wal import WriteAheadLog
soft, hard = 200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log = WriteAheadLog(Path(sys.argv[1]))
log.open()
number = refused = 0
while refused < 3:
    try:
        log.append([(1, 1, b"%08d" % (number + k) + bytes(3000)) for k in range(3)])
    except StorageError as error:
        assert "File too large" in str(error), error
        refused += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft * (refused + 1), hard))
        continue
    log.sync()
    number += 3
    print(number, flush=True)
log.close()
"""


def test_a_file_that_may_not_grow_refuses_whole_batches(tmp_path: Path) -> None:
    """A limit in the middle of a batch (EFBIG, as a quota) takes nothing of it; a raised limit lets it go on."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    acknowledged = int(done.stdout.split()[-1])
    assert acknowledged > 150
    log = WriteAheadLog(tmp_path)
    log.open()
    assert [int(payload[:8]) for payload in read_all(log)] == list(range(acknowledged))
    assert log.healed_bytes == 0
    log.close()
