"""What the host's counters show at one moment: energy and bytes, for a look before and after a piece of work.

Invariants:
    * a counter that does not exist or cannot be read is None, never 0 (D-32);
    * bytes are integers, of the whole host and not of this process (D-31, D-34, C-13).
"""

# ruff: noqa: PLC0415 - psutil may be absent

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from joulegram_agent.powercap import read_intel_rapl_energy_joules

if TYPE_CHECKING:
    from pathlib import Path

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The host's counters at one moment (S0-22).

    Args:
        t: seconds on the monotonic clock, so that a difference is a duration whatever the wall clock does (D-29).
        energy_j: joules of packages and DRAM as the counters show them. Each counter wraps on its own, so a
            difference is for a look only; what is recorded comes from the agent (D-02).
        net_sent: bytes, all interfaces.
        net_recv: bytes, all interfaces.
        disk_read: bytes, all disks.
        disk_write: bytes, all disks.
    """

    t: float
    energy_j: float | None
    net_sent: int | None
    net_recv: int | None
    disk_read: int | None
    disk_write: int | None


def take_snapshot(sysfs_root: Path | None = None) -> Snapshot:
    """Read every counter once; bytes are None where psutil is not installed (S0-16).

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
    """
    energy_j = read_intel_rapl_energy_joules() if sysfs_root is None else read_intel_rapl_energy_joules(sysfs_root)
    sent, received = _bytes("net_io_counters", "bytes_sent", "bytes_recv")
    read, written = _bytes("disk_io_counters", "read_bytes", "write_bytes")
    return Snapshot(time.monotonic(), energy_j, sent, received, read, written)


def delta(a: Number | None, b: Number | None) -> Number | None:
    """``b - a``, or None if either is None (S0-23).

    It is negative where a counter was reset in between: such a difference is not known, and not 0 (S0-30, C-11).
    """
    return None if a is None or b is None else b - a


def _bytes(counters: str, *fields: str) -> list[int | None]:
    """Fields of a psutil reading; all None where there is no psutil or no such counter."""
    try:
        import psutil

        found = getattr(psutil, counters)()
    except (ImportError, OSError, NotImplementedError, RuntimeError):
        found = None  # psutil says in each of these ways that a system has no such counter
    return [None if found is None else int(getattr(found, field)) for field in fields]
