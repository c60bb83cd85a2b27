"""GPU time by named process: from the driver's samples to a tick."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent import nvml_library
from joulegram_agent.beside import with_gpus
from joulegram_agent.nvml import NvmlReader
from joulegram_agent.nvml_library import GPU_IS_LOST, NOT_SUPPORTED, NvmlLibrary
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import OTHERS
from simulators.nvml import NvmlSim, SimBoard, uuid
from simulators.nvml_node import MS, UNKNOWN, Node, S
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

T0_US = 1_700_000_000_000_000


def make(root: Path, *boards: SimBoard) -> tuple[Node, FakeProc]:
    """A node with a /proc in which 100 is named and has a child 101; 200 is a stranger."""
    sim, clock, proc = NvmlSim(root / "nvml", *boards), ManualClock(), FakeProc(root / "proc")
    reader = NvmlReader(sim.library, clock)
    node = Node(sim, clock, reader, Sampler(reader, proc_root=proc.root, clock=clock))
    node.sampler.sample()
    proc.start(100)
    proc.start(101, parent=100)
    proc.start(200)
    node.sampler.trees.name(100)
    return node, proc


def second(node: Node, board: SimBoard, at_s: float, *samples: tuple[int, int]) -> dict[int, int] | None:
    """One tick in whose samples each process kept the board busy for a percentage; what the tick says of the board."""
    board.samples = [(pid, T0_US + round(at_s * 1_000_000), percent) for pid, percent in samples]
    (tick,) = node.run(1)
    times = tick.process_gpu_ns.get(board.domain)
    return None if times is None else dict(times)


def test_time_goes_to_the_nearest_named_process(tmp_path: Path) -> None:
    """Contract of Tick: a tree's time is its root's, that of all others stands under 0."""
    board = SimBoard(uuid(0))
    node, proc = make(tmp_path, board)
    assert second(node, board, 0, (100, 50)) == {100: S // 2}
    assert second(node, board, 1, (100, 30), (101, 20), (200, 40)) == {100: S // 2, OTHERS: 400 * MS}
    node.sampler.trees.name(101)
    assert second(node, board, 2, (100, 30), (101, 20), (200, 40)) == {100: 300 * MS, 101: 200 * MS, OTHERS: 400 * MS}
    assert proc.processes.keys() == {100, 101, 200}


def test_an_idle_board_is_not_an_unknown_one(tmp_path: Path) -> None:
    """No sample is no time: an empty account, where a driver that keeps none leaves the board out."""
    board, split, old = SimBoard(uuid(0)), SimBoard(uuid(1), mig=True), SimBoard(uuid(2), samples_code=NOT_SUPPORTED)
    node, _ = make(tmp_path, board, split, old)
    (tick,) = node.run(1)
    assert tick.process_gpu_ns == {board.domain: {}}
    split.mig, old.samples_code = False, 0
    assert node.run(1)[0].process_gpu_ns == {board.domain: {}}


def test_a_sample_covers_the_time_since_the_one_before(tmp_path: Path) -> None:
    """Two samples of a process in a tick, of 0.4 s and 0.6 s; and one after a silence covers its last second."""
    board = SimBoard(uuid(0))
    node, _ = make(tmp_path, board)
    second(node, board, 0, (100, 10))
    board.samples = [(100, T0_US + 1_000_000, 50), (100, T0_US + 400_000, 100)]
    (tick,) = node.run(1)
    assert tick.process_gpu_ns[board.domain] == {100: 400 * MS + 300 * MS}
    board.samples = []
    node.run(4)
    assert second(node, board, 6, (100, 100)) == {100: S}


def test_samples_that_cannot_be_are_left_out(tmp_path: Path) -> None:
    """Drivers hand out entries that were never filled: no pid, 4 billion per cent, or the time of the last call."""
    board = SimBoard(uuid(0))
    node, _ = make(tmp_path, board)
    second(node, board, 1, (200, 10))
    good = (200, T0_US + 2_000_000, 50)
    board.samples = [
        good,
        (0, T0_US + 2_000_000, 50),
        (100, T0_US + 2_000_000, 2**32 - 5),
        (100, T0_US + 1_000_000, 99),
    ]
    (tick,) = node.run(1)
    assert tick.process_gpu_ns[board.domain] == {OTHERS: S // 2}


def test_a_process_that_ended_in_the_tick_keeps_its_time(tmp_path: Path) -> None:
    """The driver tells of a process after its end: its time is its tree's, and the root's too when that ended."""
    board = SimBoard(uuid(0))
    node, proc = make(tmp_path, board)
    node.run(1)
    for _ in range(5):
        node.sample()
    proc.end(101)
    board.samples = [(101, T0_US + 1_000_000, 80)]
    for _ in range(5):
        node.sample()
    assert node.ticks[-1].process_gpu_ns[board.domain] == {100: 800 * MS}
    proc.end(100)
    assert second(node, board, 2, (100, 60)) == {100: 600 * MS}
    node.run(3)
    assert second(node, board, 7, (100, 60)) == {OTHERS: 600 * MS}


@pytest.mark.parametrize("refused", ["find_code", "samples_code"])
def test_a_failed_call_leaves_the_tick_without_account(tmp_path: Path, refused: str) -> None:
    """The board is absent in that tick and the next, whose time has no beginning; then it is back."""
    board = SimBoard(uuid(0))
    node, _ = make(tmp_path, board)
    second(node, board, 1, (100, 50))
    setattr(board, refused, GPU_IS_LOST if refused == "find_code" else UNKNOWN)
    assert second(node, board, 2, (100, 50)) is None
    setattr(board, refused, 0)
    assert second(node, board, 3, (100, 50)) is None
    assert second(node, board, 4, (100, 50)) == {100: S // 2}


def test_boards_beside_packages_are_asked_too(tmp_path: Path) -> None:
    """`auto`: packages from powercap, boards from NVML, the account in the same tick."""
    sim, clock = NvmlSim(tmp_path / "nvml", SimBoard(uuid(0))), ManualClock()
    reader = with_gpus(PowercapReader(PowercapTree(tmp_path / "sys").root), sim.library, clock)
    sampler = Sampler(reader, proc_root=FakeProc(tmp_path / "proc").root, clock=clock)
    sampler.sample()
    sim.boards[0].samples = [(4, T0_US, 25)]
    sim.write()
    clock.advance(S)
    tick = sampler.sample()
    assert tick is not None
    assert tick.process_gpu_ns == {sim.boards[0].domain: {OTHERS: S // 4}}
    assert reader.lasting() == {  # type: ignore[attr-defined]
        "package-0": "powercap",
        "package-0/dram": "powercap",
        sim.boards[0].domain: "nvml",
    }


def test_more_processes_than_there_was_room_for(tmp_path: Path) -> None:
    """40 processes on a board: the buffer is as large as the driver asks for."""
    board = SimBoard(uuid(0), samples=[(pid, T0_US, 2) for pid in range(1, 41)])
    library = NvmlLibrary(NvmlSim(tmp_path / "nvml", board).library)
    samples = library.process_samples(library.board_at(0), 0)
    assert [sample.pid for sample in samples] == list(range(1, 41))
    assert library.process_samples(library.board_at(0), T0_US) == []
    library.close()


def test_the_sample_is_laid_out_as_nvidias() -> None:
    """The structure has the fields, offsets and size of NVIDIA's own binding."""
    import pynvml

    ours, theirs = nvml_library._RawSample, pynvml.c_nvmlProcessUtilizationSample_t
    assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)
    names = [field[0] for field in theirs._fields_]
    assert [field[0] for field in ours._fields_] == names
    assert [getattr(ours, name).offset for name in names] == [getattr(theirs, name).offset for name in names]


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.lists(
        st.lists(
            st.tuples(st.sampled_from([100, 101, 200, 4242]), st.integers(0, 2_000_000), st.integers(0, 130)),
            max_size=6,
        ),
        max_size=12,
    )
)
def test_law_of_times(tmp_path_factory: pytest.TempPathFactory, seconds: list[list[tuple[int, int, int]]]) -> None:
    """Whatever a driver says: no time is negative, and no process kept a board busy longer than the tick."""
    board = SimBoard(uuid(0))
    node, _ = make(tmp_path_factory.mktemp("node"), board)
    for number, samples in enumerate(seconds):
        board.samples = [(pid, T0_US + number * 1_000_000 + at_us, percent) for pid, at_us, percent in samples]
        (tick,) = node.run(1)
        times = tick.process_gpu_ns[board.domain]
        pids = {pid for pid, _, _ in samples}
        assert set(times) <= {100, OTHERS}
        assert all(0 <= spent <= S for spent in times.values() if len(pids) == 1)
        assert sum(times.values()) <= S * len(pids)
