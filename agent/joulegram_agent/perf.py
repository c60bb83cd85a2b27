"""RAPL through the kernel's ``power`` PMU, which an agent without root may read with CAP_PERFMON (S0-20).

Invariants:
    * one counter for each event and each package (or die), on the CPU that the PMU's ``cpumask`` names (D-47);
    * only ``energy-pkg`` and ``energy-ram`` are counted; cores, graphics and psys overlap them (D-03, D-04);
    * counts become microjoules by integers alone, ``floor(count x scale)``; a scale or unit that is not
      understood is a reason, never a guess;
    * counts are handed on modulo 65 536 J, though they have 64 bits. The kernel adds them up from registers of 32
      bits, and misses a wrap of those if neither a reader nor its timer, which expects 200 W, comes in time. It
      does not tell the registers' unit; 65 536 J is their range on AMD and for DRAM of Intel servers, and the
      smallest in wide use. So a silence that could hide a wrap there is a gap, as with the other sources (D-01);
    * a count that the kernel no longer keeps is a gap, not 0 W (D-10).

Told by Linux arch/x86/events/rapl.c, Documentation/ABI/testing/sysfs-bus-event_source-devices-events and
Documentation/admin-guide/perf-security.rst.
"""

from __future__ import annotations

import errno
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.cpu_topology import places, read_cpu_list, read_processor
from joulegram_agent.perf_event import READ_FORMAT, PerfCounter, PerfEvent
from joulegram_agent.reader import Reading
from joulegram_agent.reasons import (
    DOMAIN_VANISHED,
    NO_PERF,
    PERMISSION_DENIED,
    READ_FAILED,
    errno_name,
    is_denied,
    why,
)
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_agent.powercap import Counter

log = logging.getLogger(__name__)

RANGE_J = 65_536
RANGE_UJ = RANGE_J * 1_000_000 - 1

MAX_SCALE_SHIFT = 48
"""Of a scale of 2^-n J: so that the 64 bits of a count hold a whole number of `RANGE_J`."""

_EVENTS = (("energy-pkg", DomainKind.CPU, ""), ("energy-ram", DomainKind.DRAM, "/dram"))
_EVENT = re.compile(r"event=0x([0-9a-f]{1,2})", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,40}(\.[0-9]{1,80})?(e-?[0-9]{1,3})?", re.ASCII)
_FILE_BYTES = 256


@dataclass(slots=True)
class _Source:
    """One domain and its open counter; a refused one has a reason instead."""

    domain: Domain
    counter: Counter | None = None
    shift: int = 0
    refused: str = f"{READ_FAILED}: closed"
    counted_ns: int = 0


