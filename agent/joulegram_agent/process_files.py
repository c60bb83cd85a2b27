"""What ``/proc/<pid>`` says of a process: its counts, its parent, its children, the container it runs in.

Source: proc(5), ``/proc/<pid>/stat`` (fields 4 ppid, 14 to 17 utime, stime, cutime, cstime, 22 starttime),
``/proc/<pid>/task/<tid>/children``, and cgroups(7), ``/proc/<pid>/cgroup``; clock_getcpuclockid(3).

A process that has not run since it was last read has spent nothing and waited for nobody. The clock of its CPU time
says so to the nanosecond at a tenth of what its file costs, so the file is read only where the clock moved.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_agent.container_ids import container_key, process_path
from joulegram_agent.kept import KeptFiles

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from pathlib import Path

    Clocks = tuple[list[int], list[int]]
    """Clocks, and where they stood in nanoseconds."""

_STAT_SIZE = 2_048
_LIST_SIZE = 4_096
"""A page: the kernel gives no more of a list at once, so what fills half of one may be less than all."""

_SIZE = 65_536
_MAX_KEYS = 4_096

_SCHEDULED = 2
"""The clock of what the scheduler gave a process: CPUCLOCK_SCHED of the kernel's posix-timers.h."""

_clock_ns = time.clock_gettime_ns


@dataclass(slots=True)
class Seen:
    """A process at one instant.

    Args:
        parent: its pid.
        started: jiffies from boot to its start; with the pid, who it is.
        jiffies: CPU time of its own and of the children it waited for, user and system.
        own_jiffies: of its own alone.
        threads: it has.
        root: the named process whose tree it is in; None once it left every tree.
        container: key of the container or pod it runs in.
    """

    parent: int
    started: int
    jiffies: int
    own_jiffies: int
    threads: int = 1
    root: int | None = None
    container: str | None = None


@dataclass(slots=True)
class _Kept:
    """A process whose file is open, and what it said when its clock stood at `ran_ns`."""

    path: str
    ran_ns: int | None
    seen: Seen


