"""Sensors of power and energy under ``/sys/class/hwmon`` (Documentation/hwmon/sysfs-interface.rst).

Power is in microwatts (``powerN_average``, else ``powerN_input``), energy in microjoules (``energyN_input``). An ACPI
power meter, which is how a server's firmware or management controller (IPMI) shows the board, is the chip
``power_meter``: it measures the board (Documentation/hwmon/acpi_power_meter.rst). Of other chips it is not known what
their sensors hold.

Invariants:
    * a channel is one sensor: the mean over the chip's own interval where there is one, as a reading a second of what
      moves faster says little;
    * an id is made of the chip's name, its device and the channel; hwmon's numbers change from boot to boot;
    * a battery shows itself here too: it is left to `battery`. Cores of ``amd_energy`` lie in its sockets: left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_agent.powercap import CounterFile
from joulegram_agent.sensors import FileProbe, Quantity, Sensor, SensorKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from joulegram_agent.powercap import Counter

BOARD_CHIPS = frozenset({"power_meter"})

AMD_ENERGY = "amd_energy"
CORE_LABEL = re.compile(r"Ecore[0-9]+", re.ASCII)

_ENTRY = re.compile(r"hwmon([0-9]+)", re.ASCII)
_CHANNEL = re.compile(r"(power|energy)([0-9]+)_(average|input)", re.ASCII)
_TEXT_BYTES = 256


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of a chip that shows power or energy.

    Args:
        chip: the driver's name for the chip.
        device: the chip's place in the machine, as its bus names it; the entry itself where it has none.
        name: ``power1``, ``energy2``.
        label: the firmware's own words, or None.
        path: of the file to read.
        mean: whether power is a mean over the chip's interval.
    """

    chip: str
    device: str
    name: str
    label: str | None
    path: Path
    mean: bool

    @property
    def quantity(self) -> Quantity:
        return Quantity.POWER if self.name.startswith("power") else Quantity.ENERGY


def hwmon_root(sysfs_root: Path) -> Path:
    """Where the kernel lists the chips, as symlinks."""
    return sysfs_root / "class" / "hwmon"


def channels(sysfs_root: Path) -> tuple[Channel, ...]:
    """Every channel of power or energy, by chip in the order of their numbers. Never raises: no hwmon is no channel."""
    try:
        entries = [path for path in hwmon_root(sysfs_root).iterdir() if _ENTRY.fullmatch(path.name)]
    except OSError:
        return ()
    entries.sort(key=lambda path: int(path.name.removeprefix("hwmon")))
    return tuple(channel for path in entries for channel in _of_chip(path))


def hwmon_probes(sysfs_root: Path, open_file: Callable[[Path], Counter] = CounterFile) -> list[FileProbe]:
    """A probe for each channel that is to be shown.

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
        open_file: opens a file of it.
    """
    supplies = _names(sysfs_root / "class" / "power_supply")
    found: list[FileProbe] = []
    taken: set[str] = set()
    for channel in channels(sysfs_root):
        in_a_socket = channel.chip == AMD_ENERGY and CORE_LABEL.fullmatch(channel.label or "")
        if channel.chip in supplies or in_a_socket:
            continue
        sensor_id = f"hwmon/{channel.chip}/{channel.device}/{channel.name}"
        if sensor_id in taken:
            sensor_id += f"@{channel.path.parent.name}"
        taken.add(sensor_id)
        kind = SensorKind.BOARD if channel.chip in BOARD_CHIPS else SensorKind.OTHER
        found.append(FileProbe(Sensor(sensor_id, kind, channel.quantity, channel.label), channel.path, open_file))
    return found


def _of_chip(path: Path) -> list[Channel]:
    chip = _text(path / "name")
    if not chip:
        return []
    best: dict[tuple[str, int], tuple[Path, bool]] = {}
    # "average" sorts before "input".
    for file in sorted(_names(path)):
        match = _CHANNEL.fullmatch(file)
        if match is not None and not (match[1] == "energy" and match[3] == "average"):
            best.setdefault((match[1], int(match[2])), (path / file, match[3] == "average"))
    device = path / "device"
    place = device.resolve().name if device.exists() else path.name
    return [
        Channel(chip, place, f"{kind}{number}", _text(path / f"{kind}{number}_label") or None, file, mean)
        for (kind, number), (file, mean) in sorted(best.items())
    ]


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_TEXT_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""
