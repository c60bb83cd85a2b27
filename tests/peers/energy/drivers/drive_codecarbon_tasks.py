"""Two tasks of one codecarbon tracker that overlap: ``begin`` starts one, ``read`` the other, ``end`` stops both."""

from __future__ import annotations

import importlib
import time
from typing import Any

from peers.energy.drivers.talk import talk

codecarbon: Any = importlib.import_module("codecarbon")
trackers: list[Any] = []


def begin() -> None:
    options = {"country_iso_code": "USA", "save_to_file": False, "allow_multiple_runs": True, "log_level": "warning"}
    trackers.append(codecarbon.OfflineEmissionsTracker(**options))
    trackers[0].start_task("long")


def read() -> None:
    trackers[0].start_task("short")


def end() -> dict[str, float | None]:
    time.sleep(0.06)
    return {name: joules(trackers[0].stop_task(name)) for name in ("long", "short")}


def joules(task: Any) -> float | None:
    return None if task is None else float(task.cpu_energy) * 3.6e6


talk(begin, read, end)
