"""The outbox: each item to each destination, in order, from memory or from disk (docs/upstream.md)."""

from __future__ import annotations

import asyncio
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import Outgoing, RecordKind
from joulegram_sink.outbox import Outbox
from joulegram_sink.outbox_items import ITEM_OVERHEAD_BYTES
from simulators.outboxes import ALL, GIB, TRACES, items, opened, take

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_sink.outbox import Pos


def test_what_fits_in_memory_never_touches_the_disk(tmp_path: Path) -> None:
    """While every destination keeps up an item costs no write."""
    with opened(tmp_path) as outbox:
        empty = sum(path.stat().st_size for path in tmp_path.glob("*.wal"))
        for lsn in range(50):
            assert outbox.append(items(lsn)) == 1
            assert take(outbox.reader("one")) == [(lsn, 0)]
        outbox.sync()
        assert (outbox.disk_bytes, outbox.memory_bytes) == (0, 0)
        assert sum(path.stat().st_size for path in tmp_path.glob("*.wal")) == empty


def test_the_same_bytes_serve_every_destination(tmp_path: Path) -> None:
    """One copy in memory, freed when the last destination took it."""
    request = b"x" * 1000
    with opened(tmp_path, "one", "two") as outbox:
        outbox.append([Outgoing((0, 0), TRACES, request)])
        one, two = outbox.reader("one"), outbox.reader("two")
        (first,), (second,) = one.read(ALL), two.read(ALL)
        assert first.request is request
        assert second.request is request
        one.advance(first)
        assert outbox.memory_bytes > 0
        two.advance(second)
        assert outbox.memory_bytes == 0


def test_memory_is_bounded_while_a_destination_is_away(tmp_path: Path) -> None:
    """The oldest go to disk; who keeps up reads from memory, who comes back gets all, and the disk is given back."""
    bound = 20 * (1000 + ITEM_OVERHEAD_BYTES)
    with opened(tmp_path, "up", "away", max_memory_bytes=bound, segment_bytes=20_000) as outbox:
        up, away = outbox.reader("up"), outbox.reader("away")
        for lsn in range(300):
            outbox.append([Outgoing((lsn, 0), TRACES, b"x" * 1000)])
            assert outbox.memory_bytes <= bound + 1000 + ITEM_OVERHEAD_BYTES
            assert not up.on_disk
            (found,) = up.read(ALL)
            up.advance(found)
        assert up.backlog_bytes == 0
        assert 300_000 <= away.backlog_bytes <= 330_000
        assert away.on_disk
        assert len(list(tmp_path.glob("*.wal"))) > 5
        got = []
        while found_items := away.read(5000):
            assert sum(each.size for each in found_items) <= 5000
            got += [each.pos for each in found_items]
            away.advance(found_items[-1])
        assert got == [(lsn, 0) for lsn in range(300)]
        assert (outbox.memory_bytes, away.backlog_bytes, away.is_drained) == (0, 0, True)
        assert len(list(tmp_path.glob("*.wal"))) <= 2


def test_a_full_queue_refuses_and_takes_again(tmp_path: Path) -> None:
    """Nothing is dropped: the append fails, quoting the destination and its bound, until there is room."""
    outbox = Outbox(tmp_path, Metrics(), {"one": 10, "two": GIB})
    asyncio.run(outbox.__aenter__())
    try:
        outbox.append([Outgoing((0, 0), TRACES, b"x" * 12)])
        for _ in range(2):
            with pytest.raises(StorageError, match=r"queue of destination 'one' is full: 12 bytes.*queue_size = 10"):
                outbox.append(items(1))
        assert outbox.last_pos == (0, 0)
        outbox.reader("one").advance(outbox.reader("one").read(ALL)[0])
        assert outbox.append(items(1)) == 1
        assert take(outbox.reader("one")) == [(1, 0)]
        assert [each.pos for each in outbox.reader("two").read(ALL)] == [(0, 0), (1, 0)]
    finally:
        asyncio.run(outbox.__aexit__(None, None, None))


