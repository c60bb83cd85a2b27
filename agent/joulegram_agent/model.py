"""A modelled source for machines without counters: watts a logical CPU by how busy it is (D-12, S1-18).

    P = cpus x watts_idle + (watts_max - watts_idle) x CPUs busy x share of the highest frequency

1. The watts are those of the processor's row in `model_table`, unless they were given; `reason` names the row, its
   source and its error.
2. The share of the highest frequency is `CpuFrequency`'s, between 0.1 and 1. It is left out (1) where watts were given,
   as whoever measured them did so at the machine's own frequencies, and where the kernel does not show both
   frequencies, as in most virtual machines. It is of the CPUs' mean over a second, not of the busy ones alone. A row's
   busy watts are those of all cores loaded, which is below the highest frequency: the share errs to the low side by as
   much.

The watts include the share of the whole server that SPECpower measured, not the package alone. Models of this kind err
by tens of per cent on a machine they were not fitted to, and more where vCPUs are oversold; whoever knows the machine
should give its own watts.

Invariants:
    * both counters are integer microjoules and never fall; each is the floor of its exact sum, so what is
      below a microjoule is carried on and never lost;
    * the static part is what the idle watts of all CPUs spend, and never more than the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from joulegram_agent.cpu import CpuCounter, MachineCpu
from joulegram_agent.cpu_frequency import WHOLE_PPM, CpuFrequency
from joulegram_agent.cpu_topology import read_cpuinfo, read_processor
from joulegram_agent.model_table import Row, row_of
from joulegram_agent.reader import Reading
from joulegram_pipeline.clock import Clock, SystemClock
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method
from joulegram_pipeline.errors import ConfigError

MODEL_DOMAIN = Domain("model/cpu", DomainKind.CPU)

MODELLED = "modelled"

_MW_NS_PER_UJ = 1_000_000
_MW_PER_W = 1_000
_TEXT_BYTES = 64

_LAPTOPS = frozenset({"8", "9", "10", "14", "30", "31", "32"})
"""Chassis types of DMI that are carried about (SMBIOS 3.7, section 7.4.1)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the table is asked with, and what makes its answer worse.

    Args:
        row: of the table.
        caveat: why the row is further from the truth than its error, or None.
    """

    row: Row
    caveat: str | None


def look_up(proc_root: Path, sysfs_root: Path) -> Machine:
    """The row of this machine. Never raises: what cannot be read is not recognised."""
    said = read_cpuinfo(proc_root)
    stepping = said.get("stepping", "")
    row = row_of(read_processor(proc_root), said.get("model name", ""), int(stepping) if stepping.isdecimal() else -1)
    if "hypervisor" in said.get("flags", "").split():
        return Machine(row, "a virtual machine, whose host may share a CPU among several")
    if _text(sysfs_root / "class" / "dmi" / "id" / "chassis_type") in _LAPTOPS:
        return Machine(row, "a laptop, and the table is of servers")
    return Machine(row, None)


class ModelReader:
    """Models the energy of the machine's CPUs.

    Args:
        proc_root: ``/proc``, or where the host's is mounted.
        sysfs_root: ``/sys``, or where the host's is mounted.
        instead_of: why no counter was taken; `reason` begins with it.
        watts_idle: of one logical CPU, 0 % busy; by default the table's.
        watts_max: of one logical CPU, 100 % busy; by default the table's.
        clock: for the time that CPUs are there.

    Raises:
        ConfigError: watts that are not ``0 <= watts_idle <= watts_max``.
    """

    source = "model"
    method = Method.MODELLED

    def __init__(
        self,
        proc_root: Path = Path("/proc"),
        sysfs_root: Path = Path("/sys"),
        instead_of: str | None = None,
        *,
        watts_idle: float | None = None,
        watts_max: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        machine = look_up(proc_root, sysfs_root)
        row = machine.row
        idle_w = row.idle_mw / _MW_PER_W if watts_idle is None else watts_idle
        max_w = row.max_mw / _MW_PER_W if watts_max is None else watts_max
        if not (math.isfinite(idle_w) and idle_w >= 0):
            raise ConfigError("watts_idle", idle_w, "watts of one idle logical CPU, 0 or more")
        if not (math.isfinite(max_w) and max_w >= idle_w):
            raise ConfigError("watts_max", max_w, f"at least watts_idle, {idle_w}")
        self._idle_mw = round(idle_w * _MW_PER_W)
        self._dynamic_mw = round(max_w * _MW_PER_W) - self._idle_mw
        self._machine = MachineCpu(proc_root)
        self._cpu = CpuCounter()
        self._clock = clock or SystemClock()
        given = watts_idle is not None or watts_max is not None
        self._frequency = None if given else CpuFrequency(sysfs_root)
        self._last_busy_ns = 0
        self._scaled_ns_ppm = 0
        self._unread = Gap(MODEL_DOMAIN.id, f"read_failed: {proc_root / 'stat'}")
        scaled = self._frequency is not None and self._frequency.share_ppm(self._clock.mono_ns()) is not None
        what = _given(idle_w, max_w) if given else _from_table(machine, scaled=scaled)
        self.reason: str | None = "; ".join(part for part in (instead_of, f"{MODELLED}: {what}") if part)

    def domains(self) -> tuple[Domain, ...]:
        return (MODEL_DOMAIN,)

    def read(self) -> Reading:
        cpu = self._machine.read()
        if cpu is None:
            return Reading(gaps=(self._unread,))
        mono_ns = self._clock.mono_ns()
        self._cpu.add(cpu, mono_ns)
        times = self._cpu.times
        share_ppm = None if self._frequency is None else self._frequency.share_ppm(mono_ns)
        self._scaled_ns_ppm += (times.busy_ns - self._last_busy_ns) * (WHOLE_PPM if share_ppm is None else share_ppm)
        self._last_busy_ns = times.busy_ns
        static_uj = self._idle_mw * times.total_ns // _MW_NS_PER_UJ
        dynamic_uj = self._dynamic_mw * self._scaled_ns_ppm // (_MW_NS_PER_UJ * WHOLE_PPM)
        return Reading({MODEL_DOMAIN.id: static_uj + dynamic_uj}, static_uj={MODEL_DOMAIN.id: static_uj}, cpu=cpu)

    def close(self) -> None:
        self._machine.close()


def _given(idle_w: float, max_w: float) -> str:
    return f"{idle_w} to {max_w} W a logical CPU, as given"


def _from_table(machine: Machine, *, scaled: bool) -> str:
    row = machine.row
    by = "CPU time and frequency" if scaled else "CPU time"
    text = (
        f"{row.idle_mw / _MW_PER_W} to {row.max_mw / _MW_PER_W} W a logical CPU by {by}, row {row.name!r} of "
        f"{row.source}, error {row.error_percent} %"
    )
    return text if machine.caveat is None else f"{text}, and more: {machine.caveat}"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_TEXT_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
