"""A cgroup tree as the kernel shows it, v1, v2 or both, that keeps what each cgroup spent itself beside its counters.

Invariants:
    * a cgroup's count holds what its descendants spent, removed ones too;
    * a cgroup made again at a path that was used is another: its folder has another inode, and who has the file of the
      first open reads nothing from it (the kernel says ENODEV).

Told by Documentation/admin-guide/cgroup-v2.rst (``cpu.stat``), Documentation/admin-guide/cgroup-v1/cpuacct.rst
(``cpuacct.usage``) and cgroups(7) (``/proc/<pid>/cgroup``, and where the hierarchies are mounted).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from simulators.procfs import FakeProc

UID = "2c48913c-b29f-11e7-9350-020968147796"
STATIC_UID = "99dcb84d2a34f7e338778606703258c4"
IDS = tuple(f"{number:02x}" * 32 for number in range(1, 64))
"""Container ids."""

POD = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"
POD_CGROUPFS = f"kubepods/burstable/pod{UID}"


def in_pod(number: int) -> str:
    """Path of a container in `POD`, as containerd and systemd have it."""
    return f"{POD}/cri-containerd-{IDS[number]}.scope"


def in_docker(number: int) -> str:
    """Path of a container of docker under systemd."""
    return f"system.slice/docker-{IDS[number]}.scope"


@dataclass
class CgroupTree:
    """Builds the tree under `root`, which becomes the cgroup root, and drives it.

    Args:
        root: is made.
        version: ``v2``; ``v1`` with ``cpu,cpuacct`` and the links to it; ``hybrid``: that, and ``unified`` beside it.
        counts_itself: v2's root says how many cgroups there are, as kernels since 4.14 do.
    """

    root: Path
    version: str = "v2"
    used_ns: dict[str, int] = field(default_factory=dict)
    spent_ns: dict[str, int] = field(default_factory=dict)
    """What was ever spent in the cgroup at a path itself, whichever cgroup that was."""
    counts_itself: bool = True

    def __post_init__(self) -> None:
        self._removed = self.root.with_name(self.root.name + "-removed")
        self._removed.mkdir(parents=True)
        self.base = self.root
        if self.version != "v2":
            self.base = self.root / "cpu,cpuacct"
        self.base.mkdir(parents=True)
        if self.version != "v2":
            for name in ("cpu", "cpuacct"):
                (self.root / name).symlink_to("cpu,cpuacct")
        if self.version == "hybrid":
            (self.root / "unified").mkdir()
            (self.root / "unified" / "cgroup.controllers").write_text("\n")
            (self.root / "unified" / "cpu.stat").write_text("usage_usec 5\n")
        if self.version == "v2":
            (self.root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        self.used_ns[""] = 0
        self._write("")
        self._write_number()

    def create(self, path: str) -> None:
        """Make a cgroup, and those above it that are not there."""
        parent = path.rpartition("/")[0]
        if parent and parent not in self.used_ns:
            self.create(parent)
        (self.base / path).mkdir()
        self.used_ns[path] = 0
        self._write(path)
        self._write_number()

    def spend(self, path: str, nanos: int) -> None:
        """Processes of this cgroup spend CPU time."""
        self.spent_ns[path] = self.spent_ns.get(path, 0) + nanos
        while True:
            self.used_ns[path] += nanos
            self._write(path)
            if not path:
                return
            path = path.rpartition("/")[0]

    def remove(self, path: str) -> None:
        """A cgroup goes, with those below it; its folder is kept elsewhere so that its inode is not used again."""
        for below in [each for each in self.used_ns if each == path or each.startswith(f"{path}/")]:
            del self.used_ns[below]
            (self.base / below / self._file).write_bytes(b"")
        (self.base / path).rename(self._removed / str(len(list(self._removed.iterdir()))))
        self._write_number()

    def reset(self, path: str) -> None:
        """Root writes 0 into a count of v1."""
        self.used_ns[path] = 0
        self._write(path)

    def place(self, proc: FakeProc, pid: int, path: str) -> None:
        """Say in ``/proc/<pid>/cgroup`` that a process runs here."""
        v1, v2 = f"3:cpu,cpuacct:/{path}\n1:name=systemd:/{path}\n", f"0::/{path}\n"
        lines = {"v2": v2, "v1": v1, "hybrid": v1 + "0::/\n"}[self.version]
        (proc.root / str(pid) / "cgroup").write_text(lines)

    @property
    def _file(self) -> str:
        return "cpu.stat" if self.version == "v2" else "cpuacct.usage"

    def _write(self, path: str) -> None:
        used_ns = self.used_ns[path]
        text = f"{used_ns}\n"
        if self.version == "v2":
            text = f"usage_usec {used_ns // 1_000}\nuser_usec {used_ns // 2_000}\nsystem_usec 0\nnr_periods 0\n"
        (self.base / path / self._file).write_text(text)

    def _write_number(self) -> None:
        if self.version == "v2" and self.counts_itself:
            (self.base / "cgroup.stat").write_text(f"nr_descendants {len(self.used_ns) - 1}\nnr_dying_descendants 7\n")
