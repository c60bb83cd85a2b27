"""Processes that come, go, escape and take old numbers: real ones, and what is kept open of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joulegram_agent import process_files
from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.kept import KeptFiles
from joulegram_agent.process_files import ProcessFiles, Seen
from joulegram_agent.processes import ProcessTrees
from simulators.cgroupfs import IDS, UID, CgroupTree, in_docker, in_pod
from simulators.procfs import FakeProc, spent_in

if TYPE_CHECKING:
    from collections.abc import Iterator

MS = 1_000_000

BURN = """
import os, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid
sys.stdin.readline()
"""


@contextmanager
def program(text: str) -> Iterator[subprocess.Popen[str]]:
    """A Python that waits for a line, does this, says `done` and waits for another."""
    script = f"{BURN}\n{text}\nprint('done', flush=True)\nsys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-ISc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.write("\n")


def go(process: subprocess.Popen[str]) -> None:
    """Let it do its work, and wait for that."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_children_shorter_than_any_look_are_in_their_parents_figure() -> None:
    """Kepler's 5 s (energy.md 1b): twenty real children of 20 ms each, waited for; none is ever seen alive."""
    with program("for _ in range(20): os.waitpid(child(lambda: burn(0.02)), 0)") as process:
        trees = ProcessTrees()
        assert trees.name(process.pid)
        go(process)
        spent = spent_in(trees)[process.pid]
        own = trees.take_own()[process.pid]
        trees.close()
    assert spent >= 20 * 20 * MS - 2 * JIFFY_NS
    assert own <= spent // 2  # forking and waiting, and not what the children burnt


def test_grandchild_that_nobody_of_the_tree_waits_for_is_not_in_it() -> None:
    """A double fork leaves the tree: its time is the cgroup's (agent-protocol.md), and the figure does not fall."""
    text = """
reading, writing = os.pipe()
os.waitpid(child(lambda: child(lambda: burn(0.3))), 0)
os.close(writing)
assert os.read(reading, 1) == b""
burn(0.02)
"""
    with program(text) as process:
        trees = ProcessTrees()
        trees.name(process.pid)
        go(process)
        spent = spent_in(trees)[process.pid]
        trees.close()
    assert 10 * MS <= spent < 250 * MS


def open_files(folder: Path) -> int:
    """How many files of this folder we have open."""
    links = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    return sum(link.startswith(f"{folder}/") for link in links)


def test_ended_root_is_told_by_its_descriptor() -> None:
    """A real process that ended leaves nothing named and nothing open."""
    trees = ProcessTrees()
    with subprocess.Popen(["sleep", "60"]) as process:
        assert trees.name(process.pid)
        assert spent_in(trees) == {process.pid: 0}
        assert open_files(Path(f"/proc/{process.pid}")) > 0
        process.kill()
    assert spent_in(trees, look=False) == {}
    assert trees.roots == frozenset()
    assert open_files(Path(f"/proc/{process.pid}")) == 0


