"""CPU time of the machine: what ``/proc/stat`` shows, and two counters of it that never run backwards.

Invariants:
    * neither counter falls. A fall of the kernel's count adds nothing to the time spent, and spoils no more than the
      time between the two readings around it;
    * the CPUs there were between two readings are those that the second shows, so a CPU that comes or goes is counted
      for the time it was there, but for the time between two readings;
    * a reading that failed is bridged by the next: the kernel's count holds what was spent meanwhile.
"""

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
class CpuReading:
    """What ``/proc/stat`` showed.

    Args:
        busy_jiffies: time in which a CPU ran something: user, nice, system, irq, softirq. Guests are inside user;
            idle, iowait and steal are not busy.
        cpus: logical CPUs online.
    """

    busy_jiffies: int
    cpus: int


class MachineCpu:
    """Reads ``/proc/stat``."""

    def __init__(self, proc_root: Path = Path("/proc")) -> None:
        self._path = str(proc_root / "stat")
        self._file = KeptFiles(_SIZE, most=1)

    def read(self) -> CpuReading | None:
        """The counts now, or None where the file cannot be read or is not what it should be."""
        return cpu_reading(self.text())

    def text(self) -> bytes:
        """The file as it stands now, for `cpu_reading`; empty where it cannot be read."""
        try:
            data = self._file.read(self._path)
            return data if len(data) < _SIZE else Path(self._path).read_bytes()
        except OSError:
            return b""

    def close(self) -> None:
        """Close what is open; a read opens it again."""
        self._file.close()


def cpu_reading(text: bytes) -> CpuReading | None:
    """What a text of ``/proc/stat`` says, or None where it is not what it should be."""
    try:
        name, user, nice, system, _idle, _iowait, irq, softirq = text.split(None, 8)[:8]
        busy_jiffies = int(user) + int(nice) + int(system) + int(irq) + int(softirq)
    except ValueError:
        return None
    cpus = text.count(b"\ncpu")
    return CpuReading(busy_jiffies, cpus) if name == b"cpu" and cpus > 0 else None


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """The machine's CPU time since an instant of no meaning.

    Args:
        busy_ns: that was spent.
        total_ns: that there was: logical CPUs online x time.
    """

    busy_ns: int
    total_ns: int


class CpuCounter:
    """Adds readings up."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._busy_ns = 0
        self._total_ns = 0

    def add(self, reading: CpuReading, at_ns: int) -> None:
        """Take a reading.

        Args:
            reading: the machine's.
            at_ns: when, on a clock that never steps back.
        """
        if self._last is not None:
            last_jiffies, last_ns = self._last
            self._busy_ns += max(0, reading.busy_jiffies - last_jiffies) * JIFFY_NS
            self._total_ns += reading.cpus * (at_ns - last_ns)
        self._last = (reading.busy_jiffies, at_ns)

    @property
    def times(self) -> CpuTimes:
        """As of the last reading."""
        return CpuTimes(self._busy_ns, self._total_ns)
