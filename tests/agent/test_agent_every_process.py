"""CPU time of every process by itself: `--processes all`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.every_process import EveryProcess
from simulators.cgroupfs import CgroupTree, in_docker
from simulators.procfs import FakeProc


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    proc = FakeProc(tmp_path / "proc")
    proc.start(1, parent=0, own=500)
    proc.start(10, own=100)
    proc.start(11, parent=10, own=100)
    return proc


def opened(proc: FakeProc, **options: Any) -> EveryProcess:
    every = EveryProcess(proc.root, **options)
    every.open()
    return every


def jiffies(
    every: EveryProcess, named: dict[int, int] | None = None, members: frozenset[int] = frozenset()
) -> dict[int, int]:
    window = every.window({pid: spent * JIFFY_NS for pid, spent in (named or {}).items()}, members)
    return {pid: nanos // JIFFY_NS for pid, nanos in window.items()}


def test_each_process_has_what_it_spent_itself(proc: FakeProc) -> None:
    """Not its children's while they live, not its past, and none that spent nothing."""
    every = opened(proc)
    proc.work(10, 3)
    proc.work(11, 4)
    proc.start(12, parent=11, own=2)
    assert jiffies(every) == {10: 3, 11: 4, 12: 2}
    assert jiffies(every) == {}


def test_what_ended_is_in_the_figure_of_who_waited_and_only_once(proc: FakeProc) -> None:
    """Kepler's 5 s: a child never seen is its parent's; of one that was seen only what is new is."""
    every = opened(proc)
    proc.work(11, 5)
    assert jiffies(every) == {11: 5}
    proc.work(11, 2)
    proc.end(11)
    proc.start(12, parent=10)
    proc.work(12, 8)
    proc.end(12)
    assert jiffies(every) == {10: 10}


def test_pid_used_again_is_another_process(proc: FakeProc) -> None:
    """Pid and start time make a process: the newcomer is counted from its own beginning."""
    every = opened(proc)
    proc.end(11, waited=False)
    proc.start(11, parent=1, started=900, own=6)
    assert jiffies(every) == {11: 6}


def test_unwaited_child_makes_no_figure_negative(proc: FakeProc) -> None:
    """D-08: what is taken off and never came is clamped, in that window only."""
    every = opened(proc)
    proc.end(11, waited=False)
    proc.work(10, 3)
    assert jiffies(every) == {}
    proc.work(10, 3)
    assert jiffies(every) == {10: 3}


def test_named_trees_are_left_out_and_not_given_again(proc: FakeProc) -> None:
    """A named root that ended is in its parent's count, less what its tree was given in this window."""
    every = opened(proc)
    proc.work(11, 40)
    proc.work(10, 3)
    assert jiffies(every, {11: 40}, frozenset({11})) == {10: 3}
    proc.work(11, 9)
    proc.end(11)
    assert jiffies(every, {11: 7}, frozenset({11})) == {10: 2}


def test_only_those_that_spent_most_have_a_line(proc: FakeProc) -> None:
    """A bound: what the others spent stays with the host."""
    every = opened(proc, most=2)
    for pid in range(20, 30):
        proc.start(pid, own=pid)
    assert jiffies(every) == {28: 28, 29: 29}


@pytest.mark.parametrize(("tells", "expected"), [(True, {10: 3}), (False, {10: 3, 11: 4})])
def test_processes_of_containers_are_their_containers(
    tmp_path: Path, proc: FakeProc, *, tells: bool, expected: dict[int, int]
) -> None:
    """Disjoint from what cgroups give; where no cgroups are read they have lines like others."""
    tree = CgroupTree(tmp_path / "cgroup")
    tree.place(proc, 10, "system.slice/sshd.service")
    tree.place(proc, 11, in_docker(2))
    every = opened(proc, tells_containers=tells)
    proc.work(10, 3)
    proc.work(11, 4)
    assert jiffies(every) == expected


def test_real_processes_are_found_and_let_go() -> None:
    """On the real /proc: a busy child has its line, and nothing stays open of it."""
    every = EveryProcess(Path("/proc"))
    every.open()
    script = "import time\nwhile time.process_time() < 0.1: pass\nprint('done', flush=True)\ninput()"
    command = [sys.executable, "-ISc", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        assert every.window({}, ())[child.pid] >= 100_000_000 - JIFFY_NS
        child.communicate("\n")
    assert child.pid not in every.window({}, ())
    every.close()
    assert not [link for link in _links() if f"/proc/{child.pid}/" in link]


def _links() -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(fd.readlink()))
        except FileNotFoundError:
            continue  # the descriptor that lists them
    return links
