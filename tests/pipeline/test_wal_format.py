"""The bytes of a log: metadata beside a payload, and logs of version 1."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_pipeline.wal_segment import (
    MAX_METADATA_BYTES,
    decode_metadata,
    encode_metadata,
    new_mark,
    record_header,
    segment_header,
)

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_pipeline.records import Metadata

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
METADATA = st.lists(st.tuples(TEXT, TEXT), max_size=5).map(tuple)


def opened(directory: Path) -> WriteAheadLog:
    log = WriteAheadLog(directory)
    log.open()
    return log


def read_all(log: WriteAheadLog) -> list[tuple[bytes, Metadata]]:
    out, lsn = [], log.start_lsn
    while records := log.read(lsn, 1 << 20):
        out += [(record.payload, record.metadata) for record in records]
        lsn = records[-1].next_lsn
    return out


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(st.tuples(st.binary(max_size=50), METADATA), min_size=1, max_size=6))
def test_metadata_comes_back_beside_its_payload(
    tmp_path_factory: pytest.TempPathFactory, batch: list[tuple[bytes, Metadata]]
) -> None:
    """Any headers travel with any payload, at once and after a start; the payload is what it was."""
    directory = tmp_path_factory.mktemp("metadata")
    log = opened(directory)
    lsns = log.append([(RecordKind.LOGS, 3, payload, metadata) for payload, metadata in batch])
    log.sync()
    assert read_all(log) == batch
    log.close()
    log = opened(directory)
    assert read_all(log) == batch
    assert [log.read_at(lsn).metadata for lsn in lsns] == [metadata for _, metadata in batch]
    log.close()


@given(metadata=METADATA)
def test_metadata_is_decoded_as_it_was_encoded(metadata: Metadata) -> None:
    """None takes no bytes at all."""
    data = encode_metadata(metadata)
    assert (data == b"") == (not metadata)
    assert not data or decode_metadata(data) == metadata


def test_metadata_that_is_too_large_writes_nothing(tmp_path: Path) -> None:
    """StorageError with both sizes, and no record of its batch is in the log."""
    log = opened(tmp_path)
    largest = (("k", "v" * (MAX_METADATA_BYTES - len('[["k",""]]'))),)
    assert len(encode_metadata(largest)) == MAX_METADATA_BYTES
    log.append([(RecordKind.TRACES, 1, b"a", largest)])
    end = log.end_lsn
    with pytest.raises(StorageError, match="got 65536 bytes of request metadata, expected at most 65535"):
        log.append([(RecordKind.TRACES, 1, b"whole"), (RecordKind.TRACES, 1, b"b", (("k", largest[0][1] + "v"),))])
    log.sync()
    assert (log.end_lsn, read_all(log)) == (end, [(b"a", largest)])
    log.close()


def v1_log(directory: Path, payloads: list[bytes]) -> list[int]:
    """A log as version 1 wrote it."""
    lsns, data = [], struct.pack("<5sB2xQ", b"JGWAL", 1, 0)
    for payload in payloads:
        lsns.append(len(data) - 16)
        data += record_header(RecordKind.TRACES, 9, [payload]) + payload
    (directory / f"{0:020d}.wal").write_bytes(data)
    return lsns


def test_a_log_of_version_1_is_read_and_gone_on_with(tmp_path: Path) -> None:
    """Its records are read, new ones go to a segment of version 2 behind it, and nothing of it is rewritten."""
    lsns = v1_log(tmp_path, [b"one", b"two"])
    before = (tmp_path / f"{0:020d}.wal").read_bytes()
    log = opened(tmp_path)
    assert log.last_lsn == lsns[1]
    log.append([(RecordKind.TRACES, 9, b"three")])
    log.sync()
    assert [payload for payload, _ in read_all(log)] == [b"one", b"two", b"three"]
    log.close()
    assert (tmp_path / f"{0:020d}.wal").read_bytes() == before
    again = opened(tmp_path)
    assert [payload for payload, _ in read_all(again)] == [b"one", b"two", b"three"]
    assert (again.healed_bytes, again.missing_bytes) == (0, 0)
    again.close()


def test_damage_in_a_log_of_version_1_costs_its_record(tmp_path: Path) -> None:
    """A flipped length there is found over too, though its records carry no mark."""
    lsns = v1_log(tmp_path, [b"one", b"two", b"three"])
    path = tmp_path / f"{0:020d}.wal"
    data = bytearray(path.read_bytes())
    data[16 + lsns[1]] ^= 0x40
    path.write_bytes(data)
    log = opened(tmp_path)
    assert [payload for payload, _ in read_all(log)] == [b"one", b"three"]
    log.close()


def test_an_empty_log_of_version_1_becomes_one_of_version_2(tmp_path: Path) -> None:
    """Nothing stands in it, so its file is begun anew."""
    v1_log(tmp_path, [])
    log = opened(tmp_path)
    log.append([(RecordKind.TRACES, 9, b"a")])
    log.sync()
    log.close()
    (path,) = tmp_path.glob("*.wal")
    assert path.read_bytes()[:6] == b"JGWAL\x02"


def test_a_segment_under_another_name_is_none(tmp_path: Path) -> None:
    """The base in the name is part of every checksum: a renamed file gives no record."""
    log = opened(tmp_path)
    log.append([(RecordKind.TRACES, 9, b"a")])
    log.close()
    (path,) = tmp_path.glob("*.wal")
    path.rename(tmp_path / f"{1000:020d}.wal")
    log = opened(tmp_path)
    assert read_all(log) == []
    assert log.healed_bytes == 25
    log.close()


def test_marks_can_be_searched_for() -> None:
    """None begins with a byte that comes again in it, or is that of version 1; the header is 16 bytes."""
    for mark in (new_mark() for _ in range(500)):
        data = struct.pack("<I", mark)
        assert data[0]
        assert data[0] not in data[1:]
        assert len(segment_header(7, mark)) == 16
