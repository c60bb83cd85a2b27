"""Chips under ``class/hwmon`` and batteries under ``class/power_supply``, with real symlinks as the kernel has them.

Told by Documentation/hwmon/sysfs-interface.rst, acpi_power_meter.rst and amd_energy.rst, and
Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulators.faulty_file import FaultyFile

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class SensorTree:
    """Builds the two classes under `root`, and drives their files.

    Args:
        root: becomes the sysfs root.
        faults: errno by the path of a file that is to refuse, for those who open through `open_file`.
    """

    root: Path
    faults: dict[Path, int] = field(default_factory=dict)
    opened: list[Path] = field(default_factory=list)

    def chip(self, name: str, device: str | None = None, **files: object) -> Path:
        """Add a chip; its files by name. Without a device it is a virtual one, as hwmon allows."""
        listed = self._class("hwmon")
        number = len(list(listed.iterdir()))
        parent = self.root / "devices" / (f"platform/{device}" if device else "virtual")
        path = parent / "hwmon" / f"hwmon{number}"
        path.mkdir(parents=True)
        if device is not None:
            (path / "device").symlink_to(os.path.relpath(parent, path))
        self._write(path, {"name": name, **files})
        (listed / path.name).symlink_to(os.path.relpath(path, listed))
        return path

    def amd_energy(self, cores: int, *sockets_uj: int) -> Path:
        """The driver: the cores' channels first, then the sockets'."""
        files: dict[str, object] = {}
        for number in range(cores):
            files[f"energy{number + 1}_label"] = f"Ecore{number:03}"
            files[f"energy{number + 1}_input"] = 1_000 + number
        for number, energy_uj in enumerate(sockets_uj):
            files[f"energy{cores + number + 1}_label"] = f"Esocket{number}"
            files[f"energy{cores + number + 1}_input"] = energy_uj
        return self.chip("amd_energy", "amd_energy.0", **files)

    def supply(self, name: str, **files: object) -> Path:
        """Add a power supply; its files by name."""
        listed = self._class("power_supply")
        path = self.root / "devices" / "LNXSYSTM:00" / name / "power_supply" / name
        path.mkdir(parents=True)
        self._write(path, files)
        (listed / name).symlink_to(os.path.relpath(path, listed))
        return path

    def open_file(self, path: Path) -> FaultyFile:
        """For probes: files that fail with the errno in `faults`."""
        self.opened.append(path)
        return FaultyFile(path, self.faults)

    def _class(self, name: str) -> Path:
        path = self.root / "class" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _write(self, path: Path, files: dict[str, object]) -> None:
        for name, value in files.items():
            (path / name).write_text(f"{value}\n")
