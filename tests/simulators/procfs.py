"""A fake ``/proc`` and clocks that only move when told.

Told by Documentation/filesystems/proc.rst and proc(5): ``stat``, ``<pid>/stat`` (utime and stime, of the process and of
the children it waited for, and starttime), ``<pid>/task/<tid>/children``; and by
Documentation/admin-guide/sysctl/kernel.rst: ``random/boot_id``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_agent.processes import ProcessTrees

BOOT_ID = "0f1e2d3c-4b5a-4697-8899-aabbccddeeff"


class ManualClock:
    """Wall, monotonic and boot clock; `advance` moves all, `step_wall` the wall, `suspend` all but the monotonic."""

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000, mono_ns: int = 5_000_000_000) -> None:
        self._wall_ns = wall_ns
        self._mono_ns = mono_ns
        self._asleep_ns = 0

    def wall_ns(self) -> int:
        return self._wall_ns

    def mono_ns(self) -> int:
        return self._mono_ns

    def boot_ns(self) -> int:
        return self._mono_ns + self._asleep_ns

    def suspend(self, nanos: int) -> None:
        """The machine sleeps; the wall clock is right again when it wakes."""
        self._wall_ns += nanos
        self._asleep_ns += nanos

    def advance(self, nanos: int) -> None:
        self._wall_ns += nanos
        self._mono_ns += nanos

    def step_wall(self, nanos: int) -> None:
        self._wall_ns += nanos


@dataclass
class SimProcess:
    """One process: jiffies of its own and of the children it waited for."""

    pid: int
    parent: int
    started: int
    own: int = 0
    waited: int = 0
    name: str = "work"
    threads: int = 1


@dataclass
class FakeProc:
    """Writes ``stat``, the boot id and ``<pid>/stat`` under `root`.

    Args:
        root: becomes the proc root.
        cpus: logical CPUs.
        children_lists: also write ``<pid>/task/<pid>/children``, as kernels built for it do.
    """

    root: Path
    cpus: int = 2
    children_lists: bool = False
    user: int = 1_000
    idle: int = 50_000
    steal: int = 0
    processes: dict[int, SimProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = self.root / "sys" / "kernel" / "random"
        random.mkdir(parents=True)
        (random / "boot_id").write_text(f"{BOOT_ID}\n")
        self.write_stat()

    def write_stat(self) -> None:
        """Write the machine's line and one for each CPU."""
        fields = f"{self.user} 0 0 {self.idle} 7 0 0 {self.steal} 0 0"
        lines = [
            f"cpu  {fields}",
            *(f"cpu{n} {fields}" for n in range(self.cpus)),
            "intr 12 0",
            "ctxt 99",
            "",
        ]
        (self.root / "stat").write_text("\n".join(lines))

    def spend(self, busy_jiffies: int, idle_jiffies: int = 0) -> None:
        """Let the machine's counts grow."""
        self.user += busy_jiffies
        self.idle += idle_jiffies
        self.write_stat()

    def start(self, pid: int, parent: int = 1, started: int = 100, own: int = 0, name: str = "work") -> None:
        """A process appears."""
        self.processes[pid] = SimProcess(pid, parent, started, own=own, name=name)
        self._write(pid)
        self._write_children()

    def work(self, pid: int, jiffies: int) -> None:
        """A process spends CPU time."""
        self.processes[pid].own += jiffies
        self._write(pid)

    def rewrite(self, pid: int) -> None:
        """Show what was changed of a process by hand."""
        self._write(pid)
        self._write_children()

    def end(self, pid: int, *, waited: bool = True) -> None:
        """A process is gone: its parent waited for it or not; its children go to init."""
        ended = self.processes.pop(pid)
        for child in self.processes.values():
            if child.parent == pid:
                child.parent = 1
                self._write(child.pid)
        parent = self.processes.get(ended.parent)
        if waited and parent is not None:
            parent.waited += ended.own + ended.waited
            self._write(parent.pid)
        stat = self.root / str(pid) / "stat"
        stat.write_bytes(b"")  # who has it open reads nothing from now on: the kernel says ESRCH
        stat.unlink()
        self._write_children()

    def _write(self, pid: int) -> None:
        process = self.processes[pid]
        fields = ["0"] * 50
        fields[0], fields[1], fields[19] = "S", str(process.parent), str(process.started)
        fields[17] = str(process.threads)
        # Both halves of each count are used, so that a reader who forgets system time is found out.
        fields[11], fields[12] = str(process.own - process.own // 2), str(process.own // 2)
        fields[13], fields[14] = str(process.waited - process.waited // 2), str(process.waited // 2)
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "stat").write_text(f"{pid} ({process.name}) {' '.join(fields)}\n")

    def _write_children(self) -> None:
        if not self.children_lists:
            return
        for pid in self.processes:
            below = [str(child.pid) for child in self.processes.values() if child.parent == pid]
            task = self.root / str(pid) / "task" / str(pid)
            task.mkdir(parents=True, exist_ok=True)
            (task / "children").write_text(" ".join(below))


def spent_in(trees: ProcessTrees, *, look: bool = True) -> dict[int, int]:
    """Read the trees; what they spent since they were last read here."""
    trees.read(look=look)
    return trees.take_spent()
