"""The sampler with clocks that only move when told, over a powercap tree."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from joulegram_agent.beside import Beside
from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.model import ModelReader
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.reader import NoEnergyReader, Reader, Reading
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method, Tick
from simulators.powercap import AMD_RANGE_UJ, INTEL_RANGE_UJ, PowercapTree
from simulators.procfs import BOOT_ID, FakeProc, ManualClock

J = 1_000_000
MS = 1_000_000
S = 1_000_000_000


@dataclass
class Node:
    """A sampler over a simulated node; `ticks` are all it published."""

    tree: PowercapTree
    proc: FakeProc
    clock: ManualClock
    sampler: Sampler
    ticks: list[Tick] = field(default_factory=list)

    def sample(self, watts: dict[str, int] | None = None, *, millis: int = 100) -> Tick | None:
        self.tree.advance_watts(watts or {}, millis)
        self.clock.advance(millis * MS)
        tick = self.sampler.sample()
        self.ticks += [tick] if tick is not None else []
        return tick

    def run(self, seconds: int, watts: dict[str, int] | None = None) -> list[Tick]:
        before = len(self.ticks)
        for _ in range(seconds * 10):
            self.sample(watts)
        return self.ticks[before:]

    def published(self, domain: str) -> int:
        return sum(tick.energy_uj.get(domain, 0) for tick in self.ticks)


def make_node(root: Path, **tree_options: Any) -> Node:
    tree = PowercapTree(root / "sys", **tree_options)
    proc, clock = FakeProc(root / "proc"), ManualClock()
    sampler = Sampler(PowercapReader(tree.root, tree.open_counter), proc_root=proc.root, clock=clock)
    assert sampler.sample() is None
    return Node(tree, proc, clock, sampler)


def over(reader: Reader, root: Path, clock: ManualClock) -> Sampler:
    sampler = Sampler(reader, proc_root=root, clock=clock)
    sampler.sample()
    return sampler


def test_ticks_are_one_second_and_contiguous(tmp_path: Path) -> None:
    """S3-03: 10 samples, one tick; each tick begins where the last ended and counts all in between."""
    node = make_node(tmp_path)
    opened = node.clock.wall_ns()
    ticks = node.run(3, {"package-0": 100, "package-0/dram": 7})
    assert [(tick.seq, tick.start_ns, tick.end_ns) for tick in ticks] == [
        (n + 1, opened + n * S, opened + (n + 1) * S) for n in range(3)
    ]
    assert all(tick.energy_uj == {"package-0": 100 * J, "package-0/dram": 7 * J} for tick in ticks)
    assert all(tick.gaps == () for tick in ticks)
    assert node.sampler.batch(0).epoch == f"{BOOT_ID}-5000000000"


def test_one_of_two_packages_wraps(tmp_path: Path) -> None:
    """D-01, D-02: each domain wraps on its own: 265 kJ over a window in which one of two packages wraps."""
    node = make_node(tmp_path, packages=2, dram=False)
    node.tree.reset("package-0", INTEL_RANGE_UJ - 50 * J)
    node.tree.reset("package-1", 30 * J)
    node.sampler = over(PowercapReader(node.tree.root), node.proc.root, node.clock)
    node.run(133, {"package-0": 1_000, "package-1": 1_000})
    total = node.published("package-0") + node.published("package-1")
    assert total == sum(node.tree.truth_uj.values()) == 266_000 * J
    assert int((node.tree.zone_path("package-0") / "energy_uj").read_text()) < 133_000 * J


def test_800_watts_at_10_hz_are_all_reported(tmp_path: Path) -> None:
    """D-45, D-46: 800 W on a 262 kJ range for 15 min: 720 kJ, three turns of the counter, nothing missing."""
    node = make_node(tmp_path, dram=False)
    for _ in range(900):
        for _ in range(10):
            node.sample({"package-0": 800})
    assert node.published("package-0") == node.tree.truth_uj["package-0"] == 720_000 * J
    assert all(tick.gaps == () for tick in node.ticks)


def test_slow_polling_loses_nothing_below_the_bound(tmp_path: Path) -> None:
    """D-46: 300 W polled once in 10 s on the 65 kJ range: every joule, over two turns."""
    node = make_node(tmp_path, dram=False, package_range_uj=AMD_RANGE_UJ)
    for _ in range(60):
        node.sample({"package-0": 300}, millis=10_000)
    assert node.published("package-0") == 180_000 * J


def test_silence_beyond_the_bound_is_counted_not_guessed(tmp_path: Path) -> None:
    """D-49: a process stopped for 10 min gives one long tick that is a gap with its reason."""
    node = make_node(tmp_path, dram=False)
    tick = node.sample({"package-0": 400}, millis=600_000)
    assert tick is not None
    assert tick.end_ns - tick.start_ns == 600 * S
    assert tick.gaps == (Gap("package-0", "ambiguous_wrap"),)
    assert tick.energy_uj == {}
    assert node.sampler.totals.gaps == {"package-0": {"ambiguous_wrap": 1}}
    assert node.run(1, {"package-0": 5})[0].energy_uj == {"package-0": 5 * J}


def test_cpu_count_does_not_multiply_packages(tmp_path: Path) -> None:
    """D-47: a package counts once, whatever the number of its CPUs."""
    node = make_node(tmp_path, dram=False)
    node.proc.cpus = 64
    node.proc.write_stat()
    assert node.run(1, {"package-0": 50})[0].energy_uj == {"package-0": 50 * J}


def test_slow_read_makes_a_long_tick_not_a_bunch(tmp_path: Path) -> None:
    """S3-03: deadlines that passed are skipped: one tick of 3.5 s, the next a second after its end."""
    node = make_node(tmp_path)
    node.sample(millis=900)
    long = node.sample({"package-0": 10}, millis=2_600)
    assert long is not None
    assert long.end_ns - long.start_ns == 3_500 * MS
    assert [node.sample() is not None for _ in range(10)] == [False] * 9 + [True]
    assert node.ticks[-1].start_ns == long.end_ns


class StallingReader:
    """One domain of a constant power; a sweep takes long before its counter is looked at, and after."""

    source, method, reason = "stalling", Method.MEASURED, None

    def __init__(
        self, clock: ManualClock, watts: int, max_range_uj: int | None, stalls: dict[int, tuple[int, int]]
    ) -> None:
        self.values: list[int] = []
        self._clock, self._watts, self._range, self._stalls = clock, watts, max_range_uj, stalls
        self._kind = DomainKind.GPU if max_range_uj is None else DomainKind.CPU

    def domains(self) -> tuple[Domain, ...]:
        return (Domain("only", self._kind, self._range),)

    def read(self) -> Reading:
        before_ms, after_ms = self._stalls.get(len(self.values), (0, 0))
        self._clock.advance(before_ms * MS)
        self.values.append(self._watts * self._clock.mono_ns() // 1_000)
        self._clock.advance(after_ms * MS)
        value = self.values[-1]
        return Reading({"only": value if self._range is None else value % (self._range + 1)})

    def close(self) -> None:
        """Nothing is open."""


@settings(max_examples=50)
@given(
    watts=st.integers(1, 1_900),
    max_range_uj=st.sampled_from([None, INTEL_RANGE_UJ]),
    stalls=st.dictionaries(st.integers(1, 30), st.tuples(st.integers(0, 3_000), st.integers(0, 3_000)), max_size=4),
)
@example(watts=1_400, max_range_uj=None, stalls={15: (0, 350)})
@example(watts=500, max_range_uj=INTEL_RANGE_UJ, stalls={15: (0, 495)})
def test_what_a_slow_sweep_reads_is_all_counted(
    watts: int, max_range_uj: int | None, stalls: dict[int, tuple[int, int]]
) -> None:
    """D-13: a rise is not implausible because the sweep before or after it took long, on either side of the reading."""
    clock = ManualClock()
    reader = StallingReader(clock, watts, max_range_uj, stalls)
    sampler = over(reader, Path("/nonexistent"), clock)
    energy_uj = closed_uj = 0
    for _ in range(40):
        clock.advance(100 * MS)
        tick = sampler.sample()
        if tick is not None:
            assert tick.gaps == ()
            energy_uj, closed_uj = energy_uj + tick.energy_uj["only"], reader.values[-1]
    assert energy_uj == closed_uj - reader.values[0]


def test_a_reading_is_of_the_instant_it_was_begun(tmp_path: Path) -> None:
    """A thread that waits for the interpreter once it has read does not stretch the window over what came after."""
    clock = ManualClock()
    reader = StallingReader(clock, 150, INTEL_RANGE_UJ, {5: (0, 6_000), 11: (0, 2_500)})
    sampler = over(reader, tmp_path, clock)
    ticks = []
    for _ in range(40):
        clock.advance(100 * MS)
        ticks += [tick for tick in [sampler.sample()] if tick is not None]
    assert len(ticks) > 1
    assert [tick.energy_uj["only"] * 1_000 for tick in ticks] == [150 * (tick.end_ns - tick.start_ns) for tick in ticks]


def test_nothing_finer_than_a_second_is_published(tmp_path: Path) -> None:
    """S3-03 and PLATYPUS: a sample that comes a hair early closes nothing, and totals do not move before a tick."""
    node = make_node(tmp_path)
    assert node.sample({"package-0": 9}, millis=999) is None
    assert node.sampler.totals.energy_uj == {}
    assert node.sample(millis=1) is not None
    assert node.sampler.totals.energy_uj == {"package-0": 9 * 999_000, "package-0/dram": 0}


def test_failed_reads_make_a_gap_for_their_domain_only(tmp_path: Path) -> None:
    """D-05, D-10: a domain that failed at the edge is absent with a reason in both windows; the other goes on."""
    node = make_node(tmp_path)
    node.run(1, {"package-0": 10, "package-0/dram": 3})
    node.tree.faults = {"package-0/dram": errno.EINVAL}
    node.run(1, {"package-0": 10, "package-0/dram": 3})
    node.tree.faults = {}
    node.run(2, {"package-0": 10, "package-0/dram": 3})
    assert [tick.energy_uj.get("package-0") for tick in node.ticks] == [10 * J] * 4
    assert [tick.energy_uj.get("package-0/dram") for tick in node.ticks] == [3 * J, None, None, 3 * J]
    assert [tick.gaps for tick in node.ticks] == [
        (),
        (Gap("package-0/dram", "read_failed: EINVAL"),),
        (Gap("package-0/dram", "unplaced: read_failed: EINVAL"),),
        (),
    ]
    totals = node.sampler.totals
    assert totals.energy_uj["package-0/dram"] + totals.unplaced_uj["package-0/dram"] == 12 * J


def test_vanished_domain_stays_named(tmp_path: Path) -> None:
    """D-05: a domain that went is a gap in every tick after, and stays in the measured set."""
    node = make_node(tmp_path)
    node.tree.faults = {"package-0/dram": errno.ENODEV}
    ticks = node.run(2, {"package-0": 10})
    assert [tick.gaps for tick in ticks] == [(Gap("package-0/dram", "domain_vanished"),)] * 2
    assert len(node.sampler.batch(0).domains) == 2


def test_reset_counter_is_a_gap_and_never_negative(tmp_path: Path) -> None:
    """D-08: a reload of the driver sets the counter to 0: a gap, then counting goes on."""
    node = make_node(tmp_path, dram=False, start_uj=9_000 * J)
    node.tree.reset("package-0")
    assert node.run(1)[0].gaps == (Gap("package-0", "counter_reset"),)
    assert node.run(1, {"package-0": 4})[0].energy_uj == {"package-0": 4 * J}


@pytest.mark.parametrize("step_ns", [10 * S, -600 * MS, 51 * MS])
def test_stepped_clock_is_a_gap_without_overlap(tmp_path: Path, step_ns: int) -> None:
    """D-29: the wall clock stepped inside a window: its energy has no place in time, and ticks stay contiguous."""
    node = make_node(tmp_path, dram=False)
    node.run(1, {"package-0": 10})
    node.clock.step_wall(step_ns)
    node.run(2, {"package-0": 10})
    first, stepped, after = node.ticks
    assert first.end_ns == stepped.start_ns
    assert stepped.end_ns == after.start_ns == first.end_ns + S + step_ns
    assert (stepped.gaps, stepped.energy_uj) == ((Gap("*", "clock_step"),), {})
    assert after.energy_uj == {"package-0": 10 * J}
    assert node.sampler.totals.unplaced_uj == {"package-0": 10 * J}


def test_slewed_clock_is_no_step(tmp_path: Path) -> None:
    """D-29: up to 50 ms in a window is a clock being set right: contiguous, no gap."""
    node = make_node(tmp_path, dram=False)
    node.clock.step_wall(50 * MS)
    (tick,) = node.run(1, {"package-0": 10})
    assert tick.end_ns - tick.start_ns == 1_050 * MS
    assert tick.energy_uj == {"package-0": 10 * J}


def test_clock_set_back_behind_the_last_tick_begins_an_epoch(tmp_path: Path) -> None:
    """D-29: ticks of one epoch never overlap; after a fall of an hour a new epoch counts from 1."""
    node = make_node(tmp_path, dram=False)
    node.run(2, {"package-0": 10})
    before = node.sampler.batch(0)
    node.clock.step_wall(-3_600 * S)
    assert node.run(1, {"package-0": 10}) == []
    assert node.run(1, {"package-0": 10})[0].seq == 1
    after = node.sampler.batch(before.ticks[-1].seq)
    assert after.epoch != before.epoch
    assert [tick.seq for tick in after.ticks] == [1]
    assert node.sampler.totals.energy_uj["package-0"] + node.sampler.totals.unplaced_uj["package-0"] == 40 * J


def test_ring_keeps_the_recent_and_hands_out_what_is_new(tmp_path: Path) -> None:
    """Design section 4: a ring of recent ticks; `after` gives those above it, in order."""
    node = make_node(tmp_path)
    node.sampler = Sampler(PowercapReader(node.tree.root), proc_root=node.proc.root, clock=node.clock, ring_s=3)
    node.sampler.sample()
    node.run(5)
    assert [tick.seq for tick in node.sampler.batch(0).ticks] == [3, 4, 5]
    assert [tick.seq for tick in node.sampler.batch(4).ticks] == [5]
    assert node.sampler.batch(5).ticks == ()


def test_cpu_time_of_machine_and_processes(tmp_path: Path) -> None:
    """Design section 4: the machine's CPU time and each named tree's, in the tick that holds their energy."""
    node = make_node(tmp_path)
    node.proc.start(10, own=500)
    node.sampler.trees.name(10)
    node.proc.spend(50)
    node.proc.work(10, 30)
    (tick,) = node.run(1)
    assert (tick.cpu_busy_ns, tick.cpu_total_ns) == (50 * JIFFY_NS, 2 * S)
    assert tick.process_cpu_ns == {10: 30 * JIFFY_NS}
    assert tick.descendant_cpu_ns == {}
    node.proc.spend(10**6)
    assert node.run(1)[0].cpu_busy_ns == 2 * S


def test_unknown_cpu_time_is_absent(tmp_path: Path) -> None:
    """D-10: CPU time that cannot be read is absent, in this window and the next, not 0."""
    node = make_node(tmp_path)
    (node.proc.root / "stat").write_text("")
    assert node.run(1)[0].cpu_busy_ns is None
    node.proc.write_stat()
    assert [tick.cpu_busy_ns for tick in node.run(2)] == [None, 0]


def test_a_cpu_that_goes_offline_is_counted_for_the_time_it_was_there(tmp_path: Path) -> None:
    """Design section 4: 2 CPUs for 0.4 s and 1 for 0.6 s are 1.4 s of CPU time; it comes back likewise."""
    node = make_node(tmp_path)
    for cpus in [2] * 4 + [1] * 6 + [1] * 7 + [2] * 3:
        node.proc.cpus = cpus
        node.proc.write_stat()
        node.sample()
    assert [tick.cpu_total_ns for tick in node.ticks] == [1_400 * MS, 1_300 * MS]


def test_a_cpu_count_that_falls_spoils_its_tenth_alone(tmp_path: Path) -> None:
    """D-08: 3 + 4 jiffies around a fall of 2 are 7, not 5, and the fall itself is 0."""
    node = make_node(tmp_path)
    for jiffies in (0, 3, 0, -2, 4, 0, 0, 0, 0, 0):
        node.proc.spend(jiffies)
        node.sample()
    assert [tick.cpu_busy_ns for tick in node.ticks] == [7 * JIFFY_NS]


def test_cpu_time_not_read_within_a_window_is_bridged(tmp_path: Path) -> None:
    """D-10: the count's ends suffice: what was spent while it could not be read is in the next reading."""
    node = make_node(tmp_path)
    for number in range(10):
        node.proc.spend(5)
        if number in (3, 4):
            (node.proc.root / "stat").write_text("")
        node.sample()
    assert [(tick.cpu_busy_ns, tick.cpu_total_ns) for tick in node.ticks] == [(50 * JIFFY_NS, 2 * S)]


