"""pyJoules as its page says: an `EnergyMeter` over every package and DRAM that it finds."""

from __future__ import annotations

import importlib
from typing import Any

from peers.energy.drivers.talk import talk

rapl: Any = importlib.import_module("pyJoules.device.rapl_device")
factory: Any = importlib.import_module("pyJoules.device.device_factory")
energy_meter: Any = importlib.import_module("pyJoules.energy_meter")
meters: list[Any] = []


def begin() -> None:
    device = rapl.RaplDevice
    domains = device.available_package_domains() + device.available_dram_domains()
    meters.append(energy_meter.EnergyMeter(factory.DeviceFactory.create_devices(domains)))
    meters[0].start(tag="job")


def read() -> None:
    """It reads at the beginning and at the end only."""


def end() -> float:
    meters[0].stop()
    return float(sum(uj for sample in meters[0].get_trace() for uj in sample.energy.values())) / 1e6


talk(begin, read, end)
