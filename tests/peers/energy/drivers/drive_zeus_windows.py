"""Two windows of zeus's `ZeusMonitor` that overlap: ``begin`` opens one, ``read`` the other, ``end`` closes both."""

from __future__ import annotations

import importlib
from typing import Any

from peers.energy.drivers.talk import talk

monitor: Any = importlib.import_module("zeus.monitor")
monitors: list[Any] = []


def begin() -> None:
    monitors.append(monitor.ZeusMonitor(gpu_indices=[]))
    monitors[0].begin_window("long")


def read() -> None:
    monitors[0].begin_window("short")


def end() -> dict[str, float]:
    return {name: joules(monitors[0].end_window(name)) for name in ("long", "short")}


def joules(window: Any) -> float:
    return float(sum([*window.cpu_energy.values(), *window.dram_energy.values()]))


if __name__ == "__main__":  # its processes import this file
    talk(begin, read, end)
