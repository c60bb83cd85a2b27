"""The outbox: every output once, however often the spool is replayed (docs/architecture.md, "The log is the clock")."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import Outgoing, RecordKind
from joulegram_sink.outbox import NOTHING, Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from joulegram_sink.outbox import Pos

TRACES = RecordKind.TRACES


def with_outbox(directory: Path, body: Callable[[Outbox], Awaitable[None]], segment_bytes: int = 1 << 20) -> None:
    async def main() -> None:
        async with Outbox(directory, Metrics(), segment_bytes=segment_bytes) as outbox:
            await body(outbox)

    asyncio.run(main())


def item(pos: Pos) -> Outgoing:
    return Outgoing(pos, TRACES, b"%d.%d" % pos)


def waiting(outbox: Outbox) -> list[Pos]:
    """Every position not taken, in order, without moving anything."""
    found = outbox.read(1 << 20)
    assert [bytes(each.request) for each in found] == [b"%d.%d" % each.pos for each in found]
    return [each.pos for each in found]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    positions=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), unique=True, max_size=15).map(sorted),
    starts=st.lists(st.integers(0, 15), max_size=4),
)
def test_replays_add_nothing_twice(
    tmp_path_factory: pytest.TempPathFactory, positions: list[Pos], starts: list[int]
) -> None:
    """Replayed from any point, in this run or after a restart, each output stands once and in order."""
    directory = tmp_path_factory.mktemp("outbox")
    given_so_far = 0

    async def replay(outbox: Outbox, start: int, end: int) -> None:
        new = outbox.append([item(pos) for pos in positions[start:end]])
        assert new == max(0, end - max(given_so_far, start))
        outbox.sync()

    for start in [*starts, 0]:

        async def body(outbox: Outbox, start: int = start) -> None:
            nonlocal given_so_far
            assert outbox.last_pos == (positions[given_so_far - 1] if given_so_far else NOTHING)
            begin = min(start, given_so_far)
            end = max(given_so_far, min(len(positions), start))
            await replay(outbox, begin, end)
            given_so_far = max(given_so_far, end)
            await replay(outbox, 0, given_so_far)
            assert waiting(outbox) == positions[:given_so_far]

        with_outbox(directory, body)


def test_what_was_taken_is_not_read_again(tmp_path: Path) -> None:
    """The position survives a restart; what lies behind it is still there."""

    async def take_two(outbox: Outbox) -> None:
        outbox.append([item((lsn, 0)) for lsn in range(4)])
        outbox.sync()
        outbox.advance(outbox.read(1 << 20)[1].next_lsn)
        assert waiting(outbox) == [(2, 0), (3, 0)]

    async def see_two(outbox: Outbox) -> None:
        assert waiting(outbox) == [(2, 0), (3, 0)]
        assert outbox.last_pos == (3, 0)

    with_outbox(tmp_path, take_two)
    with_outbox(tmp_path, see_two)


def test_a_request_in_pieces_is_one_item(tmp_path: Path) -> None:
    """Pieces are written one behind the other; kind and position come back."""

    async def body(outbox: Outbox) -> None:
        outbox.append([Outgoing((5, 2), RecordKind.LOGS, [b"ab", b"", b"c"])])
        outbox.sync()
        (found,) = outbox.read(1 << 20)
        assert (found.pos, found.kind, bytes(found.request)) == ((5, 2), RecordKind.LOGS, b"abc")

    with_outbox(tmp_path, body)


def test_the_last_position_outlives_its_segment(tmp_path: Path) -> None:
    """When all was taken and the log holds no record any more, a replay still adds nothing."""

    async def fill(outbox: Outbox) -> None:
        outbox.append([item((lsn, 1)) for lsn in range(3)])
        outbox.sync()
        outbox.advance(outbox.durable_lsn)

    with_outbox(tmp_path, fill)
    # A crash right behind the making of the next segment: the old one was released, the new one is empty.
    (full,) = tmp_path.glob("*.wal")
    end = full.stat().st_size - 16
    full.unlink()
    (tmp_path / f"{end:020d}.wal").write_bytes(b"")

    async def replay(outbox: Outbox) -> None:
        assert outbox.last_pos == (2, 1)
        assert outbox.append([item((2, 1)), item((2, 2))]) == 1
        outbox.sync()
        assert waiting(outbox) == [(2, 2)]

    with_outbox(tmp_path, replay)


def test_taken_segments_are_deleted(tmp_path: Path) -> None:
    """The backlog is measured, and its disk space is given back as the upstream takes it."""

    def segments() -> int:
        return len(list(tmp_path.glob("*.wal")))

    async def main() -> None:
        metrics = Metrics()
        async with Outbox(tmp_path, metrics, segment_bytes=100) as outbox:
            for lsn in range(10):
                outbox.append([item((lsn, 0))])
            outbox.sync()
            backlog = outbox.durable_lsn
            assert metrics.registry.get_sample_value("joulegram_sink_forward_backlog_bytes") == backlog
            assert segments() == 5
            outbox.advance(outbox.durable_lsn)
            assert metrics.registry.get_sample_value("joulegram_sink_forward_backlog_bytes") == 0
            assert segments() == 1

    asyncio.run(main())


@pytest.mark.parametrize("stored", [b"", b"short", b"\xff" * 28])
def test_a_damaged_position_sends_again_rather_than_not_at_all(tmp_path: Path, stored: bytes) -> None:
    """What a crash of the machine did to ``position`` costs a repetition, never a request."""

    async def take_all(outbox: Outbox) -> None:
        outbox.append([item((0, 0))])
        outbox.sync()
        outbox.advance(outbox.durable_lsn)

    async def see_all(outbox: Outbox) -> None:
        assert (waiting(outbox), outbox.last_pos) == ([(0, 0)], (0, 0))

    with_outbox(tmp_path, take_all)
    (tmp_path / "position").write_bytes(stored)
    with_outbox(tmp_path, see_all)


def test_only_what_is_synced_is_read_and_announced(tmp_path: Path) -> None:
    """A request is not sent before it is durable; the reader is woken behind the sync."""

    async def body(outbox: Outbox) -> None:
        woken = []
        outbox.wake_with(lambda: woken.append(outbox.durable_lsn))
        outbox.append([item((0, 0))])
        assert (waiting(outbox), woken) == ([], [])
        outbox.sync()
        assert (waiting(outbox), woken) == ([(0, 0)], [outbox.durable_lsn])
        outbox.wake_with(None)
        outbox.sync()
        assert len(woken) == 1

    with_outbox(tmp_path, body)


REPLAYER = """
import asyncio, sys
from pathlib import Path
from joulegram_pipeline.metrics import Metrics
from joulegram_sink.outbox import Outbox
async def main():
    async with Outbox(Path(sys.argv[1]), Metrics(), segment_bytes=5000) as outbox:
        for lsn in range(3000):
            outbox.append([((lsn, k), 1, b"%d.%d" % (lsn, k), ()) for k in range(2)])
            outbox.sync()
            sys.stdout.write(f"{lsn}\\n")
            sys.stdout.flush()
asyncio.run(main())
"""


def test_killed_and_replayed_each_output_stands_once(tmp_path: Path) -> None:
    """Kill -9 three times, each time replayed from the beginning: nothing is missing and nothing doubled."""
    for lines in (200, 400, 600):
        process = subprocess.Popen([sys.executable, "-c", REPLAYER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        process.stdout.close()
        process.wait()

    async def body(outbox: Outbox) -> None:
        found = []
        while items := outbox.read(1 << 20):
            found += [each.pos for each in items]
            outbox.advance(items[-1].next_lsn)
        assert found == [(lsn, k) for lsn in range(len(found) // 2) for k in range(2)]
        assert len(found) >= 1200

    with_outbox(tmp_path, body)
