"""The kernel's ``power`` PMU over the registers of a simulated machine: its sysfs tree and its counters.

Invariants:
    * a count is the energy since its counter was opened in 2^-32 J, in steps of the register's unit;
    * it has 64 bits; `start_counts` lets a test begin near their end;
    * a counter whose CPU is offline keeps its count, and its time stands still.

Told by Linux arch/x86/events/rapl.c and Documentation/ABI/testing/sysfs-bus-event_source-devices-events.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_agent.perf_event import READ_FORMAT

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_agent.perf_event import PerfEvent
    from simulators.msr import MsrMachine

SCALE = "2.3283064365386962890625e-10"
EVENTS = {"energy-cores": 1, "energy-pkg": 2, "energy-ram": 3, "energy-gpu": 4, "energy-psys": 5}
DOMAINS = {2: "", 3: "/dram"}
PMU_TYPE = 18


class SimCounter:
    """An open counter of the PMU."""

    def __init__(self, pmu: PowerPmu, event: PerfEvent) -> None:
        self._pmu = pmu
        self._domain = pmu.machine.place_of[event.cpu] + DOMAINS[event.config]
        self._cpu = event.cpu
        self._zero = pmu.counts(self._domain) - pmu.start_counts
        self._counted_ns = 0
        self.closed = False

    def read(self) -> bytes:
        number = self._pmu.faults.get(self._domain)
        if number is not None:
            raise OSError(number, os.strerror(number))
        if self._cpu not in self._pmu.stopped:
            self._counted_ns += 100_000_000
        count = (self._pmu.counts(self._domain) - self._zero) % 2**64
        return READ_FORMAT.pack(count, self._counted_ns)[: self._pmu.read_bytes]

    def close(self) -> None:
        self.closed = True


@dataclass
class PowerPmu:
    """Adds the PMU's tree to that of a machine.

    Args:
        machine: its topology, and the registers that are counted.
        cpus: of ``cpumask``: one of each package or die.
        paranoid: of ``perf_event_paranoid``.
        refuses: errno of every opening.
        start_counts: what a counter shows when it is opened; the kernel's begin at 0.
        faults: errno of reading, by domain.
        stopped: CPUs on which nothing is counted any more.
    """

    machine: MsrMachine
    cpus: str = "0"
    paranoid: int = 2
    refuses: int | None = None
    start_counts: int = 0
    read_bytes: int = READ_FORMAT.size
    faults: dict[str, int] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    opened: list[PerfEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path: Path = self.machine.root / "sys/bus/event_source/devices/power"
        self.write("type", str(PMU_TYPE))
        self.write("cpumask", self.cpus)
        self.write("format/event", "config:0-7")
        dram = any(domain.endswith("/dram") for domain in self.machine.truth_units)
        for name, number in EVENTS.items():
            if name != "energy-ram" or dram:
                self.write(f"events/{name}", f"event=0x{number:02x}")
                self.write(f"events/{name}.scale", SCALE)
                self.write(f"events/{name}.unit", "Joules")
        paranoid = self.machine.root / "proc/sys/kernel/perf_event_paranoid"
        paranoid.parent.mkdir(parents=True, exist_ok=True)
        paranoid.write_text(f"{self.paranoid}\n")

    def write(self, name: str, text: str | None) -> None:
        """Write a file of the PMU, or take it away."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_text(f"{text}\n")

    def counts(self, domain: str) -> int:
        """All that was ever spent in a domain, in 2^-32 J."""
        shift = 16 if domain.endswith("/dram") else self.machine.shift
        return self.machine.truth_units[domain] << (32 - shift)

    def open_counter(self, event: PerfEvent) -> SimCounter:
        """For `PerfReader`."""
        if event.type != PMU_TYPE:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.refuses is not None:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.opened.append(event)
        return SimCounter(self, event)
