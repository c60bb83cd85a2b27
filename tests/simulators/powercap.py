"""A powercap tree as the kernel lays it out, driven by energies, that keeps the truth beside its counters.

Invariants:
    * a counter shows its energy modulo ``max_energy_range_uj + 1``;
    * zones agree: core and uncore lie inside their package, psys holds packages and DRAM, mirrors are equal;
    * `truth_uj` counts the measured set only, in whole microjoules, from the moment the tree was made.

Told by Documentation/power/powercap/powercap.rst (the tree and its files), Linux drivers/powercap/powercap_sys.c (ids
in hexadecimal) and intel_rapl_common.c (names, units and ranges).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_agent.powercap import CounterFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INTEL_RANGE_UJ = 262_143_328_850
DRAM_RANGE_UJ = 65_712_999_613
AMD_RANGE_UJ = 65_532_610_987
_WIDTH = 20


@dataclass
class SimZone:
    """One zone's directory and its counter."""

    path: Path
    entry: str
    max_range_uj: int
    counter_uj: int

    def write(self) -> None:
        """One write of fixed width, so that a reader in another process sees the old value or the new one."""
        fd = os.open(self.path / "energy_uj", os.O_WRONLY | os.O_CREAT, 0o400)
        try:
            os.pwrite(fd, f"{self.counter_uj}".ljust(_WIDTH, "\n").encode(), 0)
        finally:
            os.close(fd)

    def add(self, energy_uj: int) -> None:
        self.counter_uj = (self.counter_uj + energy_uj) % (self.max_range_uj + 1)
        self.write()


class FaultyCounter(CounterFile):
    """A counter of the tree that refuses as the tree's `faults` say, which root could not be made to see."""

    def __init__(self, tree: PowercapTree, path: Path) -> None:
        self._tree = tree
        self._path = path
        tree.check(path)
        super().__init__(path)

    def read(self) -> bytes:
        self._tree.check(self._path)
        return super().read()