def test_a_disk_that_refuses_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is full and cannot be written: the append fails, what is in memory stays, and a later append goes on."""
    with opened(tmp_path, max_memory_bytes=2 * ITEM_OVERHEAD_BYTES) as outbox:
        log = outbox._disk._log
        working = log.append

        def refuse(batch: Any) -> list[int]:
            raise StorageError("no space left on device")

        outbox.append(items(*range(5)))
        monkeypatch.setattr(log, "append", refuse)
        for refused in (lambda: outbox.append(items(5)), outbox.sync):
            with pytest.raises(StorageError, match="no space"):
                refused()
        monkeypatch.setattr(log, "append", working)
        assert outbox.append(items(*range(7))) == 2
        outbox.sync()
        assert take(outbox.reader("one")) == [(lsn, 0) for lsn in range(7)]


def test_what_was_taken_is_not_read_again(tmp_path: Path) -> None:
    """The position survives a restart; what lies behind it is still there."""
    with opened(tmp_path) as outbox:
        outbox.append(items(0, 1, 2, 3))
        assert take(outbox.reader("one"), 2) == [(0, 0), (1, 0)]
        outbox.sync()
    with opened(tmp_path) as outbox:
        assert outbox.last_pos == (3, 0)
        assert outbox.append(items(0, 1, 2, 3)) == 0
        assert take(outbox.reader("one")) == [(2, 0), (3, 0)]


def test_a_request_in_pieces_is_one_item(tmp_path: Path) -> None:
    """Pieces follow each other; kind, position and metadata come back, from memory and from disk."""
    tenant = (("x-tenant", "a"),)
    with opened(tmp_path) as outbox:
        outbox.append([Outgoing((5, 2), RecordKind.LOGS, [b"ab", b"", b"c"], tenant)])
        outbox.sync()
        (held,) = outbox.reader("one").read(ALL)
    with opened(tmp_path) as outbox:
        (stored,) = outbox.reader("one").read(ALL)
    for found in (held, stored):
        assert (found.pos, found.kind, found.metadata) == ((5, 2), RecordKind.LOGS, tenant)
        assert (b"".join(found.pieces), found.size) == (b"abc", 3)
        assert found.at_ns == held.at_ns


def test_a_read_is_bounded(tmp_path: Path) -> None:
    """By bytes and by items; a single item that is larger comes alone."""
    sizes = [10, 10, 50, 10, 10, 10]
    with opened(tmp_path) as outbox:
        outbox.append([Outgoing((lsn, 0), TRACES, b"x" * size) for lsn, size in enumerate(sizes)])
        reader = outbox.reader("one")
        assert [[each.size for each in reader.read(25, 2)] for _ in range(5)] == [[10, 10], [50], [10, 10], [10], []]


def test_a_new_destination_starts_at_the_present_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It gets what comes from now on; the others go on where they were; one that is gone is forgotten, aloud."""
    with opened(tmp_path, "old", "leaving") as outbox:
        outbox.append(items(0, 1))
        outbox.sync()
    with opened(tmp_path, "old", "new") as outbox:
        assert [record.getMessage() for record in caplog.records] == [
            "destination 'leaving' is no longer configured and is forgotten; what it had not taken is given up"
        ]
        outbox.append(items(2))
        assert take(outbox.reader("new")) == [(2, 0)]
        assert take(outbox.reader("old")) == [(0, 0), (1, 0), (2, 0)]
        outbox.sync()
    with opened(tmp_path, "old", "leaving") as outbox:
        assert take(outbox.reader("leaving")) == []


def test_a_destination_behind_and_one_ahead_of_a_replay(tmp_path: Path) -> None:
    """After a kill the same items come again: each destination gets those that it had not taken."""
    with opened(tmp_path / "before", "one", "two") as outbox:
        outbox.append(items(0, 1, 2, 3))
        take(outbox.reader("one"), 3)
        take(outbox.reader("two"), 1)
        shutil.copytree(tmp_path / "before", tmp_path / "after")
    with opened(tmp_path / "after", "one", "two") as outbox:
        assert (outbox.last_pos, outbox.highest_pos) == ((0, 0), (2, 0))
        assert outbox.append(items(0, 1, 2, 3)) == 3
        assert take(outbox.reader("one")) == [(3, 0)]
        assert take(outbox.reader("two")) == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("stored", [b"", b"short", b"\xff" * 20], ids=["empty", "short", "flipped"])
def test_a_damaged_position_sends_again_rather_than_not_at_all(tmp_path: Path, stored: bytes) -> None:
    """What a crash of the machine did to a position costs a repetition, never a request."""
    with opened(tmp_path) as outbox:
        outbox.append(items(0, 1))
        outbox.sync()
        assert take(outbox.reader("one")) == [(0, 0), (1, 0)]
    (tmp_path / "positions" / "one").write_bytes(stored)
    with opened(tmp_path) as outbox:
        assert take(outbox.reader("one")) == [(0, 0), (1, 0)]


