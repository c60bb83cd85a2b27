"""`joulegram run` says what each process of its command spent, with no OpenTelemetry in it (issue: deliver 6)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from joulegram.window import NO_TICKS, TickLog
from joulegram_agent.cpu import JIFFY_NS
from joulegram_service.run_processes import ProcessRow, ProcessTree, table
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc
from simulators.sidecar import PowerTrace, ledger_lines, run_command

if TYPE_CHECKING:
    from pathlib import Path

ROOT, CHILD, GRANDCHILD = 100, 101, 102


@pytest.fixture(params=[True, False], ids=["children lists", "no children lists"])
def proc(request: pytest.FixtureRequest, tmp_path: Path) -> FakeProc:
    """A /proc with the command in it."""
    made = FakeProc(tmp_path / "proc", children_lists=request.param)
    made.start(ROOT, name="make")
    return made


def jiffies(tree: ProcessTree, root_jiffies: int) -> dict[int, int]:
    return {pid: cpu_ns // JIFFY_NS for pid, _, cpu_ns in tree.close(root_jiffies * JIFFY_NS)}


def test_a_child_has_what_it_was_seen_to_spend(proc: FakeProc) -> None:
    """What the parent gets for it when it waits is taken off there; what came after the last look stays there."""
    tree = ProcessTree(ROOT, proc.root)
    proc.start(CHILD, ROOT, name="cc")
    proc.work(CHILD, 30)
    proc.work(ROOT, 5)
    tree.look()
    proc.work(CHILD, 2)
    proc.end(CHILD)
    tree.look()
    assert jiffies(tree, 37) == {CHILD: 30, ROOT: 7}


def test_a_child_that_was_never_seen_is_in_who_waited_for_it(proc: FakeProc) -> None:
    """Short-lived children of a child are the child's, and nothing is lost."""
    tree = ProcessTree(ROOT, proc.root)
    proc.start(CHILD, ROOT, name="sh")
    tree.look()
    proc.start(GRANDCHILD, CHILD)
    proc.work(GRANDCHILD, 9)
    proc.end(GRANDCHILD)
    tree.look()
    assert jiffies(tree, 9) == {CHILD: 9, ROOT: 0}


def test_a_process_in_between_keeps_its_own(proc: FakeProc) -> None:
    """What it got for a child that has a row of its own is taken off it, at that look and at every later one."""
    tree = ProcessTree(ROOT, proc.root)
    proc.start(CHILD, ROOT)
    proc.start(GRANDCHILD, CHILD)
    proc.work(GRANDCHILD, 20)
    tree.look()
    proc.end(GRANDCHILD)
    tree.look()
    proc.work(CHILD, 5)
    tree.look()
    assert jiffies(tree, 26) == {GRANDCHILD: 20, CHILD: 5, ROOT: 1}


def test_a_whole_branch_that_ended_between_two_looks(proc: FakeProc) -> None:
    """Parent and child gone at once: both have what they were seen with, once, and the root the rest."""
    tree = ProcessTree(ROOT, proc.root)
    proc.start(CHILD, ROOT)
    proc.start(GRANDCHILD, CHILD)
    proc.work(CHILD, 10)
    proc.work(GRANDCHILD, 20)
    tree.look()
    proc.end(GRANDCHILD)
    proc.end(CHILD)
    tree.look()
    assert jiffies(tree, 33) == {GRANDCHILD: 20, CHILD: 10, ROOT: 3}


def test_the_last_look_before_the_end_is_enough(proc: FakeProc) -> None:
    """What was alive at the last look was waited for by the end: it is in the root's total and taken off it."""
    tree = ProcessTree(ROOT, proc.root)
    proc.start(CHILD, ROOT)
    proc.work(CHILD, 8)
    tree.look()
    proc.end(CHILD)
    proc.end(ROOT, waited=False)
    tree.look()
    assert jiffies(tree, 20) == {CHILD: 8, ROOT: 12}


