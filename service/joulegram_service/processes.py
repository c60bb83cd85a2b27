"""Whether a process id that a span brought is one of this node's, so that naming it says the truth."""

from __future__ import annotations

from pathlib import Path


def is_ours(pid: int, proc_root: Path = Path("/proc")) -> bool:
    """Whether `pid` lives here, is not init, and is no process of another pid namespace.

    A job in a container sends the pid it has there. Its resource then names a container, which the processor refuses;
    beside that, a pid whose own namespace numbers it otherwise is not taken.
    """
    if pid <= 1:
        return False
    try:
        status = (proc_root / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:] == [str(pid)]
    return True
