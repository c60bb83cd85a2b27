"""Which process ids that spans bring are this node's."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from joulegram_service.processes import is_ours

if TYPE_CHECKING:
    from pathlib import Path

STATUS = "Name:\tjob\nUmask:\t0022\nPid:\t{pid}\nPPid:\t1\n{namespaces}VmRSS:\t 100 kB\n"
NAMESPACES = {
    "of this namespace": ("NSpid:\t4242\n", True),
    "numbered otherwise where it lives": ("NSpid:\t4242\t7\n", False),
    "two namespaces down": ("NSpid:\t4242\t30\t7\n", False),
    "on a kernel that does not say": ("", True),
    "known here by another number": ("NSpid:\t7\n", False),
}


def test_a_process_that_lives_here_is_ours_and_one_that_ended_is_not() -> None:
    """The real /proc: this process, its child, the child's pid when it is gone."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_ours(os.getpid())
    assert is_ours(child.pid)
    child.communicate(b"\n")
    assert not is_ours(child.pid)


@pytest.mark.parametrize("pid", [1, 0, -1])
def test_init_and_what_is_no_pid_are_not(pid: int) -> None:
    """A container's job is often its pid 1, which is another process here."""
    assert not is_ours(pid)


@pytest.mark.parametrize(("namespaces", "ours"), NAMESPACES.values(), ids=NAMESPACES)
def test_a_process_of_another_pid_namespace_is_not(tmp_path: Path, namespaces: str, ours: bool) -> None:
    """`NSpid` of proc(5): the pid in each namespace, from that of the reader to the innermost."""
    (tmp_path / "4242").mkdir()
    (tmp_path / "4242" / "status").write_text(STATUS.format(pid=4242, namespaces=namespaces))
    assert is_ours(4242, tmp_path) is ours
