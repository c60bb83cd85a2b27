"""Every tick batch kept by day, once, in the order of the log (design 2.8)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.energy import Domain, DomainKind, Method, Tick, TickBatch
from joulegram_pipeline.errors import StorageError
from joulegram_sink.tick_archive import TickArchive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

S = 10**9
DAY = 86_400 * S
T0 = 1_767_312_000 * S
"""2026-01-02T00:00:00Z."""


def batch(end_ns: int, *, ticks: int = 1) -> TickBatch:
    """A batch whose last tick ends then."""
    return TickBatch(
        epoch="e",
        source="powercap",
        method=Method.MEASURED,
        reason=None,
        domains=(Domain("package-0", DomainKind.CPU, 2**32),),
        ticks=tuple(
            Tick(seq=1 + number, start_ns=end_ns - (ticks - number) * S, end_ns=end_ns - (ticks - number - 1) * S)
            for number in range(ticks)
        ),
    )


def kept(directory: Path, batches: Sequence[tuple[int, int]], retention_ns: int = 30 * DAY) -> TickArchive:
    """An archive that was given batches of (lsn, end), synced and closed."""
    archive = TickArchive(directory, retention_ns)
    archive.load()
    for lsn, end_ns in batches:
        archive.append([(lsn, batch(end_ns).to_bytes())])
    archive.sync()
    archive.close()
    return archive


def lsns(directory: Path) -> list[int]:
    return [lsn for lsn, _ in TickArchive(directory, DAY).load()]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_batches_come_back_with_their_positions(tmp_path: Path) -> None:
    """As they were, in order, from the file of the day their last tick ended."""
    given_ = [(10, batch(T0 + 5 * S, ticks=3)), (20, batch(T0 + DAY)), (30, batch(T0 + DAY + S))]
    archive = TickArchive(tmp_path, DAY)
    archive.append([(lsn, found.to_bytes()) for lsn, found in given_])
    archive.close()
    again = TickArchive(tmp_path, DAY)
    assert again.load() == given_
    assert again.last_lsn == 30
    assert names(tmp_path) == ["2026-01-02.ndjson", "2026-01-03.ndjson"]


def test_a_replay_adds_nothing(tmp_path: Path) -> None:
    """What is at or below the last position is dropped, before and after a new start."""
    archive = kept(tmp_path, [(10, T0 + S), (20, T0 + 2 * S)])
    size = (tmp_path / "2026-01-02.ndjson").stat().st_size
    for target in (archive, TickArchive(tmp_path, DAY)):
        target.load()
        target.append([(lsn, batch(T0 + S).to_bytes()) for lsn in (5, 10, 20)])
        target.close()
    assert (tmp_path / "2026-01-02.ndjson").stat().st_size == size


def test_a_batch_without_ticks_is_not_kept(tmp_path: Path) -> None:
    """It holds no energy."""
    kept(tmp_path, [])
    archive = TickArchive(tmp_path, DAY)
    archive.append([(10, batch(T0, ticks=0).to_bytes())])
    archive.close()
    assert names(tmp_path) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(min_value=1, max_value=200), days=st.booleans())
def test_a_torn_end_is_cut_and_the_rest_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int, *, days: bool
) -> None:
    """However much of the last line is missing: the lines before it come back, and the next append is whole."""
    directory = tmp_path_factory.mktemp("ticks")
    kept(directory, [(10, T0 + S), (20, T0 + (DAY if days else 2 * S))])
    path = max(directory.iterdir())
    lines = path.read_bytes().splitlines(keepends=True)
    size = path.stat().st_size
    os.truncate(path, size - min(cut, len(lines[-1])))
    assert lsns(directory) == [10]
    kept(directory, [(20, T0 + (DAY if days else 2 * S))])
    assert lsns(directory) == [10, 20]
    assert path.stat().st_size == size


@pytest.mark.parametrize("zeros", [1, 4096])
def test_zeros_at_the_end_are_a_torn_end(tmp_path: Path, zeros: int) -> None:
    """A power cut may leave a file longer than what was written."""
    kept(tmp_path, [(10, T0 + S)])
    path = tmp_path / "2026-01-02.ndjson"
    with path.open("ab") as handle:
        handle.write(b"\0" * zeros)
    assert lsns(tmp_path) == [10]
    assert path.read_bytes().endswith(b"\n")


BAD_LINES = {
    "no JSON": b"energy\n",
    "a list": b"[]\n",
    "no lsn": b'{"batch":{}}\n',
    "a batch that is none": b'{"lsn":5,"batch":{"epoch":"e"}}\n',
    "an empty line": b"\n",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_whole_line_that_is_not_a_batch_is_named(tmp_path: Path, line: bytes) -> None:
    """StorageError with file, line number and the line: it was changed, not torn."""
    kept(tmp_path, [(10, T0 + S), (20, T0 + 2 * S)])
    path = tmp_path / "2026-01-02.ndjson"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + second)
    with pytest.raises(StorageError, match=r"2026-01-02\.ndjson:2: got b'") as caught:
        TickArchive(tmp_path, DAY).load()
    assert repr(line[:120]) in str(caught.value)


def test_days_beyond_retention_are_deleted_when_a_day_begins(tmp_path: Path) -> None:
    """A file goes once its whole day is older than the retention, and other files are not touched."""
    (tmp_path / "notes.txt").write_text("mine")
    kept(tmp_path, [(10, T0 + S), (20, T0 + DAY), (30, T0 + 2 * DAY)], retention_ns=DAY)
    assert names(tmp_path) == ["2026-01-03.ndjson", "2026-01-04.ndjson", "notes.txt"]
    kept(tmp_path, [(40, T0 + 3 * DAY + DAY // 2)], retention_ns=DAY)
    assert names(tmp_path) == ["2026-01-04.ndjson", "2026-01-05.ndjson", "notes.txt"]


@pytest.mark.parametrize("restart", [False, True], ids=["running", "after a new start"])
def test_a_clock_that_steps_back_over_midnight_loses_no_order(tmp_path: Path, *, restart: bool) -> None:
    """Batches come back in the order of the log, and a replay still adds nothing (D-29)."""
    if restart:
        kept(tmp_path, [(10, T0 + DAY)])
        kept(tmp_path, [(20, T0 + DAY - S)])
    else:
        kept(tmp_path, [(10, T0 + DAY), (20, T0 + DAY - S)])
    assert lsns(tmp_path) == [10, 20]
    kept(tmp_path, [(20, T0 + DAY - S), (30, T0 + DAY + S)])
    assert lsns(tmp_path) == [10, 20, 30]


def test_lines_are_one_json_object_each(tmp_path: Path) -> None:
    """NDJSON that any tool reads: position and batch."""
    kept(tmp_path, [(10, T0 + S)])
    (line,) = (tmp_path / "2026-01-02.ndjson").read_text().splitlines()
    assert json.loads(line) == {"lsn": 10, "batch": json.loads(batch(T0 + S).to_bytes())}


def test_a_disk_that_is_full_is_a_storage_error_and_taken_up_later(tmp_path: Path) -> None:
    """The day's file cannot be written: the batch is not counted as kept, and is kept at the next try."""
    path = tmp_path / "2026-01-02.ndjson"
    path.symlink_to("/dev/full")
    archive = TickArchive(tmp_path, DAY)
    with pytest.raises(StorageError, match="tick archive: No space left on device"):
        archive.append([(10, batch(T0 + S).to_bytes())])
    assert archive.last_lsn == -1
    archive.close()
    path.unlink()
    archive.append([(10, batch(T0 + S).to_bytes())])
    archive.close()
    assert lsns(tmp_path) == [10]


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    """A folder where a day's file should be: named, and no OSError leaves."""
    (tmp_path / "2026-01-02.ndjson").mkdir()
    with pytest.raises(StorageError, match=r"2026-01-02\.ndjson"):
        TickArchive(tmp_path, DAY).load()
