"""zeus's `ZeusMonitor` over every CPU it finds: one window around the job.

Processes of zeus's own look for wraps once a second in real time, one for each counter; so the window begins when they
look, and before it ends they get time to look. A user does not wait: with ZEUS_PATIENCE_S=0 neither does this.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from peers.energy.drivers.talk import talk

monitor: Any = importlib.import_module("zeus.monitor")
PATIENCE_S = float(os.environ.get("ZEUS_PATIENCE_S", "2.5"))
NANOSLEEP = {"230", "115"}  # clock_nanosleep, of x86-64 and of arm64
monitors: list[Any] = []


def begin() -> None:
    monitors.append(monitor.ZeusMonitor(gpu_indices=[]))
    monitors[0].begin_window("job")
    until = time.monotonic() + 60
    while not all(map(sleeps, multiprocessing.active_children())):
        if time.monotonic() > until:
            raise TimeoutError("zeus's processes do not look")
        time.sleep(0.05)


def sleeps(process: Any) -> bool:
    """Whether a process waits for its next look, and so has had its first."""
    return Path(f"/proc/{process.pid}/syscall").read_text().split()[0] in NANOSLEEP


def read() -> None:
    """It reads at the beginning and at the end only."""


def end() -> float:
    time.sleep(PATIENCE_S)
    result = monitors[0].end_window("job")
    if result.cpu_energy is None:
        raise LookupError("no CPU energy")
    return float(sum([*result.cpu_energy.values(), *(result.dram_energy or {}).values()]))


if __name__ == "__main__":  # its processes import this file
    talk(begin, read, end)
