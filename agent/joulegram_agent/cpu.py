"""CPU time of the machine from ``/proc/stat``, as a counter that never runs backwards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from joulegram_agent.kept import KeptFiles
from joulegram_pipeline.units import NS_PER_S

JIFFY_NS = NS_PER_S // os.sysconf("SC_CLK_TCK")
"""Nanoseconds of one unit of /proc: 10 ms nearly everywhere."""


_SIZE = 16_384
"""Holds the lines of some 150 CPUs and what stands behind them on most machines; a larger file is read by its path."""


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """The machine's CPU time since an instant of no meaning.

    Args:
        busy_ns: time in which a CPU ran something: user, nice, system, irq, softirq. Guests are inside user;
            idle, iowait and steal are not busy.
        cpus: logical CPUs online.
    """

    busy_ns: int
    cpus: int


class MachineCpu:
    """Reads ``/proc/stat``.

    The kernel's counts may step back (a CPU that goes offline takes its idle time along, and some kernels let
    iowait fall); a fall is clamped: it adds nothing, and counting goes on from the lower value.
    """

    def __init__(self, proc_root: Path = Path("/proc")) -> None:
        self._path = str(proc_root / "stat")
        self._file = KeptFiles(_SIZE, most=1)
        self._last_jiffies: int | None = None
        self._busy_ns = 0

    def read(self) -> CpuTimes | None:
        """The counts now, or None where the file cannot be read or is not what it should be."""
        try:
            data = self._read()
            name, user, nice, system, _idle, _iowait, irq, softirq = data.split(None, 8)[:8]
            jiffies = int(user) + int(nice) + int(system) + int(irq) + int(softirq)
        except (OSError, ValueError):
            return None
        if name != b"cpu":
            return None
        cpus = data.count(b"\ncpu")
        if cpus < 1:
            return None
        if self._last_jiffies is not None:
            self._busy_ns += max(0, jiffies - self._last_jiffies) * JIFFY_NS
        self._last_jiffies = jiffies
        return CpuTimes(self._busy_ns, cpus)

    def close(self) -> None:
        """Close what is open; a read opens it again."""
        self._file.close()

    def _read(self) -> bytes:
        data = self._file.read(self._path)
        return data if len(data) < _SIZE else Path(self._path).read_bytes()
