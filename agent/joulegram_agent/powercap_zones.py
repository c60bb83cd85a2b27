"""Which powercap zones make up the measured set, told from a sysfs tree by names, never by numbers.

Invariants:
    * a zone is known by its `name` file; the number in its entry is hexadecimal and arbitrary (psys may be
      any);
    * in: packages (``package-N``, ``package-N-die-M``) and DRAM. Out: core and uncore, which are inside a
      package, and psys, which contains packages (D-03, D-04, D-48); psys is shown beside (`psys_zones`);
    * ``intel-rapl-mmio`` shows the package a second time: its zone counts only where ``intel-rapl`` has none
      for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import Domain, DomainKind

if TYPE_CHECKING:
    from pathlib import Path

# The kernel prints entries as "%s:%x" (S3-06); the 11th zone is intel-rapl:a.
_ENTRY = re.compile(r"^(intel-rapl(?:-mmio)?)((?::[0-9a-f]+)+)$", re.ASCII)
_PACKAGE = re.compile(r"^package-([0-9]+)(-die-[0-9]+)?$", re.ASCII)
_PSYS = re.compile(r"^psys(-[0-9]+)?$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Zone:
    """One powercap zone of the measured set.

    Args:
        domain: id, kind and the counter's range; the range is None where it could not be read.
        path: the zone's directory, through its class entry.
        package: number of the package it belongs to, None for DRAM beside packages.
        die: whether it names a die; dies of one package may be mirrors of each other.
    """

    domain: Domain
    path: Path
    package: int | None
    die: bool


def powercap_root(sysfs_root: Path) -> Path:
    """Where the kernel lists every zone, as symlinks."""
    return sysfs_root / "class" / "powercap"


def measured_zones(sysfs_root: Path) -> tuple[Zone, ...]:
    """The zones that are counted, sorted by domain id.

    Raises:
        OSError: the directory of zones cannot be listed.
    """
    names: dict[str, str] = {}
    paths: dict[str, Path] = {}
    for path in powercap_root(sysfs_root).iterdir():
        if _ENTRY.match(path.name):
            name = _read_text(path / "name")
            if name is not None:
                names[path.name] = name
                paths[path.name] = path
    chosen: dict[str, Zone] = {}
    packages_by_msr: set[int] = set()
    # "intel-rapl:" sorts before "intel-rapl-mmio:" here, so that a mirror always finds its original.
    for entry in sorted(names, key=lambda entry: (entry.startswith("intel-rapl-mmio"), entry)):
        zone = _zone(entry, names, paths[entry])
        if zone is None or zone.domain.id in chosen:
            continue
        is_package = zone.package is not None and zone.domain.kind is DomainKind.CPU
        if is_package and entry.startswith("intel-rapl-mmio") and zone.package in packages_by_msr:
            continue
        if is_package and zone.package is not None and not entry.startswith("intel-rapl-mmio"):
            packages_by_msr.add(zone.package)
        chosen[zone.domain.id] = zone
    return tuple(sorted(chosen.values(), key=lambda zone: _natural(zone.domain.id)))


def masked_entry(sysfs_root: Path) -> Path | None:
    """An entry that leads nowhere, as where a container's runtime hides ``devices/virtual/powercap``; None if all lead.

    The runtime leaves the class as it is, which lists the host's zones: so this is told from a machine without any.
    """
    try:
        entries = sorted(powercap_root(sysfs_root).iterdir())
    except OSError:
        return None
    return next((entry for entry in entries if entry.is_symlink() and not entry.exists()), None)


def psys_zones(sysfs_root: Path) -> tuple[tuple[str, Path, int | None], ...]:
    """Name, directory and range of each psys zone. Never raises: no powercap is no psys."""
    found: dict[str, tuple[str, Path, int | None]] = {}
    try:
        paths = sorted(powercap_root(sysfs_root).iterdir())
    except OSError:
        return ()
    for path in paths:
        name = _read_text(path / "name") if _ENTRY.match(path.name) else None
        if name is not None and _PSYS.match(name):
            found.setdefault(name, (name, path, _range(path / "max_energy_range_uj")))
    return tuple(found[name] for name in sorted(found))


def _zone(entry: str, names: dict[str, str], path: Path) -> Zone | None:
    name = names[entry]
    parent = names.get(entry.rpartition(":")[0])
    owner = _PACKAGE.match(name if name != "dram" else parent or "")
    if name == "dram":
        domain_id, kind = (f"{parent}/dram" if owner else "dram"), DomainKind.DRAM
        if parent is not None and owner is None:
            return None  # DRAM of psys: what it covers is not known to lie outside the packages' DRAM
    elif owner is not None:
        domain_id, kind = name, DomainKind.CPU
    else:
        return None
    domain = Domain(domain_id, kind, _range(path / "max_energy_range_uj"))
    return Zone(domain, path, int(owner[1]) if owner else None, bool(owner and owner[2]))


def _range(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text is not None and text.isascii() and text.isdigit() and int(text) > 0 else None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("ascii", "replace").strip()
    except OSError:
        return None


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", text)]
