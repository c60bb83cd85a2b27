"""What the sampler makes of boards: counters that stand still, fall and fail, boards that go and come, added power."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent.nvml import FIND_AGAIN_NS, NvmlReader
from joulegram_agent.nvml_library import GPU_IS_LOST, NOT_SUPPORTED
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import Gap, Method
from simulators.nvml import NvmlSim, SimBoard, uuid
from simulators.nvml_node import TIMEOUT, UNKNOWN, J, Node, S, make_node, node_over, old_board
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path


def test_ticks_hold_what_the_boards_spent(tmp_path: Path) -> None:
    """D-09: every board is measured, not the first alone, and from the counter: 700 W and 90 W for 3 s."""
    first, second = SimBoard(uuid(0)), SimBoard(uuid(1))
    node = make_node(tmp_path, first, second)
    ticks = node.run(3, {first: 700, second: 90})
    assert [tick.energy_uj for tick in ticks] == [{first.domain: 700 * J, second.domain: 90 * J}] * 3
    assert all(tick.gaps == () for tick in ticks)


def test_a_counter_that_stands_still_is_no_zero_watts(tmp_path: Path) -> None:
    """energy.md 3.7: the counter moves each 400 ms here; reads between repeat it, and no joule is lost or doubled."""
    board = SimBoard(uuid(0))
    node = make_node(tmp_path, board)
    for step in range(100):
        if step % 4 == 3:
            board.spend(40_000)
        node.sample()
    assert node.published(board) == board.truth_mj * 1_000 == 1_000 * J
    assert all(tick.energy_uj[board.domain] >= 80 * J for tick in node.ticks)


def test_a_counter_that_falls_is_a_reset(tmp_path: Path) -> None:
    """The driver was loaded anew: a gap for that board, never a wrap of 2^64 mJ; the other board goes on."""
    first, second = SimBoard(uuid(0)), SimBoard(uuid(1))
    node = make_node(tmp_path, first, second)
    first.energy_mj = 12
    (tick,) = node.run(1, {second: 50})
    assert tick.gaps == (Gap(first.domain, "counter_reset"),)
    assert tick.energy_uj == {second.domain: 50 * J}
    assert node.run(1, {first: 9, second: 50})[0].energy_uj == {first.domain: 9 * J, second.domain: 50 * J}


def test_a_counter_that_jumps_is_a_gap(tmp_path: Path) -> None:
    """D-13: 1 GJ in a second is no energy: a gap for that board that says the limit, in no total; then it goes on."""
    first, second = SimBoard(uuid(0)), SimBoard(uuid(1))
    node = make_node(tmp_path, first, second)
    first.energy_mj += 10**12
    (tick,) = node.run(1, {first: 9, second: 50})
    assert tick.gaps == (Gap(first.domain, "implausible_power: above 2000 W"),)
    assert tick.energy_uj == {second.domain: 50 * J}
    assert node.run(1, {first: 9, second: 50})[0].energy_uj == {first.domain: 9 * J, second.domain: 50 * J}
    totals = node.sampler.totals
    assert totals.unplaced_uj[first.domain] + totals.energy_uj[first.domain] < 20 * J


BOARD_ERRORS = [
    ("find_code", GPU_IS_LOST, 'domain_vanished: the board fell off the bus: {} says "GPU is lost" (15)'),
    ("find_code", UNKNOWN, 'read_failed: {} says "Unknown Error" (999)'),
    ("find_code", 28, 'domain_vanished: the board is not there: {} says "GPU not found" (28)'),
    ("energy_code", TIMEOUT, 'read_failed: {} says "Timeout" (10)'),
    ("energy_code", 16, 'read_failed: {} says "GPU requires restart" (16)'),
    (
        "energy_code",
        4,
        'permission_denied: the NVIDIA driver refuses this user: {} says "Insufficient Permissions" (4)',
    ),
    ("energy_code", NOT_SUPPORTED, 'not_supported: the board does not measure this: {} says "Not Supported" (3)'),
]


@pytest.mark.parametrize(("refused", "code", "reason"), BOARD_ERRORS)
def test_a_board_that_fails_is_a_gap_of_its_own(tmp_path: Path, refused: str, code: int, reason: str) -> None:
    """Issue 5: a board off the bus is a gap named for it, for as long as it lasts; the other boards go on.

    The last row: a counter that answered before is not given up for power, whose sum would have another zero.
    """
    failing, other = SimBoard(uuid(0)), SimBoard(uuid(1))
    node = make_node(tmp_path, failing, other)
    node.run(1, {failing: 300, other: 70})
    setattr(failing, refused, code)
    ticks = node.run(2, {failing: 300, other: 70})
    gap = Gap(failing.domain, reason.format("nvmlDeviceGetTotalEnergyConsumption"))
    assert [tick.gaps for tick in ticks] == [(gap,)] * 2
    assert [tick.energy_uj for tick in ticks] == [{other.domain: 70 * J}] * 2
    setattr(failing, refused, 0)
    back, after = node.run(2, {failing: 300, other: 70})
    assert back.gaps == (Gap(failing.domain, f"unplaced: {gap.reason}"),)
    assert after.energy_uj == {failing.domain: 300 * J, other.domain: 70 * J}
    totals = node.sampler.totals
    assert totals.energy_uj[failing.domain] + totals.unplaced_uj[failing.domain] == failing.truth_mj * 1_000


def test_a_failed_read_inside_a_window_costs_nothing(tmp_path: Path) -> None:
    """The counter went on counting: read again before the window closes, it holds the whole energy."""
    board = SimBoard(uuid(0))
    node = make_node(tmp_path, board)
    node.sample({board: 100})
    board.find_code = UNKNOWN
    node.sample({board: 100})
    board.find_code = 0
    for _ in range(8):
        node.sample({board: 100})
    assert [(tick.energy_uj, tick.gaps) for tick in node.ticks] == [({board.domain: 100 * J}, ())]


def test_a_board_that_was_reset_is_found_again(tmp_path: Path) -> None:
    """A handle does not outlive a reset: the board is looked up by UUID each 10 s, also when its index moved."""
    first, second = SimBoard(uuid(0)), SimBoard(uuid(1))
    node = make_node(tmp_path, first, second)
    first.find_code = GPU_IS_LOST
    assert node.run(2)[-1].gaps[0].reason.startswith("domain_vanished")
    first.find_code, first.age, first.energy_mj = 0, 1, 0
    gone = node.run(FIND_AGAIN_NS // S - 2)
    assert gone[-1].gaps == (
        Gap(first.domain, 'read_failed: nvmlDeviceGetTotalEnergyConsumption says "Invalid Argument" (2)'),
    )
    node.run(2)
    assert node.run(1, {first: 11})[0].energy_uj == {first.domain: 11 * J, second.domain: 0}
    node.sim.boards.reverse()
    first.age, second.age = 2, 2
    node.run(FIND_AGAIN_NS // S + 2)
    assert node.run(1, {first: 11, second: 5})[0].energy_uj == {first.domain: 11 * J, second.domain: 5 * J}


def test_an_old_board_has_its_power_added_up(tmp_path: Path) -> None:
    """No counter before Volta: 60 W, a straight rise to 100 W over a second, 100 W; said so, and exact."""
    old, new = old_board(60_000), SimBoard(uuid(1))
    node = make_node(tmp_path, old, new)
    assert node.reader.method is Method.MEASURED
    assert node.reader.reason == (f"integrated_power: no energy counter, power is added up between reads: {old.domain}")
    powers = [60_000] * 10 + [60_000 + 4_000 * step for step in range(1, 11)] + [100_000] * 10
    for power_mw in powers:
        old.power_mw = power_mw
        node.sample({new: 7})
    assert [tick.energy_uj for tick in node.ticks] == [
        {old.domain: watts * J, new.domain: 7 * J} for watts in (60, 80, 100)
    ]


def test_a_library_without_the_counter_is_an_old_board(tmp_path: Path) -> None:
    """A driver from before 2018 has no such function at all."""
    board = SimBoard(uuid(0), power_mw=45_000)
    node = node_over(NvmlSim(tmp_path / "nvml", board, options=("-DOLD",)), tmp_path / "proc")
    assert node.run(2)[-1].energy_uj == {board.domain: 45 * J}


def test_a_board_without_counter_and_power_is_a_gap(tmp_path: Path) -> None:
    """A board that measures nothing is named as that in each tick, and is not 0 W."""
    board = old_board(0, power_code=NOT_SUPPORTED)
    node = make_node(tmp_path, board)
    reason = 'not_supported: the board does not measure this: nvmlDeviceGetPowerUsage says "Not Supported" (3)'
    assert node.run(1)[0].gaps == (Gap(board.domain, reason),)
    assert (node.reader.method, node.reader.reason) == (Method.UNAVAILABLE, f"{reason}: {board.domain}")


def test_power_that_was_not_read_is_not_added_up(tmp_path: Path) -> None:
    """The process was stopped for 10 min, or power failed for 3 s: gaps, and no joule is made up for them."""
    board = old_board(50_000)
    node = make_node(tmp_path, board)
    stopped = node.sample(millis=600_000)
    assert stopped is not None
    assert [gap.reason.partition(":")[0] for gap in stopped.gaps] == ["unsampled"]
    assert node.run(1)[0].gaps[0].reason.startswith("unplaced: unsampled")
    assert node.run(1)[0].energy_uj == {board.domain: 50 * J}
    board.power_code = TIMEOUT
    node.run(3)
    board.power_code = 0
    assert [tick.energy_uj.get(board.domain) for tick in node.run(3)] == [None, 50 * J, 50 * J]
    totals = node.sampler.totals
    assert totals.energy_uj[board.domain] == 150 * J
    assert totals.unplaced_uj[board.domain] < 150 * J


def test_the_time_before_the_first_sweep_is_nobodys(tmp_path: Path) -> None:
    """An agent whose loop begins 5 s after the reader was made: its first window is whole."""
    sim, clock = NvmlSim(tmp_path / "nvml", old_board(30_000)), ManualClock()
    reader = NvmlReader(sim.library, clock)
    clock.advance(5 * S)
    sampler = Sampler(reader, proc_root=FakeProc(tmp_path / "proc").root, clock=clock)
    sampler.sample()
    node = Node(sim, clock, reader, sampler)
    assert node.run(1)[0].energy_uj == {sim.boards[0].domain: 30 * J}


ENERGY_MJ = st.integers(0, 200_000)


@settings(max_examples=40, deadline=None)
@given(
    trace=st.lists(
        st.tuples(
            st.integers(0, 200_000), st.integers(0, 200_000), st.sampled_from([0, 0, 0, GPU_IS_LOST, UNKNOWN, TIMEOUT])
        ),
        max_size=60,
    )
)
def test_ticks_add_up_to_the_truth(tmp_path_factory: pytest.TempPathFactory, trace: list[tuple[int, int, int]]) -> None:
    """Whatever energies and failures: ticks + unplaced = truth, 0 uJ off; a board that never failed has no gap."""
    failing, steady = SimBoard(uuid(0)), SimBoard(uuid(1))
    node = make_node(tmp_path_factory.mktemp("node"), failing, steady)
    for first_mj, second_mj, code in trace:
        failing.find_code = code
        failing.spend(first_mj)
        steady.spend(second_mj)
        node.sample()
    failing.find_code = 0
    node.run(2)
    totals = node.sampler.totals
    assert node.published(steady) == steady.truth_mj * 1_000
    assert node.published(failing) == totals.energy_uj[failing.domain]
    assert node.published(failing) + totals.unplaced_uj[failing.domain] == failing.truth_mj * 1_000
    assert all(gap.domain == failing.domain for tick in node.ticks for gap in tick.gaps)
