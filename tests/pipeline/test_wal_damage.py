"""Damage costs what it touched: every other record is read, never a wrong one, and what was damaged is kept aside."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_pipeline.wal_segment import list_segments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TRACES = RecordKind.TRACES
HEADER = 24
SEGMENT_HEADER = 16
PAYLOADS = [b"first", b"", b"the third one " * 8, b"\0\0\0\0", b"last"]


def opened(directory: Path, **options: object) -> WriteAheadLog:
    log = WriteAheadLog(directory, **options)  # type: ignore[arg-type]
    log.open()
    return log


def fill(directory: Path, payloads: Sequence[bytes], **options: object) -> list[int]:
    log = opened(directory, **options)
    lsns = [log.append([(TRACES, 7, payload)])[0] for payload in payloads]
    log.sync()
    log.close()
    return lsns


def read_pairs(log: WriteAheadLog, lsn: int = 0) -> list[tuple[int, bytes]]:
    out = []
    while records := log.read(lsn, 1 << 20):
        out += [(record.lsn, record.payload) for record in records]
        lsn = records[-1].next_lsn
    return out


def copy_with(source: Path, directory: Path, index: int, data: bytes) -> None:
    directory.mkdir()
    for number, path in enumerate(sorted(source.glob("*.wal"))):
        (directory / path.name).write_bytes(data if number == index else path.read_bytes())


@pytest.mark.parametrize("bit", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_costs_its_own_record_alone(tmp_path: Path, bit: int) -> None:
    """Any byte of the only segment, its header and each length included: all other records come back at their lsns."""
    source = tmp_path / "source"
    lsns = fill(source, PAYLOADS)
    (path,) = source.glob("*.wal")
    whole = path.read_bytes()
    ends = [*lsns[1:], len(whole) - SEGMENT_HEADER]
    pairs = list(zip(lsns, PAYLOADS, strict=True))
    for offset in range(len(whole)):
        directory = tmp_path / f"flip-{offset}"
        flipped = bytearray(whole)
        flipped[offset] ^= bit
        copy_with(source, directory, 0, bytes(flipped))
        log = opened(directory)
        hit = [index for index in range(len(lsns)) if lsns[index] <= offset - SEGMENT_HEADER < ends[index]]
        assert read_pairs(log) == [pair for index, pair in enumerate(pairs) if index not in hit], offset
        if hit == [len(lsns) - 1]:
            assert (log.damaged_records, log.healed_bytes) == (0, len(flipped[SEGMENT_HEADER + lsns[-1] :]))
        else:
            assert (log.damaged_records, log.healed_bytes) == (len(hit), 0)
        kept = [found.read_bytes() for found in directory.glob("quarantine/*")]
        assert kept == [bytes(flipped[SEGMENT_HEADER + lsns[i] : SEGMENT_HEADER + ends[i]]) for i in hit]
        # And it goes on: what comes next has a position that nothing had before.
        (lsn,) = log.append([(TRACES, 7, b"next")])
        assert lsn >= ends[-1]
        log.sync()
        assert read_pairs(log)[-1] == (lsn, b"next")
        log.close()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payloads=st.lists(st.binary(max_size=60), min_size=1, max_size=8),
    segment_bytes=st.sampled_from([1, 120, 1 << 20]),
    data=st.data(),
)
def test_any_damage_leaves_the_other_records(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], segment_bytes: int, data: st.DataObject
) -> None:
    """Bytes overwritten or cut off anywhere in any segment: what they did not touch is read, nothing else ever is."""
    base = tmp_path_factory.mktemp("damage")
    lsns = fill(base / "source", payloads, segment_bytes=segment_bytes)
    segments = list_segments(base / "source")
    index = data.draw(st.integers(0, len(segments) - 1))
    content = bytearray(segments[index].path.read_bytes())
    begin = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        end = len(content)
        del content[begin:]
    else:
        garbage = data.draw(st.binary(min_size=1, max_size=40))[: len(content) - begin]
        content[begin : begin + len(garbage)] = garbage
        end = begin + len(garbage)
    copy_with(base / "source", base / "damaged", index, bytes(content))
    log = opened(base / "damaged", segment_bytes=segment_bytes)
    got = read_pairs(log)
    touched = segments[index].lsn(begin), segments[index].lsn(end)
    expected = []
    for lsn, payload in zip(lsns, payloads, strict=True):
        inside = segments[index].base <= lsn and (index + 1 == len(segments) or lsn < segments[index + 1].base)
        if not (inside and lsn < touched[1] and touched[0] < lsn + HEADER + len(payload)):
            expected.append((lsn, payload))
    whole = list(zip(lsns, payloads, strict=True))
    # Garbage may be what stood there.
    assert set(expected) <= set(got) <= set(whole)
    assert got == sorted(got)
    log.close()


def test_a_damaged_length_is_skipped_to_the_next_record(tmp_path: Path) -> None:
    """A length that claims the rest of the file, or beyond, does not take the records behind it along."""
    lsns = fill(tmp_path, [b"before", b"damaged", b"after", b"last"])
    (path,) = tmp_path.glob("*.wal")
    for length in (0, 3, 60, 1 << 20, 0xFFFFFFFF):
        data = bytearray(path.read_bytes())
        data[SEGMENT_HEADER + lsns[1] : SEGMENT_HEADER + lsns[1] + 4] = struct.pack("<I", length)
        path.write_bytes(data)
        log = opened(tmp_path)
        assert [payload for _, payload in read_pairs(log)] == [b"before", b"after", b"last"]
        assert log.healed_bytes == 0
        log.close()


def test_records_side_by_side_that_are_damaged_are_counted_each(tmp_path: Path) -> None:
    """Two payloads flipped are two records lost, in one file aside, counted once however often it is read."""
    lsns = fill(tmp_path, [b"before", b"damaged", b"damaged too", b"after"])
    (path,) = tmp_path.glob("*.wal")
    data = bytearray(path.read_bytes())
    for lsn in lsns[1:3]:
        data[SEGMENT_HEADER + lsn + HEADER] ^= 1
    path.write_bytes(data)
    log = opened(tmp_path)
    assert read_pairs(log) == read_pairs(log) == [(lsns[0], b"before"), (lsns[3], b"after")]
    assert log.damaged_records == 2
    (aside,) = tmp_path.glob("quarantine/*.damaged")
    assert aside.name == f"{lsns[1]:020d}.damaged"
    assert aside.read_bytes() == bytes(data[SEGMENT_HEADER + lsns[1] : SEGMENT_HEADER + lsns[3]])
    log.close()


def test_a_record_inside_a_payload_is_never_one(tmp_path: Path) -> None:
    """Bytes of a log sent as a payload are not found when the record around them is damaged."""
    fill(tmp_path / "other", [b"forged"] * 3)
    (other,) = (tmp_path / "other").glob("*.wal")
    lsns = fill(tmp_path / "log", [other.read_bytes(), b"after"])
    (path,) = (tmp_path / "log").glob("*.wal")
    data = bytearray(path.read_bytes())
    # The same mark and at the same place as in the log it was taken of: only its lsn is not its own.
    inner = SEGMENT_HEADER + HEADER + SEGMENT_HEADER
    for at in range(inner, inner + 3 * (HEADER + 6), HEADER + 6):
        data[at + 12 : at + 16] = data[8:12]
    data[SEGMENT_HEADER] ^= 1
    path.write_bytes(data)
    log = opened(tmp_path / "log")
    assert read_pairs(log) == [(lsns[1], b"after")]
    log.close()


def test_a_segment_without_its_header_is_read(tmp_path: Path) -> None:
    """The mark comes from a record, the first one or a later one; the segment is not written any more."""
    source = tmp_path / "source"
    lsns = fill(source, PAYLOADS)
    (path,) = source.glob("*.wal")
    for name, damage in {"zeros": bytes(16), "garbage": b"\xff" * 16, "later": b"JGWAL\x07" + b"x" * 10}.items():
        copy_with(source, tmp_path / name, 0, damage + path.read_bytes()[16:])
        log = opened(tmp_path / name)
        assert [payload for _, payload in read_pairs(log)] == PAYLOADS
        log.append([(TRACES, 7, b"next")])
        log.sync()
        log.close()
        assert len(list_segments(tmp_path / name)) == 2
        again = opened(tmp_path / name)
        assert [payload for _, payload in read_pairs(again)] == [*PAYLOADS, b"next"]
        assert again.missing_bytes == 0
        again.close()
    data = bytearray(damage + path.read_bytes()[16:])
    data[SEGMENT_HEADER + HEADER] ^= 1
    copy_with(source, tmp_path / "both", 0, bytes(data))
    log = opened(tmp_path / "both")
    assert [lsn for lsn, _ in read_pairs(log)] == lsns[1:]
    log.close()


def test_a_lost_segment_is_said_and_the_rest_is_read(tmp_path: Path) -> None:
    """A file in the middle that is gone, or cut short, is counted in bytes at the start; its neighbours are read."""
    lsns = fill(tmp_path, [b"aaaa", b"bbbb", b"cccc"], segment_bytes=1)
    middle = sorted(tmp_path.glob("*.wal"))[1]
    middle.write_bytes(middle.read_bytes()[:-1])
    log = opened(tmp_path)
    assert (log.missing_bytes, [lsn for lsn, _ in read_pairs(log)]) == (1, [lsns[0], lsns[2]])
    log.close()
    middle.unlink()
    log = opened(tmp_path)
    assert (log.missing_bytes, [lsn for lsn, _ in read_pairs(log)]) == (HEADER + 4, [lsns[0], lsns[2]])
    assert log.read(lsns[1], 100)[0].lsn == lsns[2]
    log.close()


def test_nothing_is_missing_where_a_torn_end_was_cut(tmp_path: Path) -> None:
    """The hole that healing leaves is no loss: it is not counted at the next start, nor read as damage."""
    lsns = fill(tmp_path, [b"kept"])
    (path,) = tmp_path.glob("*.wal")
    path.write_bytes(path.read_bytes() + b"torn bytes")
    log = opened(tmp_path)
    assert (log.healed_bytes, log.durable_lsn) == (10, HEADER + 4)
    (lsn,) = log.append([(TRACES, 1, b"next")])
    log.sync()
    log.close()
    for _ in range(2):
        log = opened(tmp_path)
        assert read_pairs(log) == [(lsns[0], b"kept"), (lsn, b"next")]
        assert (log.missing_bytes, log.damaged_records, log.healed_bytes) == (0, 0, 0)
        assert log.read(log.durable_lsn - 30, 100)[0].payload == b"next"
        log.close()


def test_a_log_that_lost_its_end_goes_on_behind_its_readers(tmp_path: Path) -> None:
    """`skip_to` gives up positions that are known to have been read, so that none means two records."""
    fill(tmp_path, [b"kept"])
    log = opened(tmp_path)
    log.skip_to(10)
    assert log.end_lsn == HEADER + 4
    log.skip_to(500)
    assert (log.end_lsn, log.durable_lsn) == (500, 500)
    assert log.append([(TRACES, 1, b"next")]) == [500]
    log.sync()
    assert log.read(HEADER + 4, 100)[0].payload == b"next"
    log.close()
    log = opened(tmp_path)
    assert ([payload for _, payload in read_pairs(log)], log.missing_bytes) == ([b"kept", b"next"], 0)
    log.close()


def test_a_quarantine_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """Where damaged bytes find no place, the records behind them are read all the same, and they are counted once."""
    lsns = fill(tmp_path, [b"damaged", b"after"])
    (path,) = tmp_path.glob("*.wal")
    data = bytearray(path.read_bytes())
    data[SEGMENT_HEADER + HEADER] ^= 1
    path.write_bytes(bytes(data) + b"torn")
    (tmp_path / "quarantine").write_text("not a directory")
    log = opened(tmp_path)
    assert read_pairs(log) == read_pairs(log) == [(lsns[1], b"after")]
    assert (log.damaged_records, log.healed_bytes) == (1, 4)
    log.close()
