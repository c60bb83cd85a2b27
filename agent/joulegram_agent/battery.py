"""What a laptop draws from its batteries, from ``/sys/class/power_supply`` (ABI/testing/sysfs-class-power).

Power is ``power_now`` (microwatts), or ``current_now`` (microamperes) x ``voltage_now`` (microvolts). Some drivers give
a discharge below 0: the sign is left aside, as the status says which way it flows.

Invariants:
    * it counts while the status is ``Discharging``: at any other time what the machine draws does not come from the
      battery, and there is a reason instead of 0 W (D-10);
    * the batteries of mice and the like (scope ``Device``) are not the machine's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from joulegram_agent.reasons import READ_FAILED, why
from joulegram_agent.sensors import Quantity, Sensor, SensorKind

if TYPE_CHECKING:
    from pathlib import Path

NOT_DISCHARGING = "not_discharging"

_UW_UA_UV = 1_000_000
_NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_TEXT_BYTES = 128


class BatteryProbe:
    """One battery; its files are opened at each read, as a battery can be taken out.

    Args:
        path: of its directory.
    """

    def __init__(self, path: Path) -> None:
        self.sensor = Sensor(f"battery/{path.name}", SensorKind.BATTERY, Quantity.POWER)
        self._path = path
        self._closed = False

    def read(self) -> int | str:
        if self._closed:
            return f"{READ_FAILED}: closed"
        try:
            status = _text(self._path / "status")
            if status != "Discharging":
                return f"{NOT_DISCHARGING}: got {status!r}, expected 'Discharging'"
            if (self._path / "power_now").exists():
                return abs(_number(self._path / "power_now"))
            return abs(_number(self._path / "current_now") * _number(self._path / "voltage_now")) // _UW_UA_UV
        except OSError as error:
            return why(error)
        except ValueError as error:
            return f"{READ_FAILED}: {error}"

    def close(self) -> None:
        self._closed = True


def battery_probes(sysfs_root: Path) -> list[BatteryProbe]:
    """A probe for each battery of the machine. Never raises: no power supply is no battery."""
    try:
        paths = sorted((sysfs_root / "class" / "power_supply").iterdir())
    except OSError:
        return []
    return [
        BatteryProbe(path) for path in paths if _said(path / "type") == "Battery" and _said(path / "scope") != "Device"
    ]


def _said(path: Path) -> str | None:
    try:
        return _text(path)
    except OSError:
        return None


def _number(path: Path) -> int:
    text = _text(path)
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"{path.name}: got {text!r}, expected a whole number")
    return int(text)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_TEXT_BYTES).decode("ascii", "replace").strip()
