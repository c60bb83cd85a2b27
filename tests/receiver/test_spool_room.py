"""The bounds of the spool: refuse before they are passed, or drop the oldest and say so in the log itself."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_pipeline.errors import BusyError, StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.spool import Spool
from joulegram_receiver.spool_gap import Gap, GapNote
from joulegram_receiver.spool_room import RESERVE_BYTES, Room

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_pipeline.records import LogRecord

TRACES, LOGS, TICKS, CONTROL = RecordKind.TRACES, RecordKind.LOGS, RecordKind.TICKS, RecordKind.CONTROL
MIB = 1024 * 1024
HEADER = 24


def read_all(spool: Spool) -> list[LogRecord]:
    out, lsn = [], spool.start_lsn
    while records := spool.read(lsn, MIB):
        out += records
        lsn = records[-1].next_lsn
    return out


def test_a_full_spool_refuses_and_says_how_full(tmp_path: Path) -> None:
    """Beyond max_bytes a request is refused with the figures, until something was released; trouble says so too."""

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), max_bytes=8 * MIB) as spool:
            assert spool.trouble is None
            body = bytes(MIB - HEADER)
            for _ in range(8):
                await spool.append(TRACES, body)
            assert spool.fullness == 1
            expected = f"it holds {8 * MIB} of at most {8 * MIB} bytes \\(100 %\\), got 1 more"
            with pytest.raises(BusyError, match=expected):
                await spool.append(LOGS, b"x")
            assert spool.trouble is not None
            assert "100 %" in spool.trouble
            # What finishes the work that fills it gets in.
            await spool.append(TICKS, b"tick")
            await spool.append(CONTROL, b"{}")
            spool.release(spool.durable_lsn)
            assert spool.trouble is None
            await spool.append(TRACES, body)

    asyncio.run(main())


def test_what_waits_for_the_disk_counts(tmp_path: Path) -> None:
    """Appends that come at once do not pass the cap together."""

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), max_bytes=MIB) as spool:
            appends = [spool.append(TRACES, bytes(100_000)) for _ in range(20)]
            outcomes = await asyncio.gather(*appends, return_exceptions=True)
            taken = [outcome for outcome in outcomes if isinstance(outcome, int)]
            assert len(taken) == 10
            assert {type(outcome) for outcome in outcomes} == {int, BusyError}
            assert spool.end_lsn <= MIB

    asyncio.run(main())


def test_the_reserve_has_an_end() -> None:
    """Ticks and control records are refused too, once their reserve is used up."""
    room = Room(None, MIB, 0)  # type: ignore[arg-type]
    assert room.why_not(TICKS, 1, MIB + RESERVE_BYTES - 1) is None
    assert room.why_not(TICKS, 2, MIB + RESERVE_BYTES - 1) is not None
    assert room.why_not(TRACES, 1, MIB) is not None


def test_a_disk_that_others_fill_is_not_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below min_free_bytes a request is refused, quoting what is free; a tick has a reserve; room lets it go on."""
    free = [100 * MIB]
    monkeypatch.setattr("joulegram_receiver.spool_room.free_bytes_of", lambda _: free[0])
    monkeypatch.setattr("joulegram_receiver.spool_room._LOOK_EVERY_S", 0.0)

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), min_free_bytes=64 * MIB) as spool:
            await spool.append(TRACES, b"a")
            free[0] = 60 * MIB
            with pytest.raises(BusyError, match=f"{60 * MIB} bytes are free in '.*', expected at least {64 * MIB}"):
                await spool.append(TRACES, b"b")
            await spool.append(TICKS, b"tick")
            assert spool.trouble is not None
            free[0] = 65 * MIB
            assert spool.trouble is None
            await spool.append(TRACES, b"c")

    asyncio.run(main())


def test_free_space_is_asked_for_now_and_then(tmp_path: Path) -> None:
    """Between two looks, what was let in is taken off; after 16 MiB of it there is a new look."""
    looks = []

    def free(directory: Path) -> int:
        looks.append(directory)
        return 100 * MIB

    room = Room(tmp_path, 1 << 40, MIB, free)
    for _ in range(64):
        assert room.why_not(TRACES, MIB, 0) is None
    assert 4 <= len(looks) <= 6
    room = Room(tmp_path, 1 << 40, 95 * MIB, free)
    refusals = [room.why_not(TRACES, MIB, 0) for _ in range(8)]
    assert [reason is None for reason in refusals] == [True] * 5 + [False] * 3


def test_too_much_metadata_is_refused_alone(tmp_path: Path) -> None:
    """The request that carries it gets the error; those beside it do not."""

    async def main() -> None:
        async with Spool(tmp_path, Metrics()) as spool:
            beside = asyncio.create_task(spool.append(TRACES, b"beside", metadata=(("tenant", "a"),)))
            with pytest.raises(StorageError, match="bytes of request metadata, expected at most 65535"):
                await spool.append(TRACES, b"a", metadata=(("k", "v" * 70_000),))
            await beside
            (record,) = read_all(spool)
            assert (record.payload, record.metadata) == (b"beside", (("tenant", "a"),))

    asyncio.run(main())


