"""Which processor this is, and which of its online CPUs share an energy counter.

Invariants:
    * a place is a package, or a die where counters are per die; its id is the name powercap gives its zone, so
      a domain keeps its id whatever source reads it (``package-0``, ``package-0-die-1``);
    * a CPU is in one place at most: a counter is read on one CPU of its place, never on each (D-47).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

INTEL = "GenuineIntel"
AMD = "AuthenticAMD"
HYGON = "HygonGenuine"

MAX_CPUS = 65_536
"""More than any kernel is built for (8 192 today): a list that goes beyond is none."""

_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,6}", re.ASCII)
_CPUINFO_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Processor:
    """What ``/proc/cpuinfo`` says of the first CPU; empty and 0 where it says nothing, as on other architectures."""

    vendor: str
    family: int
    model: int

    def __str__(self) -> str:
        return f"{self.vendor or 'no vendor_id'} family {self.family:#x} model {self.model:#x}"

    @property
    def energy_by_die(self) -> bool:
        """Whether package energy is counted per die.

        Linux, arch/x86/events/rapl.c: AMD and Hygon count per package; of Intel's, Cascade Lake-AP counts per die, and
        the others have one die.
        """
        return self.vendor == INTEL


@dataclass(frozen=True, slots=True)
class Place:
    """CPUs that share the counters of a package or die.

    Args:
        id: as powercap names the zone.
        cpus: those online when it was made, ascending; never empty.
    """

    id: str
    cpus: tuple[int, ...]


def read_cpuinfo(proc_root: Path) -> dict[str, str]:
    """What ``/proc/cpuinfo`` says of the first CPU, by key. Never raises: what cannot be read is empty."""
    try:
        with (proc_root / "cpuinfo").open("rb") as file:
            text = file.read(_CPUINFO_BYTES).decode("ascii", "replace")
    except OSError:
        text = ""
    found: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        found[key.strip()] = value.strip()
    return found


def read_processor(proc_root: Path) -> Processor:
    """Vendor, family and model of the first CPU. Never raises: what is not said is empty or 0."""
    found = read_cpuinfo(proc_root)
    return Processor(found.get("vendor_id", ""), _number(found.get("cpu family")), _number(found.get("model")))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPUs of a list as the kernel writes it, ``0-3,8``, ascending.

    Raises:
        ValueError: it is no such list; the message quotes it.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < MAX_CPUS:
            raise ValueError(f"got {text[:64]!r}, expected a list of CPUs such as '0-3,8'")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def read_cpu_list(path: Path) -> tuple[int, ...]:
    """CPUs of a file that lists them; none where it cannot be read or is no list."""
    try:
        return parse_cpu_list(path.read_bytes().decode("ascii", "replace"))
    except (OSError, ValueError):
        return ()


def online_list(sysfs_root: Path) -> Path:
    """Where the kernel lists the CPUs that are online."""
    return sysfs_root / "devices" / "system" / "cpu" / "online"


def places(sysfs_root: Path, cpus: Iterable[int], *, by_die: bool) -> tuple[Place, ...]:
    """Group CPUs by package, or by die, sorted by number.

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
        cpus: those to group; one whose topology cannot be read, because it went offline, is left out.
        by_die: dies count on their own. As powercap does it, they are named only if some package has several.
    """
    grouped: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(cpus):
        topology = sysfs_root / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
        package = _read_number(topology / "physical_package_id")
        if package is None:
            continue
        # Kernels before 5.2 know no dies.
        die = (_read_number(topology / "die_id") or 0) if by_die else 0
        grouped.setdefault((package, die), []).append(cpu)
    several = len(grouped) > len({package for package, _ in grouped})
    return tuple(
        Place(f"package-{package}" + (f"-die-{die}" if several else ""), tuple(grouped[package, die]))
        for package, die in sorted(grouped)
    )


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_bytes().decode("ascii", "replace").strip()
    except OSError:
        return None
    return int(text) if _NUMBER.fullmatch(text) else None


def _number(text: str | None) -> int:
    return int(text) if text is not None and _NUMBER.fullmatch(text) else 0
