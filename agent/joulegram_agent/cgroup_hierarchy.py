"""Which of a machine's cgroup hierarchies counts CPU time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_agent.container_ids import CPU_CONTROLLER

if TYPE_CHECKING:
    from pathlib import Path

_V1_NAMES = (CPU_CONTROLLER, "cpu,cpuacct", "cpuacct,cpu")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where CPU time is counted by cgroup.

    Args:
        version: ``v1`` or ``v2``; ``hybrid`` is v1's cpuacct beside a unified tree without it.
        root: folder of the root cgroup.
        file: that holds the count.
    """

    version: str
    root: Path
    file: str


def find_hierarchy(cgroup_root: Path) -> Hierarchy | None:
    """The hierarchy that counts CPU time: v1's cpuacct where it is mounted, else v2's; None where there is none.

    Containers of a hybrid machine are under v1's controllers; the unified tree beside them may lack their cgroups.
    """
    unified = next((path for path in (cgroup_root, cgroup_root / "unified") if _is_v2(path)), None)
    for path in (*(cgroup_root / name for name in _V1_NAMES), cgroup_root):
        if (path / "cpuacct.usage").is_file():
            return Hierarchy("v1" if unified is None else "hybrid", path.resolve(), "cpuacct.usage")
    return None if unified is None else Hierarchy("v2", unified, "cpu.stat")


def _is_v2(path: Path) -> bool:
    return (path / "cgroup.controllers").is_file() and (path / "cpu.stat").is_file()
