"""A machine whose energy is in model-specific registers: devices, topology and cpuinfo, driven by energies in units.

Invariants:
    * a register shows its place's count in units, modulo 2**32, on every CPU of the place;
    * `truth_units` counts the measured set only, from the moment the machine was made;
    * the flat files under ``dev/cpu/N/msr`` hold a register at the byte of its address, as the kernel's device does.
      AMD's neighbouring registers would overlap in a flat file: for them, and for faults, take `open_msr`.

Told by Linux arch/x86/kernel/msr.c (the device), Documentation/admin-guide/cputopology.rst (the tree) and
Documentation/ABI/stable/sysfs-devices-system-cpu.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from joulegram_agent.msr import MsrReader

if TYPE_CHECKING:
    from pathlib import Path

INTEL = {"unit": 0x606, "package": 0x611, "dram": 0x619, "core": 0x639, "uncore": 0x641, "psys": 0x64D}
AMD = {"unit": 0xC0010299, "package": 0xC001029B, "core": 0xC001029A}

AMD_MACHINE: dict[str, Any] = {
    "vendor": "AuthenticAMD",
    "family": 0x19,
    "model": 0x01,
    "shift": 16,
    "by_die": False,
    "dram": False,
}
"""Options of a machine of AMD's."""


class SimMsr:
    """Open registers of one CPU, that refuse as the machine's `faults` say."""

    def __init__(self, machine: MsrMachine, path: Path) -> None:
        self._machine = machine
        self._cpu = int(path.parent.name)
        machine.opened.append(self._cpu)
        machine.check(self._cpu, None)
        self._fd = os.open(path, os.O_RDONLY)

    def read(self, address: int) -> bytes:
        self._machine.check(self._cpu, address)
        return self._machine.register(self._cpu, address).to_bytes(8, "little")[: self._machine.read_bytes]

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class MsrMachine:
    """Builds ``dev``, ``sys`` and ``proc`` under `root` and drives the registers.

    Args:
        root: of the three trees.
        vendor: ``vendor_id`` of cpuinfo; None writes a cpuinfo of another architecture.
        packages: sockets.
        dies: of each package.
        cpus_per_die: logical CPUs of each die.
        by_die: every die has counters of its own; else the package has one.
        dram: DRAM counts.
        shift: n of the unit register's 2^-n J.
        start_units: every counter's first value.
        faults: errno by CPU, for opening (address None) and reading.
    """

    root: Path
    vendor: str | None = "GenuineIntel"
    family: int = errno.ENXIO
    model: int = 0x55
    packages: int = 1
    dies: int = 1
    cpus_per_die: int = 2
    by_die: bool = True
    dram: bool = True
    shift: int = 14
    start_units: int = 1_000
    read_bytes: int = 8
    faults: dict[tuple[int, int | None], int] = field(default_factory=dict)
    opened: list[int] = field(default_factory=list)
    truth_units: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.addresses = INTEL if self.vendor == "GenuineIntel" else AMD
        self.place_of: dict[int, str] = {}
        self._registers: dict[tuple[str, int], int] = {}
        # Numbers run across packages, as on many real machines: CPUs 0 and 1 are on different sockets.
        for _ in range(self.cpus_per_die):
            for package, die in product(range(self.packages), range(self.dies)):
                named = self.by_die and self.dies > 1
                self._make_cpu(f"package-{package}" + (f"-die-{die}" if named else ""), package, die)
        for place in set(self.place_of.values()):
            self._make_registers(place)
        self._write_cpuinfo()
        self.set_online(range(len(self.place_of)))
        self._write_devices()

    def open_msr(self, path: Path) -> SimMsr:
        """For `MsrReader`."""
        return SimMsr(self, path)

    def check(self, cpu: int, address: int | None) -> None:
        """Raise the fault set for opening, or for reading a register of, a CPU."""
        number = self.faults.get((cpu, address))
        if number is not None:
            raise OSError(number, os.strerror(number))

    def register(self, cpu: int, address: int) -> int:
        """What a CPU shows; EIO where the processor has no such register."""
        value = self._registers.get((self.place_of[cpu], address))
        if value is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return value

    def set_register(self, place: str, address: int, value: int) -> None:
        """Let a place show a value in bits 31:0."""
        self._registers[place, address] = self._registers.get((place, address), 0) >> 32 << 32 | value
        self._write_devices()

    def advance(self, units: dict[str, int]) -> None:
        """Spend energy in domains of the measured set; what overlaps them follows. Upper bits stay as noise."""
        for domain, count in units.items():
            place, _, kind = domain.partition("/")
            self.truth_units[domain] += count
            self._add(place, self.addresses[kind or "package"], count)
            for other in ("core", "uncore", "psys"):
                if other in self.addresses:
                    self._add(place, self.addresses[other], count // 2)
        self._write_devices()

    def set_online(self, cpus: range | list[int]) -> None:
        """Write the list of CPUs online; the devices of the others go, and their open ones answer ENXIO."""
        path = self.root / "sys" / "devices" / "system" / "cpu" / "online"
        path.write_text(",".join(str(cpu) for cpu in cpus) + "\n")
        for cpu in self.place_of:
            device = self.root / "dev" / "cpu" / str(cpu) / "msr"
            if cpu in cpus:
                device.touch()
                continue
            device.unlink(missing_ok=True)
            for address in (None, *self.addresses.values()):
                self.faults[cpu, address] = errno.ENXIO

    def unload(self) -> None:
        """The module is gone, and its devices with it."""
        for device in self.root.glob("dev/cpu/*/msr"):
            device.unlink()

    def _make_cpu(self, place: str, package: int, die: int) -> None:
        cpu = len(self.place_of)
        self.place_of[cpu] = place
        topology = self.root / "sys" / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "die_id").write_text(f"{die}\n")
        (topology / "core_id").write_text(f"{cpu // 2}\n")
        (self.root / "dev" / "cpu" / str(cpu)).mkdir(parents=True)

    def _make_registers(self, place: str) -> None:
        for kind, address in self.addresses.items():
            if kind == "unit":
                # Power in 1/8 W and time in 976 us around the energy unit, as Intel's read: 0xA0E03.
                self._registers[place, address] = 0xA0003 | self.shift << 8
            elif kind != "dram" or self.dram:
                # Bits above 31 are reserved: they may hold anything.
                self._registers[place, address] = 0xABCD << 32 | self.start_units
        self.truth_units[place] = 0
        if self.dram and "dram" in self.addresses:
            self.truth_units[f"{place}/dram"] = 0

    def _add(self, place: str, address: int, count: int) -> None:
        value = self._registers[place, address]
        self._registers[place, address] = value >> 32 << 32 | ((value + count) & 0xFFFF_FFFF)

    def _write_devices(self) -> None:
        if self.addresses is not INTEL:
            return
        for cpu, place in self.place_of.items():
            device = self.root / "dev" / "cpu" / str(cpu) / "msr"
            if device.exists():
                with device.open("r+b") as file:
                    for (owner, address), value in self._registers.items():
                        if owner == place:
                            file.seek(address)
                            file.write(value.to_bytes(8, "little"))

    def _write_cpuinfo(self) -> None:
        text = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n\n"
        if self.vendor is not None:
            one = f"vendor_id\t: {self.vendor}\ncpu family\t: {self.family}\nmodel\t\t: {self.model}\n"
            text = "\n".join(f"processor\t: {cpu}\n{one}" for cpu in self.place_of)
        (self.root / "proc").mkdir()
        (self.root / "proc" / "cpuinfo").write_text(text)


def reading(machine: MsrMachine) -> MsrReader:
    """A reader of the machine's registers, AMD's and faults too."""
    root = machine.root
    return MsrReader(root / "dev", root / "sys", root / "proc", open_msr=machine.open_msr)
