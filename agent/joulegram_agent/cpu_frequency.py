"""How fast the CPUs run, as a share of the fastest they can: from sysfs' cpufreq.

    share = mean over CPUs of scaling_cur_freq / cpuinfo_max_freq, at least `LOWEST_PPM`, at most 1

(Documentation/admin-guide/pm/cpufreq.rst.) It is read once a second at most, and of `MAX_CPUS` CPUs at most, spread
evenly: on some machines each read interrupts its CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_agent.cpu_topology import online_list, read_cpu_list

if TYPE_CHECKING:
    from pathlib import Path

WHOLE_PPM = 1_000_000
LOWEST_PPM = 100_000
"""No CPU runs slower than a tenth of its highest frequency and is busy."""

MAX_CPUS = 16
READ_NS = 1_000_000_000


class CpuFrequency:
    """Reads the share.

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
    """

    def __init__(self, sysfs_root: Path) -> None:
        cpus = read_cpu_list(online_list(sysfs_root))
        step = max(1, -(-len(cpus) // MAX_CPUS))
        root = sysfs_root / "devices" / "system" / "cpu"
        self._paths = [root / f"cpu{cpu}" / "cpufreq" for cpu in cpus[::step]]
        self._read_ns: int | None = None
        self._share_ppm: int | None = None

    def share_ppm(self, mono_ns: int) -> int | None:
        """Millionths, as of the last second; None where no CPU says both of its frequencies."""
        if self._read_ns is None or mono_ns - self._read_ns >= READ_NS:
            self._read_ns = mono_ns
            self._share_ppm = self._read()
        return self._share_ppm

    def _read(self) -> int | None:
        shares = []
        for path in self._paths:
            now_khz, most_khz = _khz(path / "scaling_cur_freq"), _khz(path / "cpuinfo_max_freq")
            if now_khz and most_khz:
                shares.append(now_khz * WHOLE_PPM // most_khz)
        if not shares:
            return None
        return min(WHOLE_PPM, max(LOWEST_PPM, sum(shares) // len(shares)))


def _khz(path: Path) -> int:
    """Kilohertz; 0 where there is no such number."""
    try:
        text = path.read_bytes()[:32].strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
