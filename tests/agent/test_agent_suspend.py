"""Sleeps, steps and zones that come back: what the agent says of time in which it could not see."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.counters import Accumulator
from joulegram_agent.powercap import FIND_AGAIN_READS, PowercapReader
from joulegram_agent.reasons import DOMAIN_VANISHED, PERMISSION_DENIED
from joulegram_agent.state import Instant
from joulegram_pipeline.clock import SystemClock
from joulegram_pipeline.energy import Domain, DomainKind, Gap
from simulators.agent_days import Days
from simulators.powercap import AMD_RANGE_UJ, PowercapTree
from simulators.procfs import ManualClock

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000
MS = 1_000_000
S = 1_000_000_000
LOAD = {"package-0": 100}


def days(root: Path) -> Days:
    return Days(PowercapTree(root / "sys", dram=False, core=False, package_range_uj=AMD_RANGE_UJ), root)


def test_a_sleep_is_a_gap_of_its_own_name(tmp_path: Path) -> None:
    """Issue 5: 8 s asleep inside a window: `suspended`, for all domains; ticks stay contiguous."""
    node = days(tmp_path)
    node.run(1, LOAD, millis=100)
    node.run(0.5, LOAD, millis=100)
    node.suspend(8, {"package-0": 1})
    node.run(1.5, LOAD, millis=100)
    first, asleep, after = node.sampler.published
    assert (asleep.start_ns, asleep.end_ns, after.start_ns) == (first.end_ns, first.end_ns + 9 * S, asleep.end_ns)
    assert (asleep.gaps, asleep.energy_uj) == ((Gap("*", "suspended"),), {})
    assert after.energy_uj == {"package-0": 100 * J}
    assert node.sampler.totals.unplaced_uj == {"package-0": 108 * J}


@pytest.mark.parametrize("before_j", [64_000, 40_000, 9])
def test_counters_that_began_anew_in_a_sleep_are_no_energy(tmp_path: Path, before_j: int) -> None:
    """D-08: the sleep set the counter to 0. Awake for 0.1 s it cannot have wrapped from there: nothing is made up."""
    node = days(tmp_path)
    node.tree.reset("package-0", before_j * J)
    node.start()
    node.run(1, LOAD, millis=100)
    node.clock.suspend(10 * S)
    node.tree.reset("package-0")
    node.run(2, LOAD, millis=100)
    totals = node.sampler.totals
    assert totals.energy_uj == {"package-0": 200 * J}
    assert totals.unplaced_uj == {"package-0": 90 * J}
    assert totals.gaps == {"package-0": {"counter_reset": 1}}


def test_a_long_sleep_hides_a_wrap(tmp_path: Path) -> None:
    """D-49: 40 min asleep: whether the counter wrapped is not known, and neither is what was spent."""
    node = days(tmp_path)
    node.suspend(2_400, {"package-0": 5})
    node.run(2, LOAD, millis=100)
    totals = node.sampler.totals
    assert totals.gaps == {"package-0": {"ambiguous_wrap": 1}}
    assert totals.unplaced_uj == {"package-0": 90 * J}


def test_a_clock_that_was_set_wrong_by_a_sleep_is_still_a_sleep(tmp_path: Path) -> None:
    """D-29: the wall clock came back 3 s off: the sleep says enough, and it is one gap, not two."""
    node = days(tmp_path)
    node.suspend(5, {})
    node.clock.step_wall(-3 * S)
    node.run(2, LOAD, millis=100)
    assert [tick.gaps for tick in node.sampler.published] == [(Gap("*", "suspended"),), ()]


def test_a_step_of_an_hour_is_a_step(tmp_path: Path) -> None:
    """D-29: nobody slept: `clock_step`; an hour on the wall clock alone makes the counter's rise unsure."""
    node = days(tmp_path)
    node.clock.step_wall(3_600 * S)
    node.run(2, LOAD, millis=100)
    assert [tick.gaps for tick in node.sampler.published] == [(Gap("*", "clock_step"),), ()]


def test_late_samples_lose_nothing(tmp_path: Path) -> None:
    """Issue 5: reads that take 3 s make ticks of 3 s, one by one, each whole; no bunch of ticks makes up for them."""
    node = days(tmp_path)
    for _ in range(5):
        node.run(3, LOAD, millis=3_000)
    assert [tick.end_ns - tick.start_ns for tick in node.sampler.published] == [3 * S] * 5
    assert [tick.energy_uj for tick in node.sampler.published] == [{"package-0": 300 * J}] * 5


