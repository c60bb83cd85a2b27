"""CPU time of named processes with their descendants, told by differences so that no second is counted twice.

Invariants:
    * the trees of two named roots are disjoint: a process belongs to its nearest named ancestor;
    * a process is its pid and its start time, so a pid used again is another process;
    * a figure is never negative.

A process's own count already holds its children that ended and were waited for. So when a process is gone,
what was counted for it turns up again in the process that waited, and is taken off there. A child that ended
without being waited for by its tree (its parent died or ignores SIGCHLD) turns up nowhere, and taking it off
would make the figure fall: the fall is clamped at 0, which hides at most what the tree spent in that one tick.
A process that outlives its parent leaves the tree. A root that ended is no longer reported: what it spent since
it was last read is not known, so it is read at every sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.cpu import JIFFY_NS

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was last seen of a process; `root` is None once it left every tree."""

    parent: int
    started: int
    jiffies: int
    root: int | None


class ProcessTrees:
    """Reads ``/proc/<pid>``; with nothing named it touches no file."""

    def __init__(self, proc_root: Path = Path("/proc")) -> None:
        self._proc = proc_root
        self._roots: dict[int, int] = {}
        self._seen: dict[int, _Seen] = {}
        self._ended: dict[int, int] = {}
        self._ended_before: dict[int, int] = {}

    @property
    def roots(self) -> frozenset[int]:
        """The named processes that were alive at the last look."""
        return frozenset(self._roots)

    def name(self, pid: int) -> bool:
        """Count this process and its descendants from now on; False if there is no such process."""
        seen = self._stat(pid)
        if seen is None:
            return False
        if self._roots.get(pid) != seen.started:
            self._roots[pid] = seen.started
            self._look(new_root=pid)
        return True

    def root_of(self, pid: int) -> int | None:
        """The named process to whose tree this one belongs, or did until at most two looks ago; else None.

        For what is told of processes after the fact, as by a driver: the look itself is `read`'s.
        """
        seen = self._seen.get(pid)
        if seen is not None:
            return seen.root
        return self._ended.get(pid, self._ended_before.get(pid))

    def forget(self, pid: int) -> None:
        """Count it no longer; its processes fall to the named ancestor above it, if there is one."""
        if self._roots.pop(pid, None) is None:
            return
        for member, seen in self._seen.items():
            if seen.root == pid:
                self._seen[member] = replace(seen, root=None)
        if not self._roots:
            self._seen.clear()

    def read(self, *, look: bool = True) -> dict[int, int]:
        """Nanoseconds of CPU time by live root since the last read, or since it was named.

        Args:
            look: look for new descendants, which can mean reading all of ``/proc``; else only those known are read,
                and a new one is counted from its beginning when it is found.
        """
        if look:
            self._ended_before, self._ended = self._ended, {}
        if not self._roots:
            return {}
        before = self._seen
        members = self._members() if look else self._known()
        spent = dict.fromkeys(self._roots, 0)
        for pid, now in members.items():
            was = before.get(pid)
            known = was.jiffies if was is not None and was.started == now.started else 0
            if now.root is not None:
                spent[now.root] += now.jiffies - known
        left: dict[int, _Seen] = {}
        for pid, was in before.items():
            now_member = members.get(pid)
            if now_member is not None and now_member.started == was.started:
                continue
            alive = self._stat(pid)
            if alive is not None and alive.started == was.started:
                left[pid] = replace(was, root=None)
            elif was.root is not None:
                self._ended[pid] = was.root
                waited = self._who_waited(was.parent, before, members)
                if waited is not None:
                    spent[waited] -= was.jiffies
        self._seen = members | left
        return {pid: max(0, jiffies) * JIFFY_NS for pid, jiffies in spent.items()}

    def _who_waited(self, parent: int, before: dict[int, _Seen], members: dict[int, _Seen]) -> int | None:
        """The root whose tree holds the nearest surviving ancestor of a process that ended."""
        for _ in range(len(before) + 1):
            was, now = before.get(parent), members.get(parent)
            if was is None:
                return None
            if now is not None and now.started == was.started:
                return now.root
            parent = was.parent
        return None

    def _look(self, new_root: int) -> None:
        """Take a newly named tree's counts as they stand, so that its past is not counted."""
        for pid, now in self._members().items():
            if now.root == new_root:
                was = self._seen.get(pid)
                if was is None or was.started != now.started or was.root is None:
                    self._seen[pid] = now

    def _members(self) -> dict[int, _Seen]:
        """Every live process of a named tree with the root it belongs to; roots that ended are dropped."""
        stats: dict[int, _Seen] = {}
        for pid, started in list(self._roots.items()):
            seen = self._stat(pid)
            if seen is None or seen.started != started:
                del self._roots[pid]
            else:
                stats[pid] = seen
        if not stats:
            return {}
        children = None if self._lists_children(next(iter(stats))) else self._scan()
        members: dict[int, _Seen] = {}
        for root in list(stats):
            queue = [root]
            while queue:
                pid = queue.pop()
                seen = stats.get(pid) or self._stat(pid)
                if seen is None or pid in members:
                    continue
                members[pid] = replace(seen, root=root)
                below = children.get(pid, []) if children is not None else self._children(pid)
                queue += [child for child in below if child not in self._roots]
        return members

    def _known(self) -> dict[int, _Seen]:
        """The processes seen last that still live; roots that ended are dropped."""
        members: dict[int, _Seen] = {}
        for pid, was in self._seen.items():
            now = self._stat(pid) if was.root is not None else None
            if now is not None and now.started == was.started:
                members[pid] = replace(now, root=was.root)
        for pid, started in list(self._roots.items()):
            if pid not in members or members[pid].started != started:
                del self._roots[pid]
        return {pid: seen for pid, seen in members.items() if seen.root in self._roots}

    def _lists_children(self, pid: int) -> bool:
        return (self._proc / str(pid) / "task" / str(pid) / "children").exists()

    def _children(self, pid: int) -> list[int]:
        """Children by the kernel's own lists, one for each thread."""
        found: list[int] = []
        try:
            for thread in (self._proc / str(pid) / "task").iterdir():
                found += [int(child) for child in (thread / "children").read_bytes().split()]
        except (OSError, ValueError):
            return found  # the process ended while it was read: its children are orphans now
        return found

    def _scan(self) -> dict[int, list[int]]:
        """Children by pid from every process's parent: for kernels built without the lists."""
        children: dict[int, list[int]] = {}
        for path in _numbered(self._proc):
            seen = self._stat(path)
            if seen is not None:
                children.setdefault(seen.parent, []).append(path)
        return children

    def _stat(self, pid: int) -> _Seen | None:
        try:
            # The name in brackets may hold brackets and spaces; what follows the last bracket is fixed.
            fields = (self._proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
            return _Seen(
                parent=int(fields[1]),
                started=int(fields[19]),
                jiffies=sum(int(field) for field in fields[11:15]),
                root=None,
            )
        except (OSError, ValueError, IndexError):
            return None


def _numbered(folder: Path) -> Iterable[int]:
    try:
        return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    except OSError:
        return []
