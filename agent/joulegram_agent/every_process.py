"""CPU time of every process by itself, once a second: what ``--processes all`` adds to the named trees.

Invariants:
    * disjoint from the named trees, whose processes are left out, and from containers, whose processes are too: there a
      process goes by numbers of its own that nobody outside knows it by, and the container has its time already;
    * a process is its pid and its start time; a figure is never negative;
    * at most `MOST` processes have a line, those that spent most; what the others spent stays with the host.

A process that came and went between two looks is in the count of whoever waited for it. What was counted for a process
that ended is taken off there, as in `joulegram_agent.processes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.process_files import ProcessFiles

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from pathlib import Path

    from joulegram_agent.process_files import Seen

MOST = 128


class EveryProcess:
    """Reads ``/proc/<pid>/stat`` of all processes.

    Args:
        proc_root: ``/proc``, or where the host's is mounted.
        tells_containers: containers have lines of their own, so their processes have none.
        most: lines at most.
    """

    def __init__(self, proc_root: Path, *, tells_containers: bool = False, most: int = MOST) -> None:
        self._files = ProcessFiles(proc_root)
        self._tells_containers = tells_containers
        self._most = most
        self._seen: dict[int, Seen] = {}

    def open(self) -> None:
        """Take every count as it stands: the next window begins here."""
        self._seen = self._look()

    def window(self, named_ns: Mapping[int, int], members: Container[int]) -> dict[int, int]:
        """Nanoseconds since the window before by process, of those that spent any.

        1. Every process is read: what its count grew, or all of it where the process is new.
        2. What was known of those that ended is taken off the nearest ancestor that lives, which waited for it; of a
           named process also what its tree was given in this window.
        3. Processes of named trees and of containers are left out, then all but the `most` that spent most.

        Args:
            named_ns: what the named trees were given in this window.
            members: the processes that were in one of them.
        """
        before, now = self._seen, self._look()
        self._seen = now
        grown = {pid: seen.jiffies - _known(before.get(pid), seen) for pid, seen in now.items()}
        for pid, was in before.items():
            if not _lives(pid, was, now):
                waited = _who_waited(was, before, now)
                if waited is not None:
                    grown[waited] -= was.jiffies + named_ns.get(pid, 0) // JIFFY_NS
        alone = [
            (jiffies, pid)
            for pid, jiffies in grown.items()
            if jiffies > 0
            and pid not in members
            and not (self._tells_containers and self._files.container(pid) is not None)
        ]
        alone.sort(reverse=True)
        return {pid: jiffies * JIFFY_NS for jiffies, pid in alone[: self._most]}

    def close(self) -> None:
        """Close what is open."""
        self._files.close()

    def _look(self) -> dict[int, Seen]:
        found: dict[int, Seen] = {}
        for pid in self._files.pids():
            seen = self._files.stat(pid)
            if seen is not None:
                found[pid] = seen
        self._files.keep_only(found)
        gone = self._seen.keys() - found.keys()
        for pid, seen in found.items():
            if seen.parent in gone:  # another will wait for it
                now = self._files.stat(pid, fresh=True)
                seen.parent = seen.parent if now is None else now.parent
        return found


def _known(was: Seen | None, now: Seen) -> int:
    return was.jiffies if was is not None and was.started == now.started else 0


def _lives(pid: int, was: Seen, now: dict[int, Seen]) -> bool:
    seen = now.get(pid)
    return seen is not None and seen.started == was.started


def _who_waited(was: Seen, before: dict[int, Seen], now: dict[int, Seen]) -> int | None:
    for _ in range(len(before) + 1):
        parent = before.get(was.parent)
        if parent is None:
            return None
        if _lives(was.parent, parent, now):
            return was.parent
        was = parent
    return None