def test_cpu_time_is_read_once_beside_a_model(tmp_path: Path) -> None:
    """Design section 4: the model's own reading is the tick's: the sampler, looking elsewhere, would see others."""
    clock, proc, other = ManualClock(), FakeProc(tmp_path / "proc"), FakeProc(tmp_path / "other", cpus=7)
    sampler = over(Beside(ModelReader(proc.root, tmp_path / "sys", clock=clock)), other.root, clock)
    proc.spend(40)
    clock.advance(S)
    tick = sampler.sample()
    assert tick is not None
    assert (tick.cpu_busy_ns, tick.cpu_total_ns) == (40 * JIFFY_NS, 2 * S)


def test_epochs_differ_even_without_a_boot_id(tmp_path: Path) -> None:
    """Design section 4: two agents on a machine that hides its boot id do not share an epoch."""
    clock = ManualClock()
    epochs = {over(NoEnergyReader("x"), tmp_path, clock).batch(0).epoch for _ in range(2)}
    assert len(epochs) == 2


def test_source_without_energy_has_a_gap_and_no_joules(tmp_path: Path) -> None:
    """D-10: no energy is a reason in every tick, never 0 J; CPU time is there all the same."""
    clock = ManualClock()
    FakeProc(tmp_path)
    sampler = over(NoEnergyReader("no_powercap: none here"), tmp_path, clock)
    clock.advance(S)
    tick = sampler.sample()
    assert tick is not None
    assert tick.energy_uj == {}
    assert tick.gaps == (Gap("*", "no_powercap: none here"),)
    assert tick.cpu_total_ns == 2 * S
    assert sampler.batch(0).reason == "no_powercap: none here"


