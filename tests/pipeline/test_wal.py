"""The write-ahead log: what was synced is there, whole and in order, whatever happened (design 2; D-40, C-56)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_pipeline.wal_segment import segment_header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TRACES = RecordKind.TRACES
HEADER = 24
SEGMENT_HEADER = 16


def opened(directory: Path, **options: object) -> WriteAheadLog:
    log = WriteAheadLog(directory, **options)  # type: ignore[arg-type]
    log.open()
    return log


def read_all(log: WriteAheadLog, lsn: int = 0, max_bytes: int = 1 << 20) -> list[bytes]:
    out = []
    while records := log.read(lsn, max_bytes):
        out += [record.payload for record in records]
        lsn = records[-1].next_lsn
    return out


def fill(directory: Path, payloads: Sequence[bytes], **options: object) -> list[int]:
    log = opened(directory, **options)
    lsns = [log.append([(TRACES, 7, payload)])[0] for payload in payloads]
    log.sync()
    log.close()
    return lsns


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.binary(max_size=200), max_size=5), max_size=10),
    segment_bytes=st.sampled_from([1, 100, 1000, 1 << 20]),
    max_bytes=st.sampled_from([0, 50, 1 << 20]),
)
def test_what_was_appended_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], segment_bytes: int, max_bytes: int
) -> None:
    """Any batches come back in order, before and after reopening, over any segment size and read size."""
    directory = tmp_path_factory.mktemp("wal")
    log = opened(directory, segment_bytes=segment_bytes)
    lsns = []
    for batch in batches:
        lsns += log.append([(TRACES, 5, payload) for payload in batch])
        log.sync()
    expected = [payload for batch in batches for payload in batch]
    assert expected == read_all(log, max_bytes=max_bytes)
    assert sorted(set(lsns)) == lsns
    log.close()
    again = opened(directory, segment_bytes=segment_bytes)
    assert expected == read_all(again, max_bytes=max_bytes)
    assert expected == [again.read_at(lsn).payload for lsn in lsns]
    assert again.healed_bytes == 0
    assert again.last_lsn == (lsns[-1] if lsns else None)
    again.close()


def test_a_payload_in_pieces_is_one_record(tmp_path: Path) -> None:
    """More pieces than one writev takes are written as one record, with its kind and time."""
    log = opened(tmp_path)
    pieces = [b"%d," % number for number in range(3000)]
    (lsn,) = log.append([(RecordKind.LOGS, 123, pieces)])
    log.sync()
    record = log.read_at(lsn)
    assert (b"".join(pieces), RecordKind.LOGS, 123, log.end_lsn) == (
        record.payload,
        record.kind,
        record.received_ns,
        record.next_lsn,
    )
    log.close()


def test_only_what_is_durable_is_read(tmp_path: Path) -> None:
    """A record is not read before the sync that makes it durable."""
    log = opened(tmp_path)
    log.append([(TRACES, 1, b"a")])
    assert log.read(0, 1 << 20) == []
    log.sync()
    assert read_all(log) == [b"a"]
    assert log.durable_lsn == log.end_lsn == HEADER + 1
    log.close()


def test_a_tail_torn_at_any_byte_is_healed(tmp_path: Path) -> None:
    """Whatever part of the last record reached the disk, all before it are kept and the torn bytes put aside."""
    payloads = [b"first", b"second " * 20, b"the last \xff"]
    source = tmp_path / "source"
    lsns = fill(source, payloads)
    (path,) = source.glob("*.wal")
    whole = path.read_bytes()
    begin = SEGMENT_HEADER + lsns[-1]
    for cut in range(begin, len(whole)):
        directory = tmp_path / f"cut-{cut}"
        directory.mkdir()
        (directory / path.name).write_bytes(whole[:cut])
        log = opened(directory)
        torn = whole[begin:cut].rstrip(b"\0")
        assert (payloads[:-1], lsns[-1], len(torn)) == (read_all(log), log.durable_lsn, log.healed_bytes)
        aside = [found.read_bytes() for found in directory.glob("quarantine/*")]
        assert aside == ([torn] if torn else [])
        # Where anything stood behind it, its place stays its own: somebody may have read it before it was damaged.
        assert log.append([(TRACES, 1, b"next")]) == [cut - SEGMENT_HEADER if torn else lsns[-1]]
        log.sync()
        assert read_all(log) == [*payloads[:-1], b"next"]
        log.close()


def test_a_tail_with_a_hole_in_preallocated_zeros_is_healed(tmp_path: Path) -> None:
    """A last record of which a block in the middle never reached the disk is torn, though its end did."""
    lsns = fill(tmp_path, [b"kept", b"x" * 1000])
    (path,) = tmp_path.glob("*.wal")
    data = bytearray(path.read_bytes()) + bytes(5000)
    data[SEGMENT_HEADER + lsns[1] + 300 : SEGMENT_HEADER + lsns[1] + 400] = bytes(100)
    path.write_bytes(data)
    log = opened(tmp_path)
    assert (read_all(log), log.healed_bytes) == ([b"kept"], HEADER + 1000)
    log.close()


def test_a_segment_whose_header_is_torn_is_begun_again(tmp_path: Path) -> None:
    """A crash while a segment was made leaves the log as it was before."""
    fill(tmp_path, [b"a"])
    end = HEADER + 1
    (tmp_path / f"{end:020d}.wal").write_bytes(b"JGW")
    log = opened(tmp_path)
    assert (end, 0) == (log.end_lsn, log.last_lsn)
    log.append([(TRACES, 1, b"b")])
    log.sync()
    assert read_all(log) == [b"a", b"b"]
    log.close()


def test_a_flipped_bit_costs_one_record_and_keeps_its_bytes(tmp_path: Path) -> None:
    """A record that fails its checksum is left out, counted once and put aside; its neighbours are read."""
    lsns = fill(tmp_path, [b"before", b"damaged", b"after"])
    (path,) = tmp_path.glob("*.wal")
    data = bytearray(path.read_bytes())
    data[SEGMENT_HEADER + lsns[1] + HEADER] ^= 1
    path.write_bytes(data)
    log = opened(tmp_path)
    assert [b"before", b"after"] == read_all(log) == read_all(log)
    assert (log.damaged_records, log.healed_bytes) == (1, 0)
    (aside,) = tmp_path.glob("quarantine/*.damaged")
    assert aside.read_bytes() == bytes(data[SEGMENT_HEADER + lsns[1] : SEGMENT_HEADER + lsns[2]])
    with pytest.raises(StorageError, match=f"no whole durable record at lsn {lsns[1]}"):
        log.read_at(lsns[1])
    assert log.find(lsns[1]) is None
    found = log.find(lsns[2])
    assert found is not None
    assert found.payload == b"after"
    log.close()


def test_a_record_that_was_released_is_not_found_and_one_that_the_disk_withholds_is_an_error(tmp_path: Path) -> None:
    """What was let go of is None; what should be there and cannot be read is never taken for it."""
    lsns = fill(tmp_path, [b"one", b"two", b"three"], segment_bytes=1)
    log = opened(tmp_path, segment_bytes=1)
    log.release(lsns[1])
    assert log.find(lsns[0]) is None
    min(tmp_path.glob("*.wal")).unlink()
    with pytest.raises(StorageError):
        log.find(lsns[1])
    log.close()


def test_another_format_is_refused(tmp_path: Path) -> None:
    """A file that a later version wrote is not touched, and the message names both versions."""
    path = tmp_path / f"{0:020d}.wal"
    path.write_bytes(segment_header(0, 7, version=3) + b"x" * 90)
    with pytest.raises(StorageError, match="expected format version 1 or 2, got 3"):
        opened(tmp_path)
    assert path.stat().st_size == 106


class FullDisk:
    """Writes like os.pwritev until told that the disk is full; then a part of it, then ENOSPC."""

    def __init__(self) -> None:
        self.room: int | None = None

    def __call__(self, fd: int, buffers: Sequence[bytes], offset: int, /) -> int:
        data = b"".join(buffers)
        if self.room is None:
            return os.pwrite(fd, data, offset)
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = data[: self.room]
        self.room = 0
        return os.pwrite(fd, part, offset)


@pytest.mark.parametrize("room", [0, 1, 24, 40])
def test_a_full_disk_takes_nothing_of_a_batch(tmp_path: Path, room: int) -> None:
    """ENOSPC at any byte: the batch is refused whole, and once there is room the log goes on as if nothing was."""
    disk = FullDisk()
    log = opened(tmp_path, write=disk)
    log.append([(TRACES, 1, b"kept")])
    disk.room = room
    with pytest.raises(StorageError, match="No space left on device"):
        log.append([(TRACES, 1, b"x" * 20), (TRACES, 1, b"y" * 20)])
    disk.room = None
    log.append([(TRACES, 1, b"later")])
    log.sync()
    assert read_all(log) == [b"kept", b"later"]
    log.close()
    again = opened(tmp_path)
    assert (read_all(again), again.healed_bytes) == ([b"kept", b"later"], 0)
    again.close()


def test_a_short_write_is_finished(tmp_path: Path) -> None:
    """A write that took a part is gone on with."""

    def stingy(fd: int, buffers: Sequence[bytes], offset: int, /) -> int:
        return os.pwrite(fd, b"".join(buffers)[:7], offset)

    log = opened(tmp_path, write=stingy)
    log.append([(TRACES, 1, b"a" * 50), (TRACES, 1, b"b")])
    log.sync()
    assert read_all(log) == [b"a" * 50, b"b"]
    log.close()


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    """After one failed fdatasync nothing more is taken, though the next one would have worked."""
    failing = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def sync(fd: int) -> None:
        if failing:
            raise failing.pop()

    log = opened(tmp_path, sync=sync)
    log.append([(TRACES, 1, b"a")])
    with pytest.raises(StorageError, match="Input/output error"):
        log.sync()
    for again in (log.sync, lambda: log.append([(TRACES, 1, b"b")])):
        with pytest.raises(StorageError, match="takes nothing more"):
            again()
    assert (log.durable_lsn, log.read(0, 100)) == (0, [])
    log.close()


def test_release_deletes_only_whole_segments_below(tmp_path: Path) -> None:
    """Segments wholly below go, the last one never; what was released can no longer be read."""
    log = opened(tmp_path, segment_bytes=60)
    lsns = [log.append([(TRACES, 1, b"%04d" % number)])[0] for number in range(6)]
    log.sync()
    assert len(list(tmp_path.glob("*.wal"))) == 3
    assert not log.would_release(lsns[1])
    log.release(lsns[1])
    assert log.start_lsn == 0
    assert log.would_release(lsns[3])
    log.release(lsns[3])
    assert (lsns[2], 2) == (log.start_lsn, len(list(tmp_path.glob("*.wal"))))
    with pytest.raises(StorageError, match=f"got lsn 0, expected {lsns[2]} or above"):
        log.read(0, 100)
    log.release(log.end_lsn)
    assert len(list(tmp_path.glob("*.wal"))) == 1
    log.close()
    again = opened(tmp_path)
    assert (lsns[4], lsns[5]) == (again.start_lsn, again.last_lsn)
    again.close()


WRITER = """
import sys
from pathlib import Path
from joulegram_pipeline.wal import WriteAheadLog
log = WriteAheadLog(Path(sys.argv[1]), segment_bytes=20_000)
log.open()
number = 0
while True:
    log.append([(1, 1, b"%d " % (number + k) * 50) for k in range(3)])
    log.sync()
    number += 3
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("acks", [1, 40, 200])
def test_kill_9_loses_nothing_that_was_synced(tmp_path: Path, acks: int) -> None:
    """A writer killed at any moment leaves every record it had acknowledged, each once, in order (design section 2)."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(acks):
        process.stdout.readline()
    process.kill()
    rest = process.stdout.read().split(b"\n")
    process.wait()
    process.stdout.close()
    acknowledged = max([acks * 3, *(int(line) for line in rest if line and line is not rest[-1])])
    log = opened(tmp_path)
    got = [int(payload.split()[0]) for payload in read_all(log)]
    log.close()
    assert got == list(range(len(got)))
    # Written and not acknowledged is at most the batch under way.
    assert acknowledged <= len(got) <= acknowledged + 3
