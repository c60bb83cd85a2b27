"""CPU time of named processes with their descendants, told by differences so that no second is counted twice.

Invariants:
    * the trees of two named roots are disjoint: a process belongs to its nearest named ancestor;
    * a process is its pid and its start time, so a pid used again is another process;
    * a figure is never negative;
    * what a tree spent in a container is told by the container its processes ran in, so that it can be taken off there.

A process's own count already holds its children that ended and were waited for. So when a process is gone,
what was counted for it turns up again in the process that waited, and is taken off there. A child that ended
without being waited for by its tree (its parent died or ignores SIGCHLD) turns up nowhere, and taking it off
would make the figure fall: the fall is clamped at 0, which hides at most what the tree spent in that one tick.
A process that outlives its parent leaves the tree: what it spends from then on is its container's, or the host's. A
root that ended is no longer reported: what it spent since it was last read is not known, so it is read at every sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.process_files import ProcessFiles, rest

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from joulegram_agent.process_files import Clocks, Seen

    Cells = dict[tuple[int, str | None], int]
    """Jiffies by root and container."""


class ProcessTrees:
    """Reads ``/proc/<pid>``; with nothing named it touches no file.

    Args:
        proc_root: ``/proc``, or where the host's is mounted.
        tells_containers: the container of each process is looked up, at every look for descendants.
    """

    def __init__(self, proc_root: Path = Path("/proc"), *, tells_containers: bool = False) -> None:
        self._tells_containers = tells_containers
        self._files = ProcessFiles(proc_root)
        self._roots: dict[int, int] = {}
        self._seen: dict[int, Seen] = {}
        self._contained_ns: dict[str, int] = {}
        self._own_ns: dict[int, int] = {}
        self._spent_ns: dict[int, int] = {}
        self._were_members: set[int] = set()
        self._ended: dict[int, int] = {}
        self._ended_before: dict[int, int] = {}
        self._clocks: Clocks | None = None
        self._is_settled = False
        self._has_spared = False

    @property
    def roots(self) -> frozenset[int]:
        """The named processes that were alive at the last look."""
        return frozenset(self._roots)

    def name(self, pid: int) -> bool:
        """Count this process and its descendants from now on; False if there is no such process."""
        return bool(self.name_all([pid]))

    def name_all(self, pids: Iterable[int]) -> list[int]:
        """As `name`, of several at the price of one look; those that exist."""
        found: list[int] = []
        new: set[int] = set()
        for pid in pids:
            seen = self._files.stat(pid)
            if seen is not None:
                found.append(pid)
                if self._roots.get(pid) != seen.started:
                    self._roots[pid] = seen.started
                    new.add(pid)
        if new:
            self._look(new)
            self._stir()
        return found

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
                seen.root = None
                self._were_members.add(member)
        self._stir()
        if not self._roots:
            self._seen.clear()
            self._files.close()

    def read(self, *, look: bool = True) -> None:
        """Read what the trees spent, for the `take_` methods to give.

        Args:
            look: look for new descendants, which can mean reading all of ``/proc``; else only those known are read,
                and a new one is counted from its beginning when it is found.
        """
        if look:
            self._ended_before, self._ended = self._ended, {}
        if not self._roots:
            return
        if self._rest(look=look):
            self._has_spared = self._has_spared or look
            if not self._roots.keys() <= self._spent_ns.keys():
                self._add({})
            return
        self._stir()
        if look or not self._sample():
            self._read(look=look)

    def _rest(self, *, look: bool) -> bool:
        """Whether no process of a tree has run since it was last read: then none has spent, ended or been started.

        For a look it must also be so that none has run since the look before, at which their children were listed: who
        has not run has started none, and an orphan comes to nobody but from a process of the same tree that ended.
        """
        if look and not self._is_settled:
            return False
        if self._clocks is None:
            self._clocks = self._files.clocks(pid for pid, seen in self._seen.items() if seen.root is not None)
        return self._clocks is not None and rest(*self._clocks)

    def _stir(self) -> None:
        """What was known of processes that rest is so no longer."""
        self._clocks = None
        self._is_settled = False

    def _sample(self) -> bool:
        """`read` without a look, of those that ran; False where one of them ended, which concerns others as well."""
        ran: list[tuple[int, Seen, Seen]] = []
        for pid, was in self._seen.items():
            if was.root is None or self._files.rests(pid):
                continue
            now = self._files.stat(pid)
            if now is None or now.started != was.started:
                return False
            ran.append((pid, was, now))
        cells: Cells = {}
        for pid, was, now in ran:
            now.root, now.container = was.root, was.container
            if self._has_spared and self._tells_containers:
                now.container = self._files.container(pid)  # it may have been moved while it rested
            self._count(pid, was, now, cells)
            self._seen[pid] = now
        self._add(cells)
        return True

    def _read(self, *, look: bool) -> None:
        """`read`, of every process."""
        before = self._seen
        members = self._members() if look else self._known()
        cells: Cells = {}
        for pid, now in members.items():
            was = before.get(pid)
            self._count(pid, was if was is not None and was.started == now.started else None, now, cells)
        left: dict[int, Seen] = {}
        for pid, was in before.items():
            now_member = members.get(pid)
            if now_member is not None and now_member.started == was.started:
                continue
            alive = was if was.root is None and not look else self._files.stat(pid)
            if alive is not None and alive.started == was.started:
                was.root = None
                left[pid] = was
            elif was.root is not None:
                self._ended[pid] = was.root
                self._find_new_parents(pid, members)
                waited = self._who_waited(was.parent, before, members)
                if waited is not None and waited.root is not None:
                    cell = (waited.root, waited.container)
                    cells[cell] = cells.get(cell, 0) - was.jiffies
        self._seen = members | left
        self._files.keep_only(self._seen)
        self._is_settled = look
        self._has_spared = self._has_spared and not look
        self._add(cells)

    def _count(self, pid: int, was: Seen | None, now: Seen, cells: Cells) -> None:
        """Add what a process spent since it was `was`, or ever."""
        if now.root == pid:
            own = 0 if was is None else was.own_jiffies
            self._own_ns[pid] = self._own_ns.get(pid, 0) + (now.own_jiffies - own) * JIFFY_NS
        if now.root is not None:
            cell = (now.root, now.container)
            cells[cell] = cells.get(cell, 0) + now.jiffies - (0 if was is None else was.jiffies)

    def _add(self, cells: Cells) -> None:
        """Add the sums of a read to what is to be taken; roots that spent nothing have a line as well."""
        for root in self._roots:
            self._spent_ns.setdefault(root, 0)
            self._own_ns.setdefault(root, 0)
        for (root, container), jiffies in cells.items():
            nanos = max(0, jiffies) * JIFFY_NS
            self._spent_ns[root] += nanos
            if container is not None:
                self._contained_ns[container] = self._contained_ns.get(container, 0) + nanos

    def take_spent(self) -> dict[int, int]:
        """Nanoseconds of CPU time by root since this was last asked, or since it was named; of those read since."""
        taken, self._spent_ns = self._spent_ns, {}
        return taken

    def take_contained(self) -> dict[str, int]:
        """What the trees spent in each container or pod since this was last asked, as part of `take_spent`."""
        taken, self._contained_ns = self._contained_ns, {}
        return taken

    def take_own(self) -> dict[int, int]:
        """What the named processes spent themselves since this was last asked; the rest was their descendants'."""
        taken, self._own_ns = self._own_ns, {}
        return taken

    def take_members(self) -> set[int]:
        """The processes of all named trees, with those that were let go since this was last asked."""
        taken, self._were_members = self._were_members, set()
        return taken.union(pid for pid, seen in self._seen.items() if seen.root is not None)

    def close(self) -> None:
        """Close what is open."""
        self._files.close()

    def _who_waited(self, parent: int, before: dict[int, Seen], members: dict[int, Seen]) -> Seen | None:
        """The nearest surviving ancestor of a process that ended."""
        for _ in range(len(before) + 1):
            was, now = before.get(parent), members.get(parent)
            if was is None:
                return None
            if now is not None and now.started == was.started:
                return now
            parent = was.parent
        return None

    def _find_new_parents(self, ended: int, members: dict[int, Seen]) -> None:
        """Children of a process that ended go to another, who will wait for them, without running themselves."""
        for pid, seen in members.items():
            if seen.parent == ended:
                now = self._files.stat(pid, fresh=True)
                seen.parent = seen.parent if now is None else now.parent

    def _look(self, new_roots: Container[int | None]) -> None:
        """Take the counts of newly named trees as they stand, so that their past is not counted."""
        for pid, now in self._members().items():
            if now.root in new_roots:
                was = self._seen.get(pid)
                if was is None or was.started != now.started or was.root is None:
                    self._seen[pid] = now

    def _members(self) -> dict[int, Seen]:
        """Every live process of a named tree with the root it belongs to; roots that ended are dropped."""
        stats: dict[int, Seen] = {}
        for pid, started in list(self._roots.items()):
            seen = self._files.stat(pid)
            if seen is None or seen.started != started:
                del self._roots[pid]
            else:
                stats[pid] = seen
        if not stats:
            return {}
        children = None if self._files.lists_children(next(iter(stats))) else self._scan()
        members: dict[int, Seen] = {}
        for root in list(stats):
            queue = [root]
            while queue:
                pid = queue.pop()
                seen = stats.get(pid) or self._files.stat(pid)
                if seen is None or pid in members:
                    continue
                seen.root = root
                seen.container = self._files.container(pid) if self._tells_containers else None
                members[pid] = seen
                below = children.get(pid, []) if children is not None else self._files.children(pid)
                queue += [child for child in below if child not in self._roots]
        return members

    def _known(self) -> dict[int, Seen]:
        """The processes seen last that still live; roots that ended are dropped."""
        members: dict[int, Seen] = {}
        for pid, was in self._seen.items():
            now = self._files.stat(pid) if was.root is not None else None
            if now is not None and now.started == was.started:
                now.root, now.container = was.root, was.container
                members[pid] = now
        for pid, started in list(self._roots.items()):
            if pid not in members or members[pid].started != started:
                del self._roots[pid]
        return {pid: seen for pid, seen in members.items() if seen.root in self._roots}

    def _scan(self) -> dict[int, list[int]]:
        """Children by pid from every process's parent: for kernels built without the lists."""
        children: dict[int, list[int]] = {}
        for pid in self._files.pids():
            seen = self._files.stat_once(pid)
            if seen is not None:
                children.setdefault(seen.parent, []).append(pid)
        return children