def test_power_while_asleep_is_believed_as_far_as_it_goes() -> None:
    """D-13: 20 W asleep and 2 kW awake make 401 J in 10 s of sleep; 402 J are a reset."""
    for rise_j, window in ((401, 401 * J), (402, Gap("d", "counter_reset"))):
        accumulator = Accumulator(Domain("d", DomainKind.CPU, AMD_RANGE_UJ))
        accumulator.offer(0, 0, 0)
        accumulator.open()
        accumulator.offer(rise_j * J, 10 * S + 100 * MS, 50 * MS)
        assert accumulator.close() == window


def test_the_machines_own_clocks() -> None:
    """CLOCK_BOOTTIME is never behind CLOCK_MONOTONIC, and what lies between them is sleep."""
    before, after = Instant.now(SystemClock()), Instant.now(SystemClock())
    assert before.boot_ns >= before.mono_ns
    assert after.since(before) >= 0
    assert abs(after.asleep_since(before)) < S


def test_asleep_is_told_from_the_clocks() -> None:
    """An instant is on three clocks: the longest counts for wraps, the difference of two is sleep."""
    clock = ManualClock()
    before = Instant.now(clock)
    clock.advance(2 * S)
    clock.suspend(5 * S)
    clock.step_wall(-S)
    after = Instant.now(clock)
    assert (after.since(before), after.asleep_since(before)) == (7 * S, 5 * S)


def test_a_zone_that_comes_back_is_read_again(tmp_path: Path) -> None:
    """Issue 5, D-05: the module is loaded anew and numbers its zones otherwise: found by name within 50 reads."""
    tree = PowercapTree(tmp_path, packages=2, dram=False, core=False)
    reader = PowercapReader(tmp_path, tree.open_counter)
    tree.faults = {"package-0": errno.ENODEV}
    assert [gap.reason for gap in reader.read().gaps] == ["domain_vanished"]
    tree.faults = {}
    zero, one = tree.zone_path("package-0"), tree.zone_path("package-1")
    for zone, name, energy in ((zero, "package-1", 7), (one, "package-0", 4_711)):
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{energy}\n")
    gone = [reader.read().counters_uj.get("package-0") for _ in range(FIND_AGAIN_READS)]
    assert gone == [None] * (FIND_AGAIN_READS - 1) + [4_711]
    assert reader.read().counters_uj["package-0"] == 4_711
    reader.close()
    assert [gap.domain for gap in reader.read().gaps] == ["package-0", "package-1"]


def test_a_zone_that_comes_back_and_refuses_says_so(tmp_path: Path) -> None:
    """D-05, D-06, docs/agent.md: where privileges were dropped: vanished while it is away, then the permission."""
    tree = PowercapTree(tmp_path, dram=False, core=False)
    reader = PowercapReader(tmp_path, tree.open_counter)
    name = tree.zone_path("package-0") / "name"

    def reasons() -> list[str]:
        return [gap.reason for _ in range(FIND_AGAIN_READS) for gap in reader.read().gaps]

    tree.faults = {"package-0": errno.ENODEV}
    assert reasons() == [DOMAIN_VANISHED] * FIND_AGAIN_READS
    tree.faults = {"package-0": errno.EACCES}
    assert reasons()[-1] == PERMISSION_DENIED
    name.rename(tmp_path / "name")
    assert reasons()[-1] == DOMAIN_VANISHED
    (tmp_path / "name").rename(name)
    assert reasons()[-1] == PERMISSION_DENIED
    tree.faults = {}
    assert reasons() == []
    reader.close()


def test_a_zone_of_another_range_is_not_taken_for_it(tmp_path: Path) -> None:
    """D-46: a zone that came back with another unit is another counter: it stays a gap until the next start."""
    tree = PowercapTree(tmp_path, dram=False, core=False)
    reader = PowercapReader(tmp_path, tree.open_counter)
    tree.faults = {"package-0": errno.ENODEV}
    reader.read()
    tree.faults = {}
    (tree.zone_path("package-0") / "max_energy_range_uj").write_text(f"{AMD_RANGE_UJ}\n")
    assert {len(reader.read().gaps) for _ in range(2 * FIND_AGAIN_READS)} == {1}
