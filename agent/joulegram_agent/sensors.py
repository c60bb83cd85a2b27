"""Sensors beside the measured set: board, battery and psys. They are shown, and never summed with packages.

Invariants:
    * what a sensor measures holds packages, or is held by them, or neither is known: it enters no tick, and its energy
      is in no sum (D-04);
    * each is read once a second at most (PLATYPUS; firmware is slow to answer, and is asked in a thread of its own by
      `LocalAgent`);
    * a sensor of power is added up as `PowerIntegral` has it; one of energy is counted as `Accumulator` has it. What
      cannot be read is a reason, never 0 W (D-10);
    * the set is fixed when it is found; a sensor that comes later is seen at the next start.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from joulegram_agent.counters import Accumulator
from joulegram_agent.integral import PowerIntegral
from joulegram_agent.powercap import CounterFile
from joulegram_agent.reasons import READ_FAILED, why
from joulegram_pipeline.clock import BootClock, SystemClock
from joulegram_pipeline.energy import PUBLISH_S, Domain, DomainKind
from joulegram_pipeline.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from joulegram_agent.powercap import Counter

MAX_SENSORS = 64
"""More than a board has; those beyond are left out, and said."""

MAX_WRAPPING_W = 4_000
"""Of a counter that wraps, which is psys: more than its platform draws, and less than half a range in a second."""

MAX_POWER_W = 100_000
"""Of any other sensor: more than a machine draws, with eight boards in it as well (D-13)."""

_READ_NS = round(PUBLISH_S * NS_PER_S)


class SensorKind(StrEnum):
    """What a sensor is known to hold."""

    BOARD = "board"
    BATTERY = "battery"
    PSYS = "psys"
    OTHER = "other"


class Quantity(StrEnum):
    """What a sensor gives."""

    ENERGY = "energy"
    """A counter, microjoules."""
    POWER = "power"
    """Microwatts."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One sensor.

    Args:
        id: unique in its machine, and stable over boots: ``hwmon/power_meter/ACPI000D:00/power1``, ``battery/BAT0``.
        kind: what it is known to hold.
        quantity: what it gives.
        label: the firmware's own words for it.
        max_range_uj: of a counter that wraps.
    """

    id: str
    kind: SensorKind
    quantity: Quantity
    label: str | None = None
    max_range_uj: int | None = None


class Probe(Protocol):
    """An open sensor."""

    sensor: Sensor

    def read(self) -> int | str:
        """Microjoules or microwatts, or the reason why there are none. Never raises."""

    def close(self) -> None:
        """Give back what is open; a second call does nothing."""


class FileProbe:
    """A sensor of one file of sysfs that holds a whole number.

    Args:
        sensor: it is.
        path: of the file.
        open_file: opens it.
    """

    def __init__(self, sensor: Sensor, path: Path, open_file: Callable[[Path], Counter] = CounterFile) -> None:
        self.sensor = sensor
        self._file: Counter | None = None
        self._refused = f"{READ_FAILED}: closed"
        try:
            self._file = open_file(path)
        except OSError as error:
            self._refused = why(error)

    def read(self) -> int | str:
        if self._file is None:
            return self._refused
        return read_number(self._file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_number(file: Counter) -> int | str:
    """The whole number in an open file, or the reason why there is none; one below 0 is a reason."""
    try:
        text = file.read().strip()
    except OSError as error:
        return why(error)
    if not text.isdigit():
        return f"{READ_FAILED}: got {text[:32]!r}, expected a whole number, 0 or more"
    return int(text)


@dataclass(frozen=True, slots=True)
class SensorTotals:
    """What was counted of a sensor since the agent started.

    Args:
        sensor: whose.
        energy_uj: of the seconds that are known.
        unplaced_uj: counted across seconds of which it is not known when.
        power_uw: at the last read, of a sensor of power; None where that gave none.
        gaps: seconds that are not known, by the code of the reason.
        reason: why the last read gave nothing; None where it did.
    """

    sensor: Sensor
    energy_uj: int = 0
    unplaced_uj: int = 0
    power_uw: int | None = None
    gaps: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What `counters` shows; keys without a value are absent."""
        out: dict[str, Any] = {
            "id": self.sensor.id,
            "kind": self.sensor.kind.value,
            "quantity": self.sensor.quantity.value,
            "energy_uj": self.energy_uj,
            "unplaced_uj": self.unplaced_uj,
            "gaps": dict(self.gaps),
        }
        optional = {"label": self.sensor.label, "power_uw": self.power_uw, "reason": self.reason}
        return out | {key: value for key, value in optional.items() if value is not None}


class _Count:
    """Counts one sensor, one window from read to read."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        sensor = probe.sensor
        # The kind of domain is of no meaning: this domain enters no tick.
        domain = Domain(sensor.id, DomainKind.CPU, sensor.max_range_uj)
        limit_w = MAX_POWER_W if sensor.max_range_uj is None else MAX_WRAPPING_W
        self._accumulator = Accumulator(domain, limit_w)
        self._integral = PowerIntegral() if sensor.quantity is Quantity.POWER else None
        self._opened = False

    def take(self, at_ns: int, awake_ns: int) -> SensorTotals:
        value = self.probe.read()
        power_uw: int | None = None
        count = value
        if self._integral is not None and isinstance(value, int):
            power_uw, count = value, self._integral.add(value, at_ns)
        if isinstance(count, str):
            self._accumulator.miss(count)
        else:
            self._accumulator.offer(count, at_ns, awake_ns)
        if self._opened:
            self._accumulator.close()
        else:
            self._accumulator.open()
            self._opened = True
        counted = self._accumulator
        return SensorTotals(
            self.probe.sensor,
            counted.placed_uj,
            counted.unplaced_uj,
            power_uw,
            dict(counted.gaps),
            value if isinstance(value, str) else None,
        )


class Sensors:
    """Reads sensors and counts them. `sample` may be called from another thread than the rest.

    Args:
        probes: closed with this; those of an id that was there before are closed at once, and so are those beyond
            `MAX_SENSORS`.
        clock: the clocks.
    """

    def __init__(self, probes: Sequence[Probe], clock: BootClock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._counts: dict[str, _Count] = {}
        self._lock = threading.Lock()
        self._read_ns: int | None = None
        self.left_out = 0
        for probe in probes:
            if probe.sensor.id in self._counts or len(self._counts) >= MAX_SENSORS:
                self.left_out += 1
                probe.close()
            else:
                self._counts[probe.sensor.id] = _Count(probe)
        self._totals = tuple(SensorTotals(count.probe.sensor) for count in self._counts.values())

    @property
    def totals(self) -> tuple[SensorTotals, ...]:
        """As of the last read, in the order of the probes."""
        return self._totals

    def sample(self) -> bool:
        """Read each sensor once; False, and nothing is read, where the last time is less than a second ago."""
        with self._lock:
            mono_ns, boot_ns = self._clock.mono_ns(), self._clock.boot_ns()
            if self._read_ns is not None and mono_ns - self._read_ns < _READ_NS:
                return False
            self._read_ns = mono_ns
            self._totals = tuple(count.take(boot_ns, mono_ns) for count in self._counts.values())
            return True

    def close(self) -> None:
        """Close every sensor, after a read that is under way."""
        with self._lock:
            for count in self._counts.values():
                count.probe.close()
