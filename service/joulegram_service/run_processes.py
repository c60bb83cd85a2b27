"""What each process of a command spent: its tree looked at twice a second, and the tree's energy split by CPU time.

Invariants:
    * no CPU time is counted twice: what the kernel adds to a parent when it waits for a child is the child's, as far
      as the child was seen; a child that was never seen is in the process that waited for it;
    * a process is its pid and its start time;
    * energy is the tree's, tick by tick as everywhere, idle left out; between the processes it goes by the CPU time
      of the whole run. Where the tree's energy is not known there is none here.

Names are those of the programs, without arguments, which may hold what must not be shown (S0-63); they are printed and
recorded nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from joulegram.window import TickLog
from joulegram_agent.cpu import JIFFY_NS
from joulegram_pipeline.errors import AgentError
from joulegram_pipeline.units import ns_to_s, uj_to_j

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from joulegram.window import WindowEnergy
    from joulegram_pipeline.energy import TickSource

LOOK_S = 0.5
MAX_ROWS = 10
"""Processes shown; the rest is summed up in one line."""

_TICKS_EVERY = 120
"""Looks between two questions for ticks: once a minute, of the ten that are kept."""


@dataclass(slots=True)
class _Process:
    """What was last seen of a process; jiffies are of its own and of the children it waited for."""

    pid: int
    parent: int
    started: int
    name: str
    own: int
    waited: int
    returned: int = 0
    """Of `waited`, what belongs to processes with a row of their own."""

    @property
    def total(self) -> int:
        return self.own + self.waited


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process of the tree.

    Args:
        pid: of it.
        name: of the program.
        cpu_ns: its own, and that of short-lived children it waited for.
        energy_uj: its part of the tree's energy; None where that is not known.
        share: of the tree's CPU time, 0 to 1.
    """

    pid: int
    name: str
    cpu_ns: int
    energy_uj: int | None
    share: float

    def to_json(self) -> dict[str, Any]:
        out = {"pid": self.pid, "name": self.name, "cpu_s": ns_to_s(self.cpu_ns), "share": self.share}
        return out if self.energy_uj is None else out | {"energy_j": uj_to_j(self.energy_uj)}


@dataclass
class ProcessTree:
    """Looks at a process and its descendants.

    Args:
        root: its pid.
        proc_root: ``/proc``, or where it is mounted.
        name: what the root is called where it ended before it was looked at.
    """

    root: int
    proc_root: Path = Path("/proc")
    name: str = "?"
    _alive: dict[int, _Process] = field(default_factory=dict)
    _ended: list[_Process] = field(default_factory=list)

    def look(self) -> None:
        """See who is there now, and settle who is not."""
        found = {process.pid: process for process in self._walk()}
        if self.root not in found:
            return  # it ended: `close` settles what is left
        before, self._alive = self._alive, found
        for pid, was in before.items():
            now = found.get(pid)
            if now is not None and now.started == was.started:
                now.returned = was.returned
        for pid, was in before.items():
            now = found.get(pid)
            if now is None or now.started != was.started:
                self._ended.append(was)
                heir = self._heir(was, before)
                still = self._read(pid)
                if heir is not None and (still is None or still.started != was.started):
                    heir.returned += was.total

    def close(self, root_cpu_ns: int) -> list[tuple[int, str, int]]:
        """After the root was waited for: pid, name and CPU time of every process seen, those with most first.

        Args:
            root_cpu_ns: of the root with all it waited for, as the kernel said when it was waited for.
        """
        rows = []
        for process in [*self._ended, *self._alive.values()]:
            if process.pid == self.root:
                root = process
                continue
            rows.append((process.pid, process.name, max(0, process.total - process.returned) * JIFFY_NS))
        if self.root not in self._alive:
            return [(self.root, self.name, root_cpu_ns)]
        left = root_cpu_ns - sum(cpu_ns for _, _, cpu_ns in rows)
        # A child that nobody waited for is in no sum: what the root was seen to spend itself is its own all the same.
        rows.append((self.root, root.name, max(left, root.own * JIFFY_NS)))
        return sorted(rows, key=lambda row: (-row[2], row[0]))

    def _heir(self, ended: _Process, before: dict[int, _Process]) -> _Process | None:
        """Who waited for it, or for its parent: the nearest ancestor that is still there."""
        parent = ended.parent
        for _ in range(len(before)):
            was, now = before.get(parent), self._alive.get(parent)
            if was is None:
                return None
            if now is not None and now.started == was.started:
                return now
            parent = was.parent
        return None

    def _walk(self) -> Iterable[_Process]:
        lists = (self.proc_root / str(self.root) / "task" / str(self.root) / "children").exists()
        below = {} if lists else self._scan()
        queue, seen = [self.root], set()
        while queue:
            pid = queue.pop()
            process = None if pid in seen else self._read(pid)
            if process is None:
                continue
            seen.add(pid)
            yield process
            queue += self._children(pid) if lists else below.get(pid, [])

    def _scan(self) -> dict[int, list[int]]:
        """Children by parent from every process there is: for kernels built without the lists."""
        below: dict[int, list[int]] = {}
        with contextlib.suppress(OSError):
            for path in self.proc_root.iterdir():
                process = self._read(int(path.name)) if path.name.isdigit() else None
                if process is not None:
                    below.setdefault(process.parent, []).append(process.pid)
        return below

    def _children(self, pid: int) -> list[int]:
        found: list[int] = []
        with contextlib.suppress(OSError, ValueError):
            for thread in (self.proc_root / str(pid) / "task").iterdir():
                found += [int(child) for child in (thread / "children").read_bytes().split()]
        return found

    def _read(self, pid: int) -> _Process | None:
        try:
            raw = (self.proc_root / str(pid) / "stat").read_bytes()
            head, _, tail = raw.rpartition(b")")
            fields = tail.split()
            name = head.partition(b"(")[2].decode("utf-8", "replace")
            user, system, waited_user, waited_system = (int(text) for text in fields[11:15])
            return _Process(
                pid, int(fields[1]), int(fields[19]), _plain(name), user + system, waited_user + waited_system
            )
        except (OSError, ValueError, IndexError):
            return None