class ProcessFiles:
    """Reads the files of processes; what cannot be read is None or empty, as the process may have ended.

    Args:
        proc_root: ``/proc``, or where the host's is mounted.
    """

    def __init__(self, proc_root: Path) -> None:
        self._proc = str(proc_root)
        self._stats = KeptFiles(_STAT_SIZE)
        self._lists = KeptFiles(_LIST_SIZE)
        self._kept: dict[int, _Kept] = {}
        self._has_clocks = _is_own(self._proc)
        self._keys: dict[bytes, str | None] = {}

    def pids(self) -> list[int]:
        """Every process there is."""
        try:
            return [int(name) for name in os.listdir(self._proc) if name.isdecimal()]  # noqa: PTH208 - names are enough
        except OSError:
            return []

    def stat(self, pid: int, *, fresh: bool = False) -> Seen | None:
        """Its counts now, by a descriptor that is kept until the process is gone.

        Args:
            pid: whose.
            fresh: read the file even if the process has not run: its parent may have ended.
        """
        # The clock before the file: what runs in between makes the next look read again.
        ran_ns = _ran_ns(pid) if self._has_clocks else None
        kept = self._kept.get(pid)
        if kept is not None:
            if ran_ns is not None and ran_ns == kept.ran_ns and not fresh:
                return _copy(kept.seen)
            seen = self._parsed(kept.path)
            if seen is not None:
                kept.ran_ns, kept.seen = ran_ns, seen
                return _copy(seen)
            self._let_go(pid)  # it is gone; another may have its number
        path = f"{self._proc}/{pid}/stat"
        seen = self._parsed(path)
        if seen is None:
            return None
        self._kept[pid] = _Kept(path, ran_ns, seen)
        return _copy(seen)

    def rests(self, pid: int) -> bool:
        """Whether a process is known not to have run since it was last read."""
        kept = self._kept.get(pid)
        return kept is not None and kept.ran_ns is not None and _ran_ns(pid) == kept.ran_ns

    def clocks(self, pids: Iterable[int]) -> Clocks | None:
        """For `rest`: the clocks of processes and where they stood when these were read; None if one is unknown."""
        clocks: list[int] = []
        stood_ns: list[int] = []
        for pid in pids:
            kept = self._kept.get(pid)
            if kept is None or kept.ran_ns is None:
                return None
            clocks.append(_clock_of(pid))
            stood_ns.append(kept.ran_ns)
        return clocks, stood_ns

    def stat_once(self, pid: int) -> Seen | None:
        """As `stat`, without keeping anything open."""
        return _parse(_read(f"{self._proc}/{pid}/stat"))

    def keep_only(self, pids: Container[int]) -> None:
        """Close the files of all others."""
        for pid in [pid for pid in self._kept if pid not in pids]:
            self._let_go(pid)

    def lists_children(self, pid: int) -> bool:
        """Whether the kernel lists children; it must be built for it."""
        return os.access(f"{self._proc}/{pid}/task/{pid}/children", os.F_OK)

    def children(self, pid: int) -> list[int]:
        """Children by the kernel's own lists, one for each thread; those of a process that ended are orphans now."""
        folder = f"{self._proc}/{pid}/task"
        kept = self._kept.get(pid)
        if kept is not None and kept.seen.threads == 1:
            return _numbers(self._list(f"{folder}/{pid}/children"))
        try:
            threads = os.listdir(folder)  # noqa: PTH208 - names are enough
        except OSError:
            return []
        found: list[int] = []
        for thread in threads:
            found += _numbers(_read(f"{folder}/{thread}/children"))
        return found

    def container(self, pid: int) -> str | None:
        """Key of the container or pod it runs in now."""
        lines = self._list(f"{self._proc}/{pid}/cgroup")
        if lines not in self._keys:
            if len(self._keys) >= _MAX_KEYS:
                self._keys.clear()
            path = process_path(lines)
            self._keys[lines] = None if path is None else container_key(path)
        return self._keys[lines]

    def close(self) -> None:
        """Close what is open."""
        self._stats.close()
        self._lists.close()
        self._kept.clear()

    def _parsed(self, path: str) -> Seen | None:
        try:
            return _parse(self._stats.read(path))
        except OSError:
            return None

    def _let_go(self, pid: int) -> None:
        self._stats.let_go(self._kept.pop(pid).path)
        self._lists.let_go(f"{self._proc}/{pid}/task/{pid}/children")
        self._lists.let_go(f"{self._proc}/{pid}/cgroup")

    def _list(self, path: str) -> bytes:
        """A list, by a descriptor that is kept as long as its process is."""
        try:
            data = self._lists.read(path)
        except OSError:
            return b""
        return data if len(data) < _LIST_SIZE // 2 else _read(path)


def _is_own(proc: str) -> bool:
    """Whether this is the proc of our own processes' numbers, by which their clocks go."""
    try:
        return os.readlink(f"{proc}/self") == str(os.getpid())  # noqa: PTH115 - a name, not a path
    except OSError:
        return False


def rest(clocks: list[int], stood_ns: list[int]) -> bool:
    """Whether none of these processes has run, or ended, since it was read."""
    try:
        return list(map(_clock_ns, clocks)) == stood_ns
    except OSError:
        return False


def _clock_of(pid: int) -> int:
    return ~pid << 3 | _SCHEDULED


def _ran_ns(pid: int) -> int | None:
    """What a process ever ran, without its children; None where there is none of this number."""
    try:
        return _clock_ns(_clock_of(pid))
    except OSError:
        return None


def _parse(data: bytes) -> Seen | None:
    try:
        # The name in brackets may hold brackets and spaces; what follows the last bracket is fixed.
        fields = data[data.rindex(b")") + 1 :].split(None, 20)
        own = int(fields[11]) + int(fields[12])
        return Seen(int(fields[1]), int(fields[19]), own + int(fields[13]) + int(fields[14]), own, int(fields[17]))
    except (ValueError, IndexError):
        return None


def _copy(seen: Seen) -> Seen:
    return Seen(seen.parent, seen.started, seen.jiffies, seen.own_jiffies, seen.threads)


def _numbers(data: bytes) -> list[int]:
    return [int(word) for word in data.split() if word.isdigit()]


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts: list[bytes] = []
    try:
        while part := os.read(fd, _SIZE):  # the kernel gives lists a page at a time
            parts.append(part)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"".join(parts)
