"""The outbox through crashes: each item to each destination, in order, whatever was killed (docs/upstream.md)."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.metrics import Metrics
from joulegram_sink.outbox import NOTHING, Outbox
from joulegram_sink.outbox_items import ITEM_OVERHEAD_BYTES
from simulators.outboxes import ALL, GIB, item, opened, positions, take

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from joulegram_sink.outbox import OutboxItem, Pos


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