@dataclass
class PowercapTree:
    """Builds the tree under `root` and drives it.

    Args:
        root: becomes the sysfs root: ``root/class/powercap``, ``root/devices/virtual/powercap``.
        packages: sockets.
        first_index: number of the first zone; 9 makes ids run over ``intel-rapl:9`` to ``intel-rapl:a``.
        reverse: the first zone is the last package, as real machines have it.
        dies: zones of one package; above 1 they are named ``package-N-die-M``.
        mirrored_dies: every die of a package shows the same counter (older kernels on AMD).
        core: a core sub-zone (on AMD: of one core only).
        uncore: an uncore sub-zone.
        dram: a DRAM sub-zone of every package.
        psys: a top-level psys zone, in front of the packages.
        mmio: ``intel-rapl-mmio:0`` shows package 0 again.
        start_uj: every counter's first value.
        opened: the files that `open_counter` opened.
    """

    root: Path
    packages: int = 1
    first_index: int = 0
    reverse: bool = False
    dies: int = 1
    mirrored_dies: bool = False
    core: bool = True
    uncore: bool = False
    dram: bool = True
    psys: bool = False
    mmio: bool = False
    package_range_uj: int = INTEL_RANGE_UJ
    dram_range_uj: int = DRAM_RANGE_UJ
    start_uj: int = 1_000_000
    truth_uj: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    opened: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._zones: dict[str, SimZone] = {}
        self._inside: dict[str, list[tuple[str, int]]] = {}
        self._class = self.root / "class" / "powercap"
        self._class.mkdir(parents=True)
        control = self.root / "devices" / "virtual" / "powercap" / "intel-rapl"
        control.mkdir(parents=True)
        (control / "enabled").write_text("1\n")
        (self._class / "intel-rapl").symlink_to(os.path.relpath(control, self._class))
        index = self.first_index
        if self.psys:
            self._zone("psys", f"intel-rapl:{index:x}", "psys", self.package_range_uj)
            index += 1
        numbers = range(self.packages)
        for package in reversed(numbers) if self.reverse else numbers:
            for die in range(self.dies):
                self._package(package, die, f"intel-rapl:{index:x}")
                index += 1
        if self.mmio:
            self._zone("mmio", "intel-rapl-mmio:0", "package-0", self.package_range_uj)

    @property
    def domain_ids(self) -> tuple[str, ...]:
        """The measured set, as an agent should find it."""
        return tuple(sorted(self.truth_uj))

    def open_counter(self, path: Path) -> FaultyCounter:
        """For `PowercapReader`: counters that fail with the errno in `faults`, by domain id."""
        counter = FaultyCounter(self, path)
        self.opened.append(path)
        return counter

    def check(self, path: Path) -> None:
        """Raise the fault set for the zone of this ``energy_uj``."""
        for domain, number in self.faults.items():
            if self._zones[domain].entry == path.parent.name:
                raise OSError(number, os.strerror(number), str(path))

    def advance(self, energy_uj: Mapping[str, int]) -> None:
        """Spend energy in domains of the measured set; every zone that contains or mirrors it follows."""
        for domain, energy in energy_uj.items():
            self.truth_uj[domain] += energy
            self._zones[domain].add(energy)
            for inside, percent in self._inside.get(domain, []):
                self._zones[inside].add(energy * percent // 100)
            if self.psys:
                self._zones["psys"].add(energy)
            if self.mmio and domain == "package-0":
                self._zones["mmio"].add(energy)

    def advance_watts(self, watts: Mapping[str, int], millis: int) -> None:
        """Spend power for a time: W x ms are mJ."""
        self.advance({domain: power * millis * 1_000 for domain, power in watts.items()})

    def counter_uj(self, domain: str) -> int:
        """What a counter shows."""
        return self._zones[domain].counter_uj

    def reset(self, domain: str, counter_uj: int = 0) -> None:
        """Set a counter anew, as a reload of the driver does."""
        self._zones[domain].counter_uj = counter_uj
        self._zones[domain].write()

    def garble(self, domain: str, text: bytes) -> None:
        """Put other bytes where the counter is read, until the next `advance`."""
        path = self._zones[domain].path / "energy_uj"
        with path.open("r+b") as handle:
            handle.truncate(0)
            handle.write(text)

    def mask(self, host: Path) -> None:
        """Hide the zones from who looks at `root`, as container runtimes do (GHSA-jq35-85cj-fj4p).

        The class goes on to list them, and over the devices lies an empty directory. `host` becomes a mount of the
        host's own sysfs, where they are as before.
        """
        devices = self.root / "devices" / "virtual" / "powercap"
        seen = host / devices.relative_to(self.root)
        seen.parent.mkdir(parents=True)
        devices.rename(seen)
        devices.mkdir()
        shutil.copytree(self._class, host / "class" / "powercap", symlinks=True)
        for zone in self._zones.values():
            zone.path = host / zone.path.relative_to(self.root)

    def zone_path(self, domain: str) -> Path:
        """The directory of a zone, by domain id, or by ``<domain>/core``, ``psys``, ``mmio``."""
        return self._zones[domain].path

    def _package(self, package: int, die: int, entry: str) -> None:
        name = f"package-{package}" + (f"-die-{die}" if self.dies > 1 else "")
        original = f"package-{package}-die-0"
        is_mirror = self.mirrored_dies and die > 0
        key = self._zone(name, entry, name, self.package_range_uj)
        if is_mirror:
            self._inside[original] = [*self._inside.get(original, []), (key, 100)]
        else:
            self.truth_uj[key] = 0
        sub = 0
        for wanted, part, percent in ((self.core, "core", 60), (self.uncore, "uncore", 10)):
            if wanted:
                self._zone(f"{name}/{part}", f"{entry}:{sub:x}", part, self.package_range_uj)
                self._inside[name] = [*self._inside.get(name, []), (f"{name}/{part}", percent)]
                sub += 1
        if self.dram:
            self.truth_uj[self._zone(f"{name}/dram", f"{entry}:{sub:x}", "dram", self.dram_range_uj)] = 0

    def _zone(self, key: str, entry: str, name: str, max_range_uj: int) -> str:
        control = entry.partition(":")[0]
        parents = entry.split(":")[1:]
        path = self.root / "devices" / "virtual" / "powercap" / control
        for depth in range(1, len(parents) + 1):
            path /= control + ":" + ":".join(parents[:depth])
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "max_energy_range_uj").write_text(f"{max_range_uj}\n")
        zone = SimZone(path, entry, max_range_uj, self.start_uj % (max_range_uj + 1))
        zone.write()
        link = self._class / entry
        link.symlink_to(os.path.relpath(path, self._class))
        self._zones[key] = zone
        return key
