"""The outbox: each item to each destination, in order, whatever crashes between (docs/upstream.md)."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import Outgoing, RecordKind
from joulegram_sink.outbox import NOTHING, Outbox
from joulegram_sink.outbox_items import ITEM_OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from joulegram_sink.outbox import OutboxItem, OutboxReader, Pos

TRACES = RecordKind.TRACES
ALL = 1 << 30
GIB = 1 << 30


@contextmanager
def opened(directory: Path, *names: str, metrics: Metrics | None = None, **options: Any) -> Iterator[Outbox]:
    """An outbox of these destinations, without a loop around it."""
    outbox = Outbox(directory, metrics or Metrics(), dict.fromkeys(names or ("one",), GIB), **options)
    asyncio.run(outbox.__aenter__())
    try:
        yield outbox
    finally:
        asyncio.run(outbox.__aexit__(None, None, None))


def item(pos: Pos) -> Outgoing:
    return Outgoing(pos, TRACES, b"%d.%d" % pos)


def items(*lsns: int) -> list[Outgoing]:
    return [item((lsn, 0)) for lsn in lsns]


def positions(found: list[OutboxItem]) -> list[Pos]:
    assert [b"".join(each.pieces) for each in found] == [b"%d.%d" % each.pos for each in found]
    return [each.pos for each in found]


def take(reader: OutboxReader, count: int | None = None) -> list[Pos]:
    """Read and take so many items, or all there are."""
    taken: list[Pos] = []
    while count is None or len(taken) < count:
        found = reader.read(ALL, 8192 if count is None else count - len(taken))
        if not found:
            break
        taken += positions(found)
        reader.advance(found[-1])
    return taken


class World:
    """A spool with a snapshot, the outbox behind it, and what each destination got; all that a crash can touch.

    Args:
        root: for the directories of each life.
        names: of the destinations.
    """

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root = root
        self.names = names
        self.lives = 0
        self.fed = self.snapshot = 0
        self.got: dict[str, list[Pos]] = {name: [] for name in names}
        self.taken: dict[str, set[Pos]] = {name: set() for name in names}
        self.unfinished: dict[str, list[OutboxItem]] = {name: [] for name in names}
        self.directory = root / "0"
        self._enter()

    @staticmethod
    def pos(number: int) -> Pos:
        return number // 3, number % 3

    def append(self, count: int) -> None:
        self.outbox.append([item(self.pos(number)) for number in range(self.fed, self.fed + count)])
        self.fed += count

    def sync(self) -> None:
        """What the engine does at a snapshot; afterwards the spool has nothing below it any more."""
        self.outbox.sync()
        self.snapshot = self.fed
        shutil.rmtree(self.root / "synced", ignore_errors=True)
        shutil.copytree(self.directory, self.root / "synced")

    def read(self, name: str, count: int) -> None:
        found = self.outbox.reader(name).read(ALL, count)
        assert self.taken[name].isdisjoint(positions(found)), "taken, and here again"
        self.got[name] += positions(found)
        self.unfinished[name] += found

    def advance(self, name: str, count: int) -> None:
        done, self.unfinished[name] = self.unfinished[name][:count], self.unfinished[name][count:]
        if done:
            self.outbox.reader(name).advance(done[-1])
            self.taken[name].update(each.pos for each in done)

    def crash(self, what: str) -> None:
        """The next life sees the files as they were, or as they were last synced, and replays from the snapshot."""
        self.lives += 1
        after = self.root / str(self.lives)
        shutil.copytree(self.directory if what == "process" else self.root / "synced", after)
        if what == "machine, positions kept":
            shutil.copytree(self.directory / "positions", after / "positions", dirs_exist_ok=True)
        self._leave()
        self.directory = after
        self._enter()
        if what == "machine":
            self.taken = {name: set() for name in self.names}
        self.fed = self.snapshot
        self.unfinished = {name: [] for name in self.names}

    def finish(self, total: int) -> None:
        self.append(max(0, total - self.fed))
        for name in self.names:
            while self.outbox.reader(name).rest(lambda: None) is False:
                self.read(name, 10)
            self.advance(name, ALL)
            assert self.outbox.reader(name).is_drained
        self._leave()

    def _enter(self) -> None:
        small = {"max_memory_bytes": 3 * ITEM_OVERHEAD_BYTES, "segment_bytes": 200}
        self.outbox = Outbox(self.directory, Metrics(), dict.fromkeys(self.names, GIB), **small)
        asyncio.run(self.outbox.__aenter__())
        if not self.lives:
            self.sync()

    def _leave(self) -> None:
        asyncio.run(self.outbox.__aexit__(None, None, None))


NAMES = ["one", "two"]
COUNT = st.integers(1, 5)
STEPS = st.one_of(
    st.tuples(st.just("append"), COUNT),
    st.tuples(st.just("read"), st.sampled_from(NAMES), COUNT),
    st.tuples(st.just("advance"), st.sampled_from(NAMES), COUNT),
    st.tuples(st.just("sync")),
    st.tuples(st.just("crash"), st.sampled_from(["process", "machine", "machine, positions kept"])),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=40))
def test_every_item_reaches_every_destination_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """At least once over crashes, never again what was taken before a kill, and exactly once without a crash."""
    root = tmp_path_factory.mktemp("world")
    world = World(root, NAMES)
    crashed = False
    most = 0
    for name, *arguments in steps:
        if name == "crash":
            world.crash(arguments[0])
            crashed = True
            for each in NAMES:
                world.got[each].append(NOTHING)  # stands between two lives
        else:
            getattr(world, name)(*arguments)
        most = max(most, world.fed)
    world.finish(most)
    made = [world.pos(number) for number in range(most)]
    for name in NAMES:
        lives: list[list[Pos]] = [[]]
        for pos in world.got[name]:
            if pos == NOTHING:
                lives.append([])
            else:
                lives[-1].append(pos)
        assert all(life == sorted(set(life)) for life in lives)
        assert sorted(set(world.got[name]) - {NOTHING}) == made
        if not crashed:
            assert world.got[name] == made
    shutil.rmtree(root)


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


REPLAYER = """
import asyncio, sys
from pathlib import Path
from joulegram_pipeline.metrics import Metrics
from joulegram_sink.outbox import Outbox
async def main():
    small = {"max_memory_bytes": 4000, "segment_bytes": 5000}
    async with Outbox(Path(sys.argv[1]), Metrics(), {"one": 1 << 30}, **small) as outbox:
        reader = outbox.reader("one")
        for lsn in range(int(sys.argv[2]), 3000):
            outbox.append([((lsn, k), 1, b"%d.%d" % (lsn, k), ()) for k in range(2)])
            if lsn % 10 == 0:
                outbox.sync()
                print("synced", lsn, flush=True)
            if lsn % 7 == 0:
                for item in reader.read(100, 3):
                    print("taken", *item.pos, flush=True)
                    reader.advance(item)
asyncio.run(main())
"""


def test_killed_and_replayed_nothing_is_missing(tmp_path: Path) -> None:
    """Kill -9 three times, each time replayed from the last snapshot: every item once but for one at each kill."""
    taken: list[Pos] = []
    snapshot = -1
    for lines in (100, 150, 200):
        arguments = [sys.executable, "-c", REPLAYER, str(tmp_path), str(snapshot + 1)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait()
        for line in said:
            word, *numbers = line.split() if line.endswith("\n") else [""]
            if word == "synced":
                snapshot = int(numbers[0])
            elif word == "taken":
                taken.append((int(numbers[0]), int(numbers[1])))
    with opened(tmp_path) as outbox:
        taken += take(outbox.reader("one"))
    distinct = sorted(set(taken))
    assert distinct == [(number // 2, number % 2) for number in range(len(distinct))]
    assert distinct[-1][0] >= snapshot
    assert len(taken) - len(distinct) <= 3
