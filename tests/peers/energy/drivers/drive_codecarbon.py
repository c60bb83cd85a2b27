"""codecarbon's `OfflineEmissionsTracker` with its defaults, but that each measurement is made when we say so."""

from __future__ import annotations

import importlib
import time
from typing import Any

from peers.energy.drivers.talk import talk

tracker_module: Any = importlib.import_module("codecarbon")
trackers: list[Any] = []


def begin() -> None:
    tracker = tracker_module.OfflineEmissionsTracker(
        country_iso_code="USA",
        save_to_file=False,
        allow_multiple_runs=True,
        measure_power_secs=1_000_000,
        log_level="warning",
    )
    tracker.start()
    trackers.append(tracker)


def read() -> None:
    time.sleep(0.06)  # it leaves out a measurement that follows another within 0.05 s
    trackers[0].flush()


def end() -> float:
    time.sleep(0.06)
    trackers[0].stop()
    return float(trackers[0].final_emissions_data.cpu_energy) * 3.6e6


talk(begin, read, end)