def gaps_in(records: list[LogRecord]) -> list[dict[str, Any]]:
    return [json.loads(record.payload) for record in records if record.kind is CONTROL]


def test_the_oldest_segments_go_and_the_log_says_which(tmp_path: Path) -> None:
    """drop_oldest takes everything in; each record is either there or counted by its kind in a gap of the log."""
    metrics = Metrics()

    def dropped(kind: str) -> float:
        return metrics.registry.get_sample_value("joulegram_spool_dropped_records_total", {"kind": kind}) or 0

    async def main() -> None:
        async with Spool(tmp_path, metrics, max_bytes=8 * MIB, policy="drop_oldest") as spool:
            for number in range(300):
                await spool.append(LOGS if number % 3 else TRACES, b"%d " % number + bytes(100_000))
                if number == 20:
                    assert len(spool.read(0, 1_000_000)) == 10
            assert spool.end_lsn - spool.start_lsn <= 8 * MIB
            assert spool.fullness < 1
            assert spool.trouble is None
            with pytest.raises(StorageError, match=f"expected {spool.start_lsn} or above"):
                spool.read(spool.start_lsn - 1, 100)
            records = read_all(spool)
            held = [record for record in records if record.kind is not CONTROL]
            numbers = [int(record.payload.split()[0]) for record in held]
            assert numbers == list(range(numbers[0], 300))
            said = gaps_in(records)
            assert dropped("traces") == len(range(0, numbers[0], 3))
            # The gaps of before were dropped in their turn, and are counted as what they are.
            assert dropped("traces") + dropped("logs") == numbers[0]
            assert dropped("control") > 0
            assert [gap["first_lsn"] for gap in said[1:]] == [gap["next_lsn"] for gap in said[:-1]]
            assert said[-1]["next_lsn"] == spool.start_lsn
            assert all(gap["type"] == "spool.gap" for gap in said)

    asyncio.run(main())
    assert not list(tmp_path.glob("gap.json"))


def test_a_gap_says_what_no_reader_had(tmp_path: Path) -> None:
    """What was handed to the reader before it was dropped is told apart from what was not."""

    async def main() -> list[dict[str, Any]]:
        async with Spool(tmp_path, Metrics(), max_bytes=2 * MIB, policy="drop_oldest") as spool:
            for _ in range(5):
                await spool.append(TRACES, bytes(200_000))
            assert len(spool.read(0, 300_000)) == 2
            while not spool.start_lsn:
                await spool.append(TRACES, bytes(200_000))
            return gaps_in(read_all(spool))

    (gap,) = asyncio.run(main())
    assert gap["records"] == {"traces": 5}
    assert gap["unread"] == {"traces": 3}


@pytest.mark.parametrize("died", ["before the deletion", "after the deletion", "after the record"])
def test_a_drop_cut_short_by_a_crash_is_finished_and_said_once(tmp_path: Path, died: str) -> None:
    """The note completes the deletion at the next start, and the log gets its record unless it has it."""
    log = WriteAheadLog(tmp_path, segment_bytes=100)
    log.open()
    for number in range(6):
        log.append([(TRACES, 1, b"%d" % number * 60)])
    log.sync()
    second = log.segments[1].base
    gap = Gap(0, second, {"traces": 1}, {"traces": 1}, second)
    GapNote(tmp_path).write(gap, log.end_lsn)
    if died != "before the deletion":
        log.release(second)
    if died == "after the record":
        log.append([(CONTROL, 1, gap.to_bytes())])
        log.sync()
    log.close()

    async def main() -> list[LogRecord]:
        async with Spool(tmp_path, Metrics(), policy="drop_oldest") as spool:
            await spool.append(TRACES, b"next")
            assert spool.start_lsn == second
            return read_all(spool)

    for _ in range(2):
        records = asyncio.run(main())
        assert gaps_in(records) == [json.loads(gap.to_bytes())]
        assert len([record for record in records if record.payload.startswith(b"1")]) == 1
        assert not list(tmp_path.glob("gap.json"))


def test_a_note_that_is_none_is_refused(tmp_path: Path) -> None:
    """A gap.json of something else keeps the spool from starting, quoting it: what it meant is not known."""
    (tmp_path / "gap.json").write_text("[]")

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), policy="drop_oldest"):
            pass

    with pytest.raises(StorageError, match=r"gap\.json' that is no note of dropped records"):
        asyncio.run(main())


def test_a_record_larger_than_the_cap_is_taken_alone(tmp_path: Path) -> None:
    """drop_oldest never waits for room that cannot come: what else could go is gone, and the record is in."""

    async def main() -> None:
        async with Spool(tmp_path, Metrics(), max_bytes=2 * MIB, policy="drop_oldest") as spool:
            await spool.append(TRACES, b"old")
            await spool.append(TRACES, bytes(3 * MIB))
            await spool.append(TRACES, b"new")
            assert read_all(spool)[-1].payload == b"new"

    asyncio.run(main())