def test_a_child_that_nobody_waited_for_takes_nothing_from_the_root(proc: FakeProc) -> None:
    """It is in no total of the kernel; the root keeps what it was seen to spend itself."""
    tree = ProcessTree(ROOT, proc.root)
    proc.start(CHILD, ROOT)
    proc.work(CHILD, 50)
    proc.work(ROOT, 10)
    tree.look()
    assert jiffies(tree, 10) == {CHILD: 50, ROOT: 10}


def test_a_pid_used_again_is_another_process(proc: FakeProc) -> None:
    """Two processes with one number have a row each."""
    tree = ProcessTree(ROOT, proc.root)
    proc.start(CHILD, ROOT, started=1)
    proc.work(CHILD, 5)
    tree.look()
    proc.end(CHILD)
    proc.start(CHILD, ROOT, started=2)
    proc.work(CHILD, 3)
    tree.look()
    rows = [(pid, cpu_ns // JIFFY_NS) for pid, _, cpu_ns in tree.close(8 * JIFFY_NS)]
    assert sorted(rows) == [(ROOT, 0), (CHILD, 3), (CHILD, 5)]


def test_a_command_gone_before_the_first_look(tmp_path: Path) -> None:
    """Its total is the kernel's all the same."""
    assert ProcessTree(ROOT, tmp_path, "true").close(7) == [(ROOT, "true", 7)]


def test_the_table_is_short_and_cannot_steer_a_terminal(proc: FakeProc) -> None:
    """Ten processes and a line for the rest; a name with control characters is plain; unknown energy is no 0."""
    proc.start(CHILD, ROOT, name="\x1b[31mred")
    tree = ProcessTree(ROOT, proc.root)
    tree.look()
    names = {name for _, name, _ in tree.close(0)}
    assert names == {"make", "\ufffd[31mred"}
    rows = [ProcessRow(pid, "x", JIFFY_NS, None, 0.1) for pid in range(14)]
    window = TickLog(ROOT, 0).energy(0, 10**9)
    lines = table(rows, window)
    assert len(lines) == 13
    assert lines[11].endswith("in 4 more processes")
    assert all("?" in line for line in lines[1:11])
    assert "energy not known" in lines[12]
    assert NO_TICKS in str(window.reason)


BURN = "import time\nwhile time.process_time() < {}: pass"
"""CPU time in all, the interpreter's start among it, which takes long on a busy machine."""

SEEN = "\ntime.sleep(2)"
"""A process is looked at twice a second: what it spent after the last look is its parent's."""

JOB = f"""
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", {BURN + SEEN!r}.format(seconds)]) for seconds in (0.8, 2.4)]
for _ in range(4):
    subprocess.run([sys.executable, "-c", {BURN!r}.format(0.2)])
for child in children:
    child.wait()
"""


def test_a_real_job_without_opentelemetry(tmp_path: Path) -> None:
    """Two children at 1:3 have shares within 3 points; all rows add up to the span's energy, short-lived ones too."""
    tree = PowercapTree(tmp_path / "sys")
    flags = ("--source=powercap", f"--sysfs-root={tree.root}", "--json")
    with PowerTrace(tree, seed=7):
        done = run_command(tmp_path, *flags, "--", sys.executable, "-c", JOB)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["processes"]
    (span,) = ledger_lines(tmp_path / "data", "span")
    one, three = sorted(row["cpu_s"] for row in rows)[-2:]

    assert abs(one / (one + three) - 0.25) <= 0.03, rows
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sum(row["cpu_s"] for row in rows) >= 0.8 + 2.4 + 4 * 0.2
    # Both are of the same ticks; each is floored at other places.
    assert sum(row["energy_j"] for row in rows) == pytest.approx(span["energy"]["total_uj"] / 1e6, rel=0.02)


def test_the_table_is_printed_to_stderr(tmp_path: Path) -> None:
    """Below the summary, with the program's name and pid; the command's stdout is its own."""
    done = run_command(tmp_path, "--source=model", "--", "sh", "-c", "echo out; sleep 1.2")
    assert done.stdout == "out\n"
    assert "CPU s         J  share  process" in done.stderr
    assert "processes: modelled, by CPU time, idle left out" in done.stderr
