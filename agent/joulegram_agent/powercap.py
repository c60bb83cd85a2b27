"""RAPL through ``/sys/class/powercap``: what the kernel measured of packages and DRAM (S0-21, S3-06).

Invariants:
    * counters stay open and are read with ``os.pread``: a sweep costs a few microseconds a zone;
    * the set of domains is fixed when the reader is made; a zone that comes later is seen at the next start. One that
      went is a gap named ``domain_vanished`` (D-05), and is looked for by its name until it is back, as after a
      reload of the kernel's module; back, but not for whom the agent has become, it is ``permission_denied``;
    * a zone that cannot be read stays in the set as a gap; it is never left out in silence and never 0 (D-06,
      D-10).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from joulegram_agent.descriptor import Descriptor
from joulegram_agent.powercap_zones import Zone, masked_entry, measured_zones, powercap_root
from joulegram_agent.reader import Reading
from joulegram_agent.reasons import DOMAIN_VANISHED, MASKED, NO_POWERCAP, PERMISSION_DENIED, READ_FAILED, is_gone, why
from joulegram_pipeline.energy import Domain, Gap, Method
from joulegram_pipeline.units import uj_to_j

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DOMAIN_VANISHED",
    "NO_POWERCAP",
    "PERMISSION_DENIED",
    "READ_FAILED",
    "Counter",
    "CounterFile",
    "PowercapReader",
    "read_cpu_energy_joules",
    "read_intel_rapl_energy_joules",
]

log = logging.getLogger(__name__)

FIND_AGAIN_READS = 50
"""A zone that went is looked for at each of so many reads, which is every 5 s."""


class Counter(Protocol):
    """An open counter file; the seam at which a test can refuse what root is never refused."""

    def read(self) -> bytes:
        """Its whole text; OSError where the kernel refuses."""

    def close(self) -> None:
        """Close it."""


class CounterFile(Descriptor):
    """A counter of sysfs, ``energy_uj``, opened once."""

    def read(self) -> bytes:
        return os.pread(self.fd, 64, 0)


class PowercapReader:
    """Reads the measured set of one sysfs tree.

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
        open_counter: opens an ``energy_uj``.

    `reason` is None if at least one domain can be read; else `method` is UNAVAILABLE and every read is all
    gaps.
    """

    source = "powercap"

    def __init__(self, sysfs_root: Path = Path("/sys"), open_counter: Callable[[Path], Counter] = CounterFile) -> None:
        self.reason: str | None = None
        self._zones: tuple[Zone, ...] = ()
        self._counters: dict[str, Counter] = {}
        self._refused: dict[str, str] = {}
        self._gone: dict[str, int] = {}
        self._sysfs_root = sysfs_root
        self._open_counter = open_counter
        root = powercap_root(sysfs_root)
        try:
            self._zones = measured_zones(sysfs_root)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            self.reason = f"{NO_POWERCAP if missing else why(error)}: {root}: {error.strerror or error}"
        else:
            hidden = None if self._zones else masked_entry(sysfs_root)
            if hidden is not None:
                self.reason = f"{MASKED}: {hidden} leads nowhere, as in a container whose runtime hides the zones"
            elif not self._zones:
                self.reason = f"{NO_POWERCAP}: {root} shows no package and no dram"
        self._open()
        self._drop_mirrors()
        if self._zones and not self._counters:
            zone = self._zones[0]
            self.reason = f"{self._refused[zone.domain.id]}: {zone.path / 'energy_uj'}"

    @property
    def method(self) -> Method:
        return Method.MEASURED if self.reason is None else Method.UNAVAILABLE

    def domains(self) -> tuple[Domain, ...]:
        return tuple(zone.domain for zone in self._zones)

    def read(self) -> Reading:
        counters: dict[str, int] = {}
        gaps: list[Gap] = []
        for zone in self._zones:
            key = zone.domain.id
            value = self._read(zone, key)
            if isinstance(value, int):
                counters[key] = value
            else:
                gaps.append(Gap(key, value))
        return Reading(counters, tuple(gaps))

    def lasting(self) -> dict[str, str]:
        """See `Lasting`: the hardware counts, whoever reads."""
        return {zone.domain.id: self.source for zone in self._zones}

    def close(self) -> None:
        for counter in self._counters.values():
            counter.close()
        self._counters.clear()
        self._gone.clear()

    def _open(self) -> None:
        for zone in self._zones:
            path = zone.path / "energy_uj"
            if zone.domain.max_range_uj is None:
                self._refused[zone.domain.id] = f"{READ_FAILED}: max_energy_range_uj"
            else:
                try:
                    self._counters[zone.domain.id] = self._open_counter(path)
                    continue
                except OSError as error:
                    self._refused[zone.domain.id] = why(error)
            log.warning("domain %s: %s: %s", zone.domain.id, self._refused[zone.domain.id], path)

    def _read(self, zone: Zone, key: str) -> int | str:
        """The counter in microjoules, or the reason why it is not known."""
        counter = self._counters.get(key) or self._find_again(zone)
        if counter is None:
            return self._refused.get(key, f"{READ_FAILED}: closed")
        try:
            text = counter.read().strip()
        except OSError as error:
            if is_gone(error):
                self._lose(zone, why(error))
            return why(error)
        if not text.isdigit():
            return f"{READ_FAILED}: got {text[:32]!r}, expected a whole number"
        value = int(text)
        most_uj = zone.domain.max_range_uj
        if most_uj is None or value > most_uj:
            return f"{READ_FAILED}: got {value}, expected at most {most_uj}"
        return value

    def _lose(self, zone: Zone, reason: str) -> None:
        """Give up a file whose zone went: it does not come back to life with the zone."""
        key = zone.domain.id
        self._counters.pop(key).close()
        self._refused[key] = reason
        self._gone[key] = 0

    def _find_again(self, zone: Zone) -> Counter | None:
        """The counter of a zone that went, if the zone is there again: by name, as its number may be another's now."""
        key = zone.domain.id
        if key not in self._gone:
            return None
        self._gone[key] += 1
        if self._gone[key] % FIND_AGAIN_READS:
            return None
        try:
            back = [other for other in measured_zones(self._sysfs_root) if other.domain == zone.domain]
            counter = self._open_counter(back[0].path / "energy_uj") if back else None
        except OSError as error:
            # Where privileges were dropped the zone is there again and refuses: that is no longer that it vanished.
            self._refused[key] = why(error)
            log.debug("domain %s: %s", key, error)
            return None
        if counter is None:
            self._refused[key] = DOMAIN_VANISHED
            return None
        del self._gone[key]
        self._counters[key] = counter
        return counter

    def _drop_mirrors(self) -> None:
        """Leave out dies that show the counter of a die before them, as older kernels have it on AMD.

        A die is a mirror only if its counter lies between two readings of the other's taken around it. Two
        counters of their own pass that by chance about once in a million, so a real second die is kept
        (Cascade Lake-AP).
        """
        kept: list[Zone] = []
        for zone in self._zones:
            twin = self._twin(zone, kept)
            if twin is None:
                kept.append(zone)
                continue
            log.warning("domain %s shows the counter of %s: not counted", zone.domain.id, twin.domain.id)
            self._counters.pop(zone.domain.id).close()
        self._zones = tuple(kept)

    def _twin(self, zone: Zone, kept: Sequence[Zone]) -> Zone | None:
        if not zone.die:
            return None
        for other in kept:
            same_place = other.die and other.package == zone.package
            if not (same_place and other.domain.kind is zone.domain.kind):
                continue
            before, middle, after = (self._read(each, each.domain.id) for each in (other, zone, other))
            if isinstance(before, str) or isinstance(middle, str) or isinstance(after, str):
                continue
            modulus = (other.domain.max_range_uj or 0) + 1
            if (middle - before) % modulus <= (after - before) % modulus:
                return other
        return None


def read_intel_rapl_energy_joules(sysfs_root: Path = Path("/sys")) -> float | None:
    """The counters of all readable packages and DRAM, added up in joules (S0-21).

    A single reading: each counter wraps on its own, so two of these must not be subtracted (D-02); use the
    agent.

    Returns:
        Joules, or None where the root is missing or nothing is readable: then take a modelled estimate
        (S1-18).
    """
    reader = PowercapReader(sysfs_root)
    try:
        counters_uj = reader.read().counters_uj
    finally:
        reader.close()
    return uj_to_j(sum(counters_uj.values())) if counters_uj else None


read_cpu_energy_joules = read_intel_rapl_energy_joules
"""The name S1-18 gives it."""