def test_pid_used_again_between_two_reads_is_not_the_old_one(tmp_path: Path) -> None:
    """Start time tells reuse apart at the 10 Hz read too: the newcomer's time is nobody's until it is named."""
    proc = FakeProc(tmp_path)
    proc.start(10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.end(10)
    proc.start(10, started=777, own=500)
    assert spent_in(trees, look=False) == {}
    assert trees.roots == frozenset()
    assert open_files(tmp_path / "10") == 0, "the newcomer's file was opened to see who it is"


def test_child_with_an_old_pid_is_counted_from_its_beginning(tmp_path: Path) -> None:
    """A child that ended and another with its number: what the first had is not taken off the second."""
    proc = FakeProc(tmp_path)
    proc.start(10)
    proc.start(11, parent=10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.work(11, 40)
    assert spent_in(trees) == {10: 40 * JIFFY_NS}
    proc.end(11)
    proc.start(11, parent=10, started=999, own=3)
    assert spent_in(trees) == {10: 3 * JIFFY_NS}


def test_two_processes_on_one_number_are_two_and_one_look_sees_both(tmp_path: Path) -> None:
    """The descriptor of the first is given up, that of the second is opened: no stale count."""
    proc = FakeProc(tmp_path)
    files = ProcessFiles(proc.root)
    proc.start(10, own=7)
    first = files.stat(10)
    proc.end(10)
    proc.start(10, started=200, own=9)
    second = files.stat(10)
    assert (first, second) == (Seen(1, 100, 7, 7), Seen(1, 200, 9, 9))
    proc.end(10)
    assert files.stat(10) is None
    files.close()


def test_file_of_a_process_that_has_not_run_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 10 Hz costs: a stopped process's clock stands still, and its file is left alone until it moves."""
    reads: list[str] = []
    real = KeptFiles.read

    def read(kept: KeptFiles, path: str) -> bytes:
        reads.append(path)
        return real(kept, path)

    monkeypatch.setattr(KeptFiles, "read", read)
    files = ProcessFiles(Path("/proc"))
    with program("burn(0.05)") as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        stopped = files.stat(process.pid)
        assert stopped is not None
        assert [files.stat(process.pid) for _ in range(3)] == [stopped] * 3
        assert len(reads) == 1
        assert files.stat(process.pid, fresh=True) == stopped
        assert len(reads) == 2
        os.kill(process.pid, signal.SIGCONT)
        go(process)
        after = files.stat(process.pid)
        assert after is not None
        assert after.jiffies - stopped.jiffies >= 4
    files.close()


def test_child_that_gets_another_parent_while_asleep_is_taken_off_who_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree under an init of its own (a subreaper): the orphan has not run, its parent is another all the same."""
    proc = FakeProc(tmp_path)
    (tmp_path / "self").symlink_to(str(os.getpid()))
    ran_ns = {10: 0, 11: 0, 12: 0}
    monkeypatch.setattr(process_files, "_ran_ns", ran_ns.get)
    for pid, parent in ((10, 1), (11, 10), (12, 11)):
        proc.start(pid, parent=parent, own=20)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    assert spent_in(trees, look=False) == {10: 0}
    proc.end(11)
    proc.processes[12].parent = 10
    proc.rewrite(12)
    del ran_ns[11]
    ran_ns[10] = 1  # it waited for 11; 12 sleeps
    assert spent_in(trees, look=False) == {10: 0}
    proc.end(12)
    del ran_ns[12]
    ran_ns[10] = 2
    assert spent_in(trees, look=False) == {10: 0}


class Clocks:
    """The CPU clocks of a simulated tree's processes, which move only when told; reads of their files are counted."""

    def __init__(self, proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
        (proc.root / "self").symlink_to(str(os.getpid()))
        self.proc = proc
        self.ran_ns: dict[int, int] = {}
        self.reads: list[str] = []
        real = KeptFiles.read

        def read(kept: KeptFiles, path: str) -> bytes:
            self.reads.append(path)
            return real(kept, path)

        monkeypatch.setattr(KeptFiles, "read", read)
        monkeypatch.setattr(process_files, "_clock_ns", self._clock_ns)

    def _clock_ns(self, clock: int) -> int:
        pid = ~(clock >> 3)
        if pid not in self.ran_ns:
            raise OSError(f"no process {pid}")
        return self.ran_ns[pid]

    def start(self, pid: int, parent: int = 1) -> None:
        self.ran_ns[pid] = 0
        self.proc.start(pid, parent=parent)

    def work(self, pid: int, jiffies: int) -> None:
        self.ran_ns[pid] += jiffies * JIFFY_NS
        self.proc.work(pid, jiffies)

    def read_since(self) -> list[str]:
        """What was read since this was last asked."""
        reads, self.reads = self.reads, []
        return reads


def test_trees_that_rest_cost_no_file_not_even_at_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not run has started nobody, and has not ended: its children are as they were."""
    proc = FakeProc(tmp_path / "proc", children_lists=True)
    clocks, tree = Clocks(proc, monkeypatch), CgroupTree(tmp_path / "cgroup")
    for pid, parent in ((10, 1), (11, 10), (20, 1)):
        clocks.start(pid, parent)
        tree.place(proc, pid, in_docker(2))
    trees = ProcessTrees(proc.root, tells_containers=True)
    trees.name(10)
    trees.name(20)
    spent_in(trees)
    clocks.read_since()
    assert [spent_in(trees, look=look) for look in (False, True, True, False)] == [{10: 0, 20: 0}] * 4
    assert clocks.read_since() == []
    trees.take_own()
    clocks.work(11, 3)
    assert spent_in(trees, look=False) == {10: 3 * JIFFY_NS, 20: 0}
    assert trees.take_own() == {10: 0, 20: 0}
    # One ran: of that one the file is read, and at the look the trees are gone through.
    assert {Path(path).parts[-2] for path in clocks.read_since()} == {"11"}
    clocks.start(12, parent=20)
    clocks.work(12, 2)
    assert spent_in(trees) == {10: 0, 20: 2 * JIFFY_NS}


def test_tree_named_in_place_of_another_has_its_line_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are named as before, so it is not by their number that one without a line is found."""
    proc = FakeProc(tmp_path, children_lists=True)
    clocks = Clocks(proc, monkeypatch)
    clocks.start(10)
    clocks.start(20)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    spent_in(trees)
    trees.read(look=False)
    trees.forget(10)
    trees.name(20)
    trees.read(look=False)
    trees.read(look=False)
    assert trees.take_spent() == {10: 0, 20: 0}


def test_child_of_one_that_ran_between_looks_is_found_at_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent rests again by then."""
    proc = FakeProc(tmp_path, children_lists=True)
    clocks = Clocks(proc, monkeypatch)
    clocks.start(10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    spent_in(trees)
    spent_in(trees)
    clocks.ran_ns[10] += 1
    clocks.start(11, parent=10)
    assert spent_in(trees, look=False) == {10: 0}
    clocks.work(11, 4)
    assert spent_in(trees) == {10: 4 * JIFFY_NS}
    assert trees.take_own() == {10: 0}


def test_process_that_ends_at_rest_is_missed_from_its_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process is killed: its number has no clock any more. Its root is gone from the next read on."""
    proc = FakeProc(tmp_path, children_lists=True)
    clocks = Clocks(proc, monkeypatch)
    clocks.start(10)
    clocks.start(20)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    trees.name(20)
    spent_in(trees)
    proc.end(10)
    del clocks.ran_ns[10]
    assert spent_in(trees, look=False) == {20: 0}
    assert trees.roots == {20}


def test_process_that_moves_while_it_rests_is_in_its_new_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that had nothing to look for is made up for when the process runs."""
    proc, tree = FakeProc(tmp_path / "proc", children_lists=True), CgroupTree(tmp_path / "cgroup")
    clocks = Clocks(proc, monkeypatch)
    clocks.start(10)
    tree.place(proc, 10, in_docker(1))
    trees = ProcessTrees(proc.root, tells_containers=True)
    trees.name(10)
    spent_in(trees)
    trees.take_contained()
    tree.place(proc, 10, in_docker(2))
    spent_in(trees)
    clocks.work(10, 5)
    spent_in(trees, look=False)
    assert trees.take_contained() == {f"container/{IDS[2]}": 5 * JIFFY_NS}


def test_named_anew_while_all_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that gets a name of its own, and loses it, is in the right tree from then on."""
    proc = FakeProc(tmp_path, children_lists=True)
    clocks = Clocks(proc, monkeypatch)
    clocks.start(10)
    clocks.start(11, parent=10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    spent_in(trees)
    trees.name(11)
    assert spent_in(trees) == {10: 0, 11: 0}
    clocks.work(11, 2)
    assert spent_in(trees, look=False) == {10: 0, 11: 2 * JIFFY_NS}
    spent_in(trees)
    trees.forget(11)
    spent_in(trees)
    clocks.work(11, 3)
    assert spent_in(trees) == {10: 3 * JIFFY_NS}


def test_more_children_than_a_page_of_the_kernels_list(tmp_path: Path) -> None:
    """The kernel gives its list a page at a time; 2 000 real children would be 14 kB, here a file of that size."""
    proc = FakeProc(tmp_path, children_lists=True)
    proc.start(10)
    listed = proc.root / "10" / "task" / "10" / "children"
    listed.write_text(" ".join(str(pid) for pid in range(100_000, 120_000)))
    assert ProcessFiles(proc.root).children(10) == list(range(100_000, 120_000))


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_what_a_tree_spent_is_told_by_container(tmp_path: Path, version: str) -> None:
    """A tree that reaches into another container is taken off each where it ran."""
    proc, tree = FakeProc(tmp_path / "proc"), CgroupTree(tmp_path / "cgroup", version)
    for pid, parent in ((10, 1), (11, 10), (12, 10)):
        proc.start(pid, parent=parent)
    tree.place(proc, 10, in_docker(2))
    tree.place(proc, 11, in_pod(0))
    tree.place(proc, 12, "system.slice/sshd.service")
    trees = ProcessTrees(proc.root, tells_containers=True)
    trees.name(10)
    for pid in (10, 11, 12):
        proc.work(pid, pid)
    assert spent_in(trees, look=False) == {10: 33 * JIFFY_NS}
    assert trees.take_contained() == {
        f"container/{IDS[2]}": 10 * JIFFY_NS,
        f"pod/{UID}/container/{IDS[0]}": 11 * JIFFY_NS,
    }
    assert trees.take_contained() == {}


def test_process_that_moves_is_in_its_new_container_from_the_next_look(tmp_path: Path) -> None:
    """A runtime starts a process in its own cgroup and moves it: what it spends then is taken off the container."""
    proc, tree = FakeProc(tmp_path / "proc"), CgroupTree(tmp_path / "cgroup")
    proc.start(10)
    tree.place(proc, 10, "system.slice/containerd.service")
    trees = ProcessTrees(proc.root, tells_containers=True)
    trees.name(10)
    tree.place(proc, 10, in_docker(2))
    spent_in(trees)
    proc.work(10, 5)
    spent_in(trees, look=False)
    assert trees.take_contained() == {f"container/{IDS[2]}": 5 * JIFFY_NS}


def test_waited_child_of_another_container_is_counted_once_there(tmp_path: Path) -> None:
    """Its time comes up again in the parent that waited, in the parent's container, and is taken off there."""
    proc, tree = FakeProc(tmp_path / "proc"), CgroupTree(tmp_path / "cgroup")
    proc.start(10)
    proc.start(11, parent=10)
    tree.place(proc, 10, in_docker(1))
    tree.place(proc, 11, in_docker(2))
    trees = ProcessTrees(proc.root, tells_containers=True)
    trees.name(10)
    proc.work(11, 30)
    spent_in(trees)
    proc.work(10, 2)
    proc.end(11)
    assert spent_in(trees) == {10: 2 * JIFFY_NS}
    assert trees.take_contained() == {f"container/{IDS[2]}": 30 * JIFFY_NS, f"container/{IDS[1]}": 2 * JIFFY_NS}


def test_orphans_are_not_read_at_every_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that left a tree long ago costs a look a second, not ten reads."""
    proc = FakeProc(tmp_path)
    proc.start(10)
    proc.start(11, parent=10)
    proc.start(12, parent=11)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.end(11)
    spent_in(trees)
    asked: list[int] = []
    real = ProcessFiles.stat

    def stat(files: ProcessFiles, pid: int) -> Seen | None:
        asked.append(pid)
        return real(files, pid)

    monkeypatch.setattr(ProcessFiles, "stat", stat)
    spent_in(trees, look=False)
    assert asked == [10]
    spent_in(trees)
    assert sorted(asked) == [10, 10, 12]