def test_without_positions_all_that_is_on_disk_is_sent(tmp_path: Path) -> None:
    """Their directory was lost: what the log holds is sent, some of it perhaps again, and nothing is left out."""
    with opened(tmp_path) as outbox:
        outbox.append(items(0, 1))
        outbox.sync()
    shutil.rmtree(tmp_path / "positions")
    with opened(tmp_path, "one", "two") as outbox:
        assert take(outbox.reader("one")) == take(outbox.reader("two")) == [(0, 0), (1, 0)]
    assert not (tmp_path / "position").exists()


def test_a_damaged_item_is_left_out_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped byte on disk costs one request, which is set aside; the rest is delivered."""
    with opened(tmp_path) as outbox:
        outbox.append([Outgoing((lsn, 0), TRACES, b"payload %d" % lsn) for lsn in range(3)])
        outbox.sync()
    (log,) = tmp_path.glob("*.wal")
    log.write_bytes(log.read_bytes().replace(b"payload 1", b"pAyload 1"))
    with opened(tmp_path) as outbox:
        assert [each.pos for each in outbox.reader("one").read(ALL)] == [(0, 0)]
        assert [each.pos for each in outbox.reader("one").read(ALL)] == [(2, 0)]
    assert "1 damaged requests are left out of the outbox" in caplog.text


def test_a_reader_is_woken_once(tmp_path: Path) -> None:
    """However much comes, who rests is called once, behind the append; who has something to read does not rest."""
    with opened(tmp_path) as outbox:
        reader = outbox.reader("one")
        woken: list[int] = []

        def wake() -> None:
            woken.append(len(reader.read(ALL)))

        assert reader.rest(wake)
        outbox.append(items(0, 1))
        outbox.append(items(2))
        assert woken == [2]
        assert not reader.rest(wake)
        reader.read(ALL)
        assert reader.rest(wake)
        outbox.append(items(0))
        assert woken == [2], "a replay is nothing new"
        outbox.append(items(3))
        assert woken == [2, 1]


def test_backlog_and_age_are_measured(tmp_path: Path) -> None:
    """The gauges are each destination's own; the age is that of the oldest item not taken."""
    metrics = Metrics()

    def gauge(destination: str) -> float | None:
        label = {"destination": destination}
        return metrics.registry.get_sample_value("joulegram_sink_forward_backlog_bytes", label)

    with opened(tmp_path, "one", "two", metrics=metrics) as outbox:
        one, two = outbox.reader("one"), outbox.reader("two")
        assert (gauge("one"), gauge("two"), one.oldest_age_s()) == (0, 0, 0)
        outbox.append(items(0, 1))
        take(one)
        assert (gauge("one"), gauge("two"), one.backlog_bytes, two.backlog_bytes) == (0, 6, 0, 6)
        assert one.oldest_age_s() == 0
        assert 0 < two.oldest_age_s() < 5
        outbox.sync()
    with opened(tmp_path, "one", "two", metrics=metrics) as outbox:
        assert 0 < outbox.reader("two").oldest_age_s() < 10
        take(outbox.reader("two"))
        assert (gauge("two"), outbox.reader("two").oldest_age_s()) == (0, 0)


def test_appends_and_reads_in_two_threads(tmp_path: Path) -> None:
    """As it is used: one thread appends and syncs, another reads and advances, with little memory between them."""
    total = 3000
    bound = 40 * ITEM_OVERHEAD_BYTES
    with opened(tmp_path, "fast", "slow", max_memory_bytes=bound, segment_bytes=5000) as outbox:

        def append() -> None:
            for begin in range(0, total, 10):
                outbox.append(items(*range(begin, begin + 10)))
                if begin % 500 == 0:
                    outbox.sync()

        got: dict[str, list[Pos]] = {"fast": [], "slow": []}
        thread = threading.Thread(target=append)
        thread.start()
        while any(len(found) < total for found in got.values()):
            got["fast"] += take(outbox.reader("fast"), 50)
            got["slow"] += take(outbox.reader("slow"), 7 if thread.is_alive() else None)
        thread.join()
        assert got["fast"] == got["slow"] == [(lsn, 0) for lsn in range(total)]