def test_modelled_ticks_know_their_static_part(tmp_path: Path) -> None:
    """D-12: the model's idle watts are the static part of its ticks."""
    clock, proc = ManualClock(), FakeProc(tmp_path)
    sampler = over(ModelReader(tmp_path, tmp_path / "sys", clock=clock), tmp_path, clock)
    proc.spend(S // JIFFY_NS)
    clock.advance(S)
    tick = sampler.sample()
    assert tick is not None
    assert tick.energy_uj == {"model/cpu": 1_480_000 + 2_760_000}
    assert tick.static_uj == {"model/cpu": 1_480_000}


@settings(max_examples=30, deadline=None)
@given(
    package_range_uj=st.sampled_from([INTEL_RANGE_UJ, AMD_RANGE_UJ, 16_381_005_263, 1_000 * J + 6]),
    start=st.floats(0, 1),
    trace=st.lists(st.tuples(st.integers(0, 200 * J), st.integers(0, 200 * J), st.booleans()), max_size=50),
)
def test_ticks_add_up_to_the_truth(
    tmp_path_factory: pytest.TempPathFactory,
    package_range_uj: int,
    start: float,
    trace: list[tuple[int, int, bool]],
) -> None:
    """D-01, D-02: whatever power, ranges, wraps and failed reads, ticks + unplaced = truth, 0 uJ off, per domain."""
    node = make_node(
        tmp_path_factory.mktemp("node"),
        packages=2,
        dram=False,
        package_range_uj=package_range_uj,
        start_uj=int(start * package_range_uj),
    )
    for first_uj, second_uj, fails in trace:
        node.tree.faults = {"package-1": errno.EINVAL} if fails and not node.tree.faults else {}
        node.tree.advance({"package-0": first_uj, "package-1": second_uj})
        node.sample()
    node.tree.faults = {}
    node.run(1)
    totals = node.sampler.totals
    assert node.published("package-0") == node.tree.truth_uj["package-0"]
    assert node.published("package-1") == totals.energy_uj["package-1"]
    assert totals.energy_uj["package-1"] + totals.unplaced_uj["package-1"] == node.tree.truth_uj["package-1"]
    assert all(gap.domain == "package-1" for tick in node.ticks for gap in tick.gaps)


def test_what_descendants_spent_is_told_apart(tmp_path: Path) -> None:
    """Alive, or ended and waited for: of 42 jiffies in the tree 12 were the process's own."""
    node = make_node(tmp_path)
    node.proc.start(10, own=500)
    node.proc.start(11, parent=10, own=70)
    node.sampler.trees.name(10)
    node.proc.work(10, 12)
    node.proc.work(11, 10)
    node.proc.start(12, parent=10)
    node.proc.work(12, 20)
    node.proc.end(12)
    (tick,) = node.run(1)
    assert tick.process_cpu_ns == {10: 42 * JIFFY_NS}
    assert tick.descendant_cpu_ns == {10: 30 * JIFFY_NS}
    node.proc.work(10, 3)
    (tick,) = node.run(1)
    assert (tick.process_cpu_ns, tick.descendant_cpu_ns) == ({10: 3 * JIFFY_NS}, {})


def test_a_process_that_ends_inside_a_window_keeps_what_it_spent(tmp_path: Path) -> None:
    """CPU time is read with every sample, so a job's last second is its own up to the last sample before its end."""
    node = make_node(tmp_path)
    node.proc.start(10, own=500)
    node.sampler.trees.name(10)
    node.proc.work(10, 30)
    node.clock.advance(S // 2)
    assert node.sampler.sample() is None
    node.proc.end(10)
    node.clock.advance(S // 2)
    tick = node.sampler.sample()
    assert tick is not None
    assert tick.process_cpu_ns == {10: 30 * JIFFY_NS}
    (tick,) = node.run(1)
    assert tick.process_cpu_ns == {}