class PerfReader:
    """Reads packages and DRAM from the ``power`` PMU.

    Args:
        sysfs_root: ``/sys``, or where the host's is mounted.
        proc_root: ``/proc``, or where the host's is mounted; for the processor and ``perf_event_paranoid``.
        instead_of: why a better source was not taken; becomes the `reason` where this one measures.
        open_counter: opens a counter of the kernel's.

    `method` is MEASURED if at least one domain can be read; else UNAVAILABLE, and `reason` says why.
    """

    source = "perf"

    def __init__(
        self,
        sysfs_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        *,
        instead_of: str | None = None,
        open_counter: Callable[[PerfEvent], Counter] = PerfCounter,
    ) -> None:
        self._pmu = sysfs_root / "bus" / "event_source" / "devices" / "power"
        self._paranoid = proc_root / "sys" / "kernel" / "perf_event_paranoid"
        self._open_counter = open_counter
        self._sources: list[_Source] = []
        self.reason: str | None = instead_of
        try:
            self._find(sysfs_root, proc_root)
        except OSError as error:
            self.reason = f"{NO_PERF}: {error.filename}: got {errno_name(error)}, expected the kernel's power PMU"
        except ValueError as error:
            self.reason = f"{NO_PERF}: {error}"
        readable = any(source.counter is not None for source in self._sources)
        self.method = Method.MEASURED if readable else Method.UNAVAILABLE
        if self._sources and not readable:
            self.reason = self._sources[0].refused
        # Where nothing can be read the reason says so, once.
        for source in self._sources if readable else ():
            if source.counter is None:
                log.warning("domain %s: %s", source.domain.id, source.refused)

    def domains(self) -> tuple[Domain, ...]:
        return tuple(source.domain for source in self._sources)

    def read(self) -> Reading:
        counters: dict[str, int] = {}
        gaps: list[Gap] = []
        for source in self._sources:
            value = _read(source)
            if isinstance(value, str):
                gaps.append(Gap(source.domain.id, value))
            else:
                counters[source.domain.id] = value
        return Reading(counters, tuple(gaps))

    def close(self) -> None:
        for source in self._sources:
            if source.counter is not None:
                source.counter.close()
                source.counter = None

    def _find(self, sysfs_root: Path, proc_root: Path) -> None:
        """Open the counters.

        Raises:
            OSError: the PMU, or its event for packages, is not there.
            ValueError: it is not what is understood.
        """
        pmu_type = _whole(self._pmu / "type")
        by_die = read_processor(proc_root).energy_by_die
        found = places(sysfs_root, read_cpu_list(self._pmu / "cpumask"), by_die=by_die)
        if not found:
            raise ValueError(f"{self._pmu / 'cpumask'}: no CPU whose package is known")
        events: list[tuple[DomainKind, str, int, int]] = []
        for name, kind, suffix in _EVENTS:
            if kind is DomainKind.CPU or (self._pmu / "events" / name).exists():
                events.append((kind, suffix, *self._event(name)))
        for place in found:
            for kind, suffix, config, shift in events:
                source = _Source(Domain(place.id + suffix, kind, RANGE_UJ), shift=shift)
                self._sources.append(source)
                try:
                    source.counter = self._open_counter(PerfEvent(pmu_type, config, place.cpus[0]))
                except OSError as error:
                    source.refused = self._why(error, place.cpus[0])

    def _event(self, name: str) -> tuple[int, int]:
        """Number of an event, and n of its scale of 2^-n J."""
        path, form = self._pmu / "events" / name, self._pmu / "format" / "event"
        text = _text(path)
        match = _EVENT.fullmatch(text)
        if match is None:
            raise ValueError(f"{path}: got {text!r}, expected event=0xNN")
        if _text(form) != "config:0-7":
            raise ValueError(f"{form}: got {_text(form)!r}, expected 'config:0-7'")
        unit = _text(path.with_name(f"{name}.unit"))
        if unit != "Joules":
            raise ValueError(f"{path}.unit: got {unit!r}, expected 'Joules'")
        return int(match[1], 16), _scale_shift(path.with_name(f"{name}.scale"))

    def _why(self, error: OSError, cpu: int) -> str:
        got = f"{self._pmu} on CPU {cpu}: got {errno_name(error)}"
        if is_denied(error):
            try:
                paranoid = f"is {_text(self._paranoid)}"
            except OSError:
                paranoid = "cannot be read"
            return (
                f"{PERMISSION_DENIED}: {got}; perf_event_paranoid {paranoid}, expected 0 or less, or the capability "
                "CAP_PERFMON, and no filter of system calls against perf_event_open"
            )
        if error.errno in {errno.ENOENT, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            return f"{NO_PERF}: {got}"
        return f"{why(error).partition(':')[0]}: {got}"


def _read(source: _Source) -> int | str:
    """The counter in microjoules, modulo `RANGE_J`, or the reason why it is not known."""
    if source.counter is None:
        return source.refused
    try:
        data = source.counter.read()
    except OSError as error:
        return why(error)
    if not data:
        return f"{DOMAIN_VANISHED}: the kernel gave the counter up"
    if len(data) != READ_FORMAT.size:
        return f"{READ_FAILED}: got {len(data)} bytes, expected {READ_FORMAT.size}"
    count, counted_ns = READ_FORMAT.unpack(data)
    # While its CPUs are offline the kernel keeps a counter, and shows it without counting.
    if counted_ns <= source.counted_ns:
        return f"{DOMAIN_VANISHED}: the kernel does not count"
    source.counted_ns = counted_ns
    return int(count % (RANGE_J << source.shift) * 1_000_000 >> source.shift)


def _scale_shift(path: Path) -> int:
    """Read n of a scale that is exactly 2^-n."""
    from fractions import Fraction  # it brings decimal along, for a PMU that is mostly not there

    text = _text(path)
    if _DECIMAL.fullmatch(text):
        scale = Fraction(text)
        shift = scale.denominator.bit_length() - 1
        if scale == Fraction(1, 1 << shift) and shift <= MAX_SCALE_SHIFT:
            return shift
    raise ValueError(f"{path}: got {text!r}, expected 2^-n in decimals, as 2.3283064365386962890625e-10")


def _whole(path: Path) -> int:
    text = _text(path)
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"{path}: got {text!r}, expected a whole number")
    return int(text)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_FILE_BYTES).decode("ascii", "replace").strip()
