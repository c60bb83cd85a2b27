"""A modelled source for machines without counters: watts a logical CPU by how busy it is (D-12, S1-18).

    P = cpus x watts_idle + (watts_max - watts_idle) x CPUs busy

The default watts are Cloud Carbon Footprint's averages for AWS servers, 0.74 W idle and 3.5 W busy for one
vCPU, which it took from SPECpower results (https://www.cloudcarbonfootprint.org/docs/methodology/, section
Compute). Its figures for others are near: 0.71 and 4.26 W (GCP, medians), 0.78 and 3.76 W (Azure). They
include the share of the whole server that SPECpower measured, not the package alone. Models of this kind err
by 30 to 40 % either way on a machine they were not fitted to, and more where vCPUs are oversold; whoever
knows the machine should give its own watts.

Invariants:
    * both counters are integer microjoules and never fall; each is the floor of its exact sum, so what is
      below a microjoule is carried on and never lost;
    * the static part is what the idle watts of all CPUs spend, and never more than the whole.
"""

from __future__ import annotations

import math
from pathlib import Path

from joulegram_agent.cpu import MachineCpu
from joulegram_agent.reader import Reading
from joulegram_pipeline.clock import Clock, SystemClock
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method
from joulegram_pipeline.errors import ConfigError

WATTS_IDLE = 0.74
"""Watts of an idle logical CPU (Cloud Carbon Footprint, AWS average)."""

WATTS_MAX = 3.5
"""Watts of a fully busy logical CPU (Cloud Carbon Footprint, AWS average)."""

MODEL_DOMAIN = Domain("model/cpu", DomainKind.CPU)

_MW_NS_PER_UJ = 1_000_000


class ModelReader:
    """Models the energy of the machine's CPUs.

    Args:
        proc_root: ``/proc``, or where the host's is mounted.
        reason: why no counter was taken instead.
        watts_idle: of one logical CPU, 0 % busy.
        watts_max: of one logical CPU, 100 % busy.
        clock: for the time that CPUs are there.

    Raises:
        ConfigError: watts that are not ``0 <= watts_idle <= watts_max``.
    """

    source = "model"
    method = Method.MODELLED

    def __init__(
        self,
        proc_root: Path = Path("/proc"),
        reason: str | None = None,
        *,
        watts_idle: float = WATTS_IDLE,
        watts_max: float = WATTS_MAX,
        clock: Clock | None = None,
    ) -> None:
        if not (math.isfinite(watts_idle) and watts_idle >= 0):
            raise ConfigError("watts_idle", watts_idle, "watts of one idle logical CPU, 0 or more")
        if not (math.isfinite(watts_max) and watts_max >= watts_idle):
            raise ConfigError("watts_max", watts_max, f"at least watts_idle, {watts_idle}")
        self.reason = reason
        self._idle_mw = round(watts_idle * 1_000)
        self._dynamic_mw = round(watts_max * 1_000) - self._idle_mw
        self._cpu = MachineCpu(proc_root)
        self._clock = clock or SystemClock()
        self._last_mono_ns: int | None = None
        self._cpu_ns = 0
        self._unread = Gap(MODEL_DOMAIN.id, f"read_failed: {proc_root / 'stat'}")

    def domains(self) -> tuple[Domain, ...]:
        return (MODEL_DOMAIN,)

    def read(self) -> Reading:
        times = self._cpu.read()
        if times is None:
            return Reading(gaps=(self._unread,))
        mono_ns = self._clock.mono_ns()
        if self._last_mono_ns is not None:
            self._cpu_ns += times.cpus * (mono_ns - self._last_mono_ns)
        self._last_mono_ns = mono_ns
        static_uj = self._idle_mw * self._cpu_ns // _MW_NS_PER_UJ
        dynamic_uj = self._dynamic_mw * times.busy_ns // _MW_NS_PER_UJ
        return Reading({MODEL_DOMAIN.id: static_uj + dynamic_uj}, static_uj={MODEL_DOMAIN.id: static_uj})

    def close(self) -> None:
        """Nothing is open."""
