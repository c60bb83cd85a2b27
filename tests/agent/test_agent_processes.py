"""CPU time of named process trees."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.process_files import ProcessFiles, Seen
from joulegram_agent.processes import ProcessTrees
from simulators.procfs import FakeProc, spent_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=[False, True], ids=["parent scan", "children lists"])
def proc(tmp_path: Path, request: pytest.FixtureRequest) -> FakeProc:
    return FakeProc(tmp_path, children_lists=request.param)


def jiffies(trees: ProcessTrees) -> dict[int, int]:
    return {pid: nanos // JIFFY_NS for pid, nanos in spent_in(trees).items()}


def test_nothing_named_reads_nothing(tmp_path: Path) -> None:
    """Design section 4: a scan only when asked for: a proc that does not exist is not missed."""
    assert spent_in(ProcessTrees(tmp_path / "absent")) == {}


def test_tree_counts_descendants_from_its_naming(proc: FakeProc) -> None:
    """Design section 4: a named process with its descendants, what they spent before not counted."""
    proc.start(10, own=1_000)
    proc.start(11, parent=10, own=50)
    proc.start(12, parent=11)
    proc.start(20)
    trees = ProcessTrees(proc.root)
    assert trees.name(10)
    assert jiffies(trees) == {10: 0}
    for pid in (10, 11, 12, 20):
        proc.work(pid, pid)
    assert jiffies(trees) == {10: 33}
    proc.start(13, parent=12, own=4)
    assert jiffies(trees) == {10: 4}


def test_nested_roots_are_disjoint(proc: FakeProc) -> None:
    """Design section 4: the nearest named ancestor wins, so no second is in two figures."""
    proc.start(10)
    proc.start(11, parent=10)
    proc.start(12, parent=11)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    for pid in (10, 11, 12):
        proc.work(pid, 5)
    assert jiffies(trees) == {10: 15}
    trees.name(11)
    for pid in (10, 11, 12):
        proc.work(pid, pid)
    assert jiffies(trees) == {10: 10, 11: 23}
    trees.forget(11)
    proc.work(12, 2)
    assert jiffies(trees) == {10: 2}


def test_waited_child_is_counted_once(proc: FakeProc) -> None:
    """Design section 4: the time of a child that ended moves to its parent and is not counted again."""
    proc.start(10)
    proc.start(11, parent=10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.work(11, 30)
    assert jiffies(trees) == {10: 30}
    proc.work(11, 5)
    proc.work(10, 2)
    proc.end(11)
    assert jiffies(trees) == {10: 7}


def test_child_that_lived_between_two_looks_is_counted(proc: FakeProc) -> None:
    """Design section 4: a child never seen alive is in its parent's count."""
    proc.start(10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.start(11, parent=10)
    proc.work(11, 8)
    proc.end(11)
    assert jiffies(trees) == {10: 8}


def test_named_child_that_ends_is_taken_off_the_parents_tree(proc: FakeProc) -> None:
    """Design section 4: what a named child was given is not given again to the named parent that waited for it."""
    proc.start(10)
    proc.start(11, parent=10)
    proc.start(12, parent=11)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    trees.name(11)
    proc.work(11, 40)
    proc.work(12, 2)
    assert jiffies(trees) == {10: 0, 11: 42}
    proc.end(12)
    proc.end(11)
    proc.work(10, 3)
    assert jiffies(trees) == {10: 3}


def test_unwaited_child_never_makes_a_figure_negative(proc: FakeProc) -> None:
    """D-08: a count that falls is clamped, and the next tick is whole again."""
    proc.start(10)
    proc.start(11, parent=10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.work(11, 30)
    assert jiffies(trees) == {10: 30}
    proc.end(11, waited=False)
    assert jiffies(trees) == {10: 0}
    proc.work(10, 6)
    assert jiffies(trees) == {10: 6}


def test_orphan_leaves_the_tree_and_takes_nothing_along(proc: FakeProc) -> None:
    """Design section 4: a child that outlives its parent is init's; the tree's figure does not fall for it."""
    proc.start(10)
    proc.start(11, parent=10)
    proc.start(12, parent=11)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.work(12, 30)
    assert jiffies(trees) == {10: 30}
    proc.end(11)
    proc.work(10, 4)
    assert jiffies(trees) == {10: 4}
    proc.end(12)
    proc.work(10, 5)
    assert jiffies(trees) == {10: 5}


@pytest.mark.parametrize("looks", [0, 1])
def test_time_between_two_namings_is_not_counted(proc: FakeProc, looks: int) -> None:
    """Design section 4: a process let go and named again counts from its second naming."""
    proc.start(10)
    proc.start(20)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    trees.name(20)
    trees.forget(10)
    proc.work(10, 50)
    for _ in range(looks):
        assert jiffies(trees) == {20: 0}
    trees.name(10)
    proc.work(10, 3)
    assert jiffies(trees) == {10: 3, 20: 0}


def test_child_missed_once_is_not_counted_from_its_birth(tmp_path: Path) -> None:
    """D-08: the kernel's list may miss a child while others end; when it is back only what is new is counted."""
    proc = FakeProc(tmp_path, children_lists=True)
    proc.start(10)
    proc.start(11, parent=10)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.work(11, 40)
    assert jiffies(trees) == {10: 40}
    listed = proc.root / "10" / "task" / "10" / "children"
    listed.write_text("")
    assert jiffies(trees) == {10: 0}
    listed.write_text("11")
    proc.work(11, 2)
    assert jiffies(trees) == {10: 2}


def test_pid_used_again_is_another_process(proc: FakeProc) -> None:
    """Design section 4: pid and start time make a process; a newcomer on an old pid is not the one that was named."""
    proc.start(10, own=100)
    trees = ProcessTrees(proc.root)
    trees.name(10)
    spent_in(trees)
    proc.end(10)
    proc.start(10, started=777, own=500)
    assert jiffies(trees) == {}
    assert trees.roots == frozenset()
    assert trees.name(10)
    proc.work(10, 9)
    assert jiffies(trees) == {10: 9}


def test_process_name_with_brackets_is_read(proc: FakeProc) -> None:
    """A process chooses its own name; brackets and spaces in it do not shift the counts."""
    proc.start(10, name="a) S 1 (b")
    trees = ProcessTrees(proc.root)
    trees.name(10)
    proc.work(10, 3)
    assert jiffies(trees) == {10: 3}


def test_missing_process_cannot_be_named(proc: FakeProc) -> None:
    """A pid that is nobody's is not named, and is no figure of 0."""
    trees = ProcessTrees(proc.root)
    assert not trees.name(4242)
    assert spent_in(trees) == {}


def test_real_subprocess_is_counted_with_its_child() -> None:
    """Design section 4, on the real /proc: a child burns 0.2 s of CPU in a grandchild and waits for it."""
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    script = (
        "import subprocess, sys\nsys.stdin.readline()\n"
        f"subprocess.run([sys.executable, '-Sc', {burn!r}])\n"
        "print('done', flush=True)\nsys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-Sc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        trees = ProcessTrees()
        assert trees.name(child.pid)
        started = time.monotonic_ns()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
        spent = spent_in(trees)[child.pid]
        elapsed = time.monotonic_ns() - started
        child.stdin.write("\n")
    assert 180_000_000 <= spent <= elapsed * (os.cpu_count() or 1)
    assert spent_in(trees) == {}


@pytest.mark.parametrize("number", [10, 100])
def test_naming_many_at_once_goes_through_the_trees_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Each process is looked at so many times as it is when one is named, however many are."""
    proc = FakeProc(tmp_path, children_lists=True)
    pids = range(10, 10 + number)
    for pid in pids:
        proc.start(pid, own=7)
    proc.start(5_000, parent=10, own=7)
    asked: list[int] = []
    real = ProcessFiles.stat

    def stat(files: ProcessFiles, pid: int, *, fresh: bool = False) -> Seen | None:
        asked.append(pid)
        return real(files, pid, fresh=fresh)

    monkeypatch.setattr(ProcessFiles, "stat", stat)
    trees = ProcessTrees(tmp_path)
    assert trees.name_all([4_242, *pids]) == list(pids)
    assert len(asked) == 1 + 2 * number + 1
    proc.work(5_000, 3)
    assert spent_in(trees) == dict.fromkeys(pids, 0) | {10: 3 * JIFFY_NS}
    trees.close()
