"""Every sensor beside the measured set that a machine shows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.battery import battery_probes
from joulegram_agent.hwmon import hwmon_probes
from joulegram_agent.ipmi import ipmi_probes
from joulegram_agent.powercap import CounterFile
from joulegram_agent.powercap_zones import psys_zones
from joulegram_agent.sensors import MAX_SENSORS, FileProbe, Probe, Quantity, Sensor, SensorKind, Sensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_agent.powercap import Counter
    from joulegram_pipeline.clock import BootClock

log = logging.getLogger(__name__)


def open_sensors(
    sysfs_root: Path = Path("/sys"),
    dev_root: Path = Path("/dev"),
    clock: BootClock | None = None,
    open_file: Callable[[Path], Counter] = CounterFile,
) -> Sensors:
    """Open psys, batteries, hwmon and IPMI; a machine without any gives none, and nothing is an error.

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
        dev_root: ``/dev``, or where the host's is mounted.
        clock: the clocks.
        open_file: opens a file of sysfs.
    """
    probes: list[Probe] = [
        FileProbe(Sensor(name, SensorKind.PSYS, Quantity.ENERGY, max_range_uj=most_uj), path / "energy_uj", open_file)
        for name, path, most_uj in psys_zones(sysfs_root)
    ]
    probes += battery_probes(sysfs_root)
    probes += hwmon_probes(sysfs_root, open_file)
    # Last: the others are read by then, however long a controller takes.
    probes += ipmi_probes(dev_root)
    sensors = Sensors(probes, clock)
    if sensors.left_out:
        log.warning("%d sensors are not shown: expected at most %d", sensors.left_out, MAX_SENSORS)
    return sensors