class RunProcesses:
    """Watches the command of a run while it is entered.

    Args:
        pid: of the command.
        program: what it is called.
        source: of the ticks; the command is named there.
        start_ns: when the run began.
        proc_root: ``/proc``, or where it is mounted.
    """

    def __init__(
        self, pid: int, program: str, source: TickSource, start_ns: int, proc_root: Path = Path("/proc")
    ) -> None:
        self._source = source
        self._start_ns = start_ns
        self._tree = ProcessTree(pid, proc_root, _plain(program))
        self._log = TickLog(pid, start_ns)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch(), name="joulegram run processes")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def rows(self, root_cpu_ns: int, end_ns: int) -> tuple[list[ProcessRow], WindowEnergy]:
        """Every process seen, and the energy of the tree, once the ticks of its end are there."""
        await self._take_ticks()
        window = self._log.energy(self._start_ns, end_ns)
        spent = self._tree.close(root_cpu_ns)
        whole = sum(cpu_ns for _, _, cpu_ns in spent)
        out = []
        for pid, name, cpu_ns in spent:
            part = None if window.process_uj is None or not whole else window.process_uj * cpu_ns // whole
            out.append(ProcessRow(pid, name, cpu_ns, part, cpu_ns / whole if whole else 0.0))
        return out, window

    async def _watch(self) -> None:
        looks = 0
        while True:
            await asyncio.to_thread(self._tree.look)
            await asyncio.sleep(LOOK_S)
            looks += 1
            if looks % _TICKS_EVERY == 0:
                await self._take_ticks()

    async def _take_ticks(self) -> None:
        with contextlib.suppress(AgentError):  # the poller says it, and the energy will not cover all
            if not self._log.add(await self._source.ticks(self._log.after)):
                self._log.add(await self._source.ticks(0))


def table(rows: list[ProcessRow], window: WindowEnergy) -> list[str]:
    """The lines to print: a head, the largest processes, and what the figures are."""
    if not rows:
        return []
    out = [f"{'CPU s':>9} {'J':>9} {'share':>6}  process"]
    out += [
        f"{ns_to_s(row.cpu_ns):>9.2f} {_joules(row.energy_uj):>9} {100 * row.share:>4.0f} %  {row.name} ({row.pid})"
        for row in rows[:MAX_ROWS]
    ]
    if len(rows) > MAX_ROWS:
        rest = rows[MAX_ROWS:]
        out.append(f"{ns_to_s(sum(row.cpu_ns for row in rest)):>9.2f} in {len(rest)} more processes")
    method = "energy not known" if window.process_uj is None else f"{window.method.value}, by CPU time, idle left out"
    out.append(f"processes: {method}; children too short-lived to be seen are in the process that waited for them")
    return out


def _joules(energy_uj: int | None) -> str:
    return "?" if energy_uj is None else f"{uj_to_j(energy_uj):.3g}"


def _plain(text: str) -> str:
    """A name that cannot steer a terminal: a process may call itself anything."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
