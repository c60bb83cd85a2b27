"""Ticks with processes and containers in them: disjoint, and of the same second as the energy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent.cgroups import LEAST_NS
from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from simulators.cgroupfs import IDS, UID, CgroupTree, in_docker, in_pod
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from joulegram_pipeline.energy import Tick

S = 1_000_000_000
DOCKER = f"container/{IDS[2]}"
POD = f"pod/{UID}/container/{IDS[0]}"


@dataclass
class Node:
    """A node with a container, a pod and some processes, each in its place."""

    tree: PowercapTree
    proc: FakeProc
    cgroups: CgroupTree
    clock: ManualClock
    sampler: Sampler
    places: dict[int, str]

    def work(self, pid: int, jiffies: int) -> None:
        """A process spends time, its cgroup and the machine with it."""
        self.proc.work(pid, jiffies)
        self.cgroups.spend(self.places[pid], jiffies * JIFFY_NS)
        self.proc.spend(jiffies)

    def second(self, joules: int = 0) -> Tick:
        """The rest of the second: energy, and the sample that closes the window."""
        self.tree.advance({"package-0": joules * 1_000_000})
        self.clock.advance(S)
        tick = self.sampler.sample()
        assert tick is not None
        return tick


def make(root: Path, *, every_process: bool = False, version: str = "v2") -> Node:
    tree, proc, clock = PowercapTree(root / "sys", dram=False), FakeProc(root / "proc"), ManualClock()
    cgroups = CgroupTree(root / "cgroup", version)
    places = {10: in_docker(2), 11: in_docker(2), 12: in_pod(0), 13: "system.slice/cron.service", 14: in_docker(2)}
    for path in sorted(set(places.values())):
        cgroups.create(path)
    for pid, path in places.items():
        proc.start(pid, parent=10 if pid == 11 else 1)
        cgroups.place(proc, pid, path)
    sampler = Sampler(
        PowercapReader(tree.root, tree.open_counter),
        proc_root=proc.root,
        cgroup_root=cgroups.root,
        every_process=every_process,
        clock=clock,
    )
    assert sampler.sample() is None
    return Node(tree, proc, cgroups, clock, sampler, places)


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_container_is_without_the_processes_named_in_it(tmp_path: Path, version: str) -> None:
    """The contract of a tick: counts disjoint, a container's without the process trees named in it."""
    node = make(tmp_path, version=version)
    node.sampler.trees.name(10)
    for pid in (10, 11, 12, 13, 14):
        node.work(pid, pid)
    tick = node.second()
    assert tick.process_cpu_ns == {10: 21 * JIFFY_NS}
    assert tick.container_cpu_ns == {DOCKER: 14 * JIFFY_NS, POD: 12 * JIFFY_NS}
    assert tick.cpu_busy_ns == 60 * JIFFY_NS


def test_cpu_time_is_of_the_same_tick_as_the_energy(tmp_path: Path) -> None:
    """Kepler #2446: shares that are refreshed after the energy belong to the window before."""
    node = make(tmp_path)
    node.sampler.trees.name(10)
    idle = node.second(joules=5)
    node.work(10, 40)
    node.work(12, 30)
    busy = node.second(joules=90)
    after = node.second(joules=5)
    assert [tick.energy_uj["package-0"] for tick in (idle, busy, after)] == [5_000_000, 90_000_000, 5_000_000]
    assert [tick.cpu_busy_ns for tick in (idle, busy, after)] == [0, 70 * JIFFY_NS, 0]
    assert [dict(tick.process_cpu_ns) for tick in (idle, busy, after)] == [{10: 0}, {10: 40 * JIFFY_NS}, {10: 0}]
    assert [dict(tick.container_cpu_ns) for tick in (idle, busy, after)] == [{}, {POD: 30 * JIFFY_NS}, {}]


def test_process_that_left_its_tree_is_its_containers(tmp_path: Path) -> None:
    """A double fork: what the tree does not see any more the cgroup does."""
    node = make(tmp_path)
    node.sampler.trees.name(10)
    node.work(11, 4)
    node.work(10, 1)
    assert node.second().container_cpu_ns == {}
    node.proc.start(20, parent=11)
    node.proc.end(11)  # its parent is init now
    node.places[20] = in_docker(2)
    node.work(20, 50)
    tick = node.second()
    assert tick.process_cpu_ns == {10: 0}
    assert tick.container_cpu_ns == {DOCKER: 50 * JIFFY_NS}


def test_short_lived_processes_of_a_container_are_its_own(tmp_path: Path) -> None:
    """Kepler's 5 s: nobody saw them, the cgroup counted them."""
    node = make(tmp_path)
    node.proc.start(30)
    node.places[30] = in_docker(2)
    node.work(30, 25)
    node.proc.end(30)
    assert node.second().container_cpu_ns == {DOCKER: 25 * JIFFY_NS}


