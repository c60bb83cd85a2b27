"""Package energy through the hwmon driver ``amd_energy``: the one chip of hwmon that measures the CPU package itself.

Told by Documentation/hwmon/amd_energy.rst and drivers/hwmon/amd_energy.c (in Linux 5.8 to 5.12, and beside it since).

Invariants:
    * sockets (``EsocketN``) are counted, cores (``EcoreNNN``) never: they lie inside (D-03). A board's sensor never
      becomes a measured domain: that is `sensors`;
    * the registers have 32 bits, and wrap after 547 s at 240 W; the driver adds them up to 64 bits in a thread of its
      own, so what is read does not wrap in the life of a machine. A counter that falls (the driver was loaded anew) is
      a gap, which the accumulator makes of a domain without a range. One that would have wrapped unseen is the
      driver's to prevent (D-01);
    * the driver numbers NUMA nodes and calls them sockets. A node that shows the counter of one before it is on the
      same socket and is left out; what remains are the packages, in order.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.hwmon import AMD_ENERGY, channels, hwmon_root
from joulegram_agent.powercap import CounterFile
from joulegram_agent.reader import Reading
from joulegram_agent.reasons import NO_HWMON
from joulegram_agent.sensors import FileProbe, Quantity, Sensor, SensorKind
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_agent.powercap import Counter

log = logging.getLogger(__name__)

_SOCKET = re.compile(r"Esocket([0-9]{1,4})", re.ASCII)


class HwmonReader:
    """Reads the sockets of ``amd_energy``.

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
        instead_of: why a better source was not taken; becomes the `reason` where this one measures.
        open_counter: opens an ``energyN_input``.

    `method` is MEASURED if at least one domain can be read; else UNAVAILABLE, and `reason` says why.
    """

    source = "hwmon"

    def __init__(
        self,
        sysfs_root: Path = Path("/sys"),
        *,
        instead_of: str | None = None,
        open_counter: Callable[[Path], Counter] = CounterFile,
    ) -> None:
        self._probes: dict[str, FileProbe] = {}
        chips = [channel for channel in channels(sysfs_root) if channel.chip == AMD_ENERGY]
        sockets: dict[int, FileProbe] = {}
        for channel in chips:
            match = _SOCKET.fullmatch(channel.label or "")
            if match is not None and int(match[1]) not in sockets:
                sensor = Sensor(channel.label or "", SensorKind.OTHER, Quantity.ENERGY, channel.label)
                sockets[int(match[1])] = FileProbe(sensor, channel.path, open_counter)
        for _, probe in sorted(sockets.items()):
            self._add(probe)
        first = {key: probe.read() for key, probe in self._probes.items()}
        refused = [value for value in first.values() if isinstance(value, str)]
        readable = len(refused) < len(first)
        self.method = Method.MEASURED if readable else Method.UNAVAILABLE
        self.reason: str | None = instead_of
        if not first:
            found = "no socket" if chips else "no chip amd_energy"
            self.reason = f"{NO_HWMON}: {hwmon_root(sysfs_root)} shows {found}, expected a driver of package energy"
        elif not readable:
            self.reason = f"{refused[0]}: {hwmon_root(sysfs_root)}: {AMD_ENERGY}"

    def domains(self) -> tuple[Domain, ...]:
        return tuple(Domain(key, DomainKind.CPU) for key in self._probes)

    def read(self) -> Reading:
        counters: dict[str, int] = {}
        gaps: list[Gap] = []
        for key, probe in self._probes.items():
            value = probe.read()
            if isinstance(value, str):
                gaps.append(Gap(key, value))
            else:
                counters[key] = value
        return Reading(counters, tuple(gaps))

    def lasting(self) -> dict[str, str]:
        """See `Lasting`: the driver counts, whoever reads."""
        return dict.fromkeys(self._probes, self.source)

    def close(self) -> None:
        for probe in self._probes.values():
            probe.close()

    def _add(self, probe: FileProbe) -> None:
        """Take a socket, unless it lies between two readings of one before it: then it is the same register."""
        for key, other in self._probes.items():
            before, middle, after = other.read(), probe.read(), other.read()
            if isinstance(before, str) or isinstance(middle, str) or isinstance(after, str):
                continue
            if before <= middle <= after:
                log.warning("%s shows the counter of %s: not counted", probe.sensor.label, key)
                probe.close()
                return
        self._probes[f"package-{len(self._probes)}"] = probe