def test_all_processes_outside_of_containers_have_lines(tmp_path: Path) -> None:
    """`--processes all`: those in containers are in their containers' figures, the named in their trees'."""
    node = make(tmp_path, every_process=True)
    node.proc.start(15, own=0)
    node.places[15] = "system.slice/cron.service"
    node.sampler.trees.name(13)
    for pid in (10, 13, 15):
        node.work(pid, pid)
    tick = node.second()
    assert tick.process_cpu_ns == {13: 13 * JIFFY_NS, 15: 15 * JIFFY_NS}
    assert tick.container_cpu_ns == {DOCKER: 10 * JIFFY_NS}


def test_process_let_go_in_a_window_has_no_second_line_in_it(tmp_path: Path) -> None:
    """Its tree was given what it spent while it was named; its own line begins with the next window."""
    node = make(tmp_path, every_process=True)
    node.sampler.trees.name(13)
    node.work(13, 8)
    node.clock.advance(S // 10)
    node.sampler.sample()
    node.sampler.trees.forget(13)
    node.work(13, 3)
    assert node.second().process_cpu_ns == {13: 8 * JIFFY_NS}
    node.work(13, 2)
    assert node.second().process_cpu_ns == {13: 2 * JIFFY_NS}


def test_window_that_an_epoch_cuts_off_is_in_no_tick(tmp_path: Path) -> None:
    """The wall clock fell back: containers begin anew with everything else."""
    node = make(tmp_path, every_process=True)
    node.sampler.trees.name(10)
    node.work(10, 9)
    node.work(12, 9)
    node.work(13, 9)
    node.clock.step_wall(-5 * S)
    node.clock.advance(S)
    assert node.sampler.sample() is None
    node.work(12, 4)
    tick = node.second()
    assert tick.container_cpu_ns == {POD: 4 * JIFFY_NS}
    assert tick.process_cpu_ns == {10: 0}


def test_nothing_is_read_of_cgroups_that_are_not_there(tmp_path: Path) -> None:
    """No hierarchy: ticks without containers, and no process is looked up in one."""
    node = make(tmp_path)
    sampler = Sampler(
        PowercapReader(node.tree.root), proc_root=node.proc.root, cgroup_root=tmp_path / "none", clock=node.clock
    )
    assert not sampler.reads_containers
    assert node.sampler.reads_containers
    sampler.sample()
    sampler.trees.name(10)
    node.work(10, 5)
    node.clock.advance(S)
    tick = sampler.sample()
    assert tick is not None
    assert (tick.process_cpu_ns, tick.container_cpu_ns) == ({10: 5 * JIFFY_NS}, {})


def test_nothing_stays_open(tmp_path: Path) -> None:
    """What the sampler keeps open it closes."""
    node = make(tmp_path, every_process=True)
    node.sampler.trees.name(10)
    assert node.sampler.cgroups is not None
    assert node.sampler.cgroups.kept > 0
    node.sampler.close()
    assert node.sampler.cgroups.kept == 0
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if _target(fd).startswith(str(tmp_path / "proc"))]


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:
        return ""


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("work"), st.integers(10, 14), st.integers(0, 5)),
        st.tuples(st.just("dust"), st.just(0), st.integers(0, LEAST_NS // 1_000).map(lambda us: us * 1_000)),
        st.tuples(st.sampled_from(["name", "forget"]), st.integers(10, 14), st.just(0)),
        st.tuples(st.just("second"), st.just(0), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=30, deadline=None)
@given(steps=STEPS, every=st.booleans())
def test_no_nanosecond_is_in_two_figures(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], *, every: bool
) -> None:
    """Over any run: never more in sum than was spent, none negative, and in each container all but a line's worth."""
    node = make(tmp_path_factory.mktemp("node"), every_process=every)
    spent_ns, inside_ns = 0, 0
    told: list[Tick] = []
    for step, pid, amount in [*steps, *(("forget", pid, 0) for pid in range(10, 15)), ("second", 0, 0)]:
        if step == "work":
            node.work(pid, amount)
            spent_ns += amount * JIFFY_NS
            inside_ns += amount * JIFFY_NS * (pid != 13)
        elif step == "dust":
            node.cgroups.spend(in_docker(2), amount)
            spent_ns, inside_ns = spent_ns + amount, inside_ns + amount
        elif step == "name":
            node.sampler.trees.name(pid)
        elif step == "forget":
            node.sampler.trees.forget(pid)
        else:
            told.append(node.second())
    figures = [value for tick in told for value in (*tick.process_cpu_ns.values(), *tick.container_cpu_ns.values())]
    assert all(value >= 0 for value in figures)
    assert sum(figures) <= spent_ns
    in_containers = sum(sum(tick.container_cpu_ns.values()) for tick in told)
    in_containers += sum(value for tick in told for pid, value in tick.process_cpu_ns.items() if pid != 13)
    assert inside_ns - 2 * LEAST_NS < in_containers <= inside_ns
