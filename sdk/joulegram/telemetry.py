"""What a recorder is told and what it gives back: the names and fields of S0-27 and S0-28.

Invariants:
    * what is not known is None, with a reason beside it; energy and bytes are never made up and never negative;
    * a factor stands beside the name of who declares it, or there is none (S0-57, S0-58, D-18).
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.ids import check_run_id, new_run_id

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FACTOR_KG_PER_KWH = 5.0
"""More than any grid: such a factor is in g/kWh (C-07)."""

_FACTOR, _SOURCE = "KFM_EMISSION_FACTOR_KG_PER_KWH", "KFM_EMISSION_FACTOR_SOURCE"


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """One run, as its recorder is told (S0-27).

    Args:
        run_id: of the run; by default a new one.
        job_type: what kind of job it is.
        emission_factor_kg_per_kwh: declared factor in kg/kWh, with its source; without one there is no CO2.
        emission_factor_source: who declares it.
        host_hw_id: a name of the host that names nobody (`hw.id`).
        host_hw_name: what kind of host it is (`hw.name`).
        process_pid: of this process.

    Raises:
        ConfigError: a factor that is negative, not finite, in g/kWh, or without a source; an empty text.
        IdentifierError: a run id that may not be one.
    """

    run_id: str = field(default_factory=new_run_id)
    job_type: str = "etl"
    emission_factor_kg_per_kwh: float | None = None
    emission_factor_source: str | None = None
    host_hw_id: str = "host-unknown"
    host_hw_name: str = "kfm-node"
    process_pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        check_run_id(self.run_id)
        factor, source = self.emission_factor_kg_per_kwh, self.emission_factor_source
        if factor is not None and not (math.isfinite(factor) and 0 <= factor <= MAX_FACTOR_KG_PER_KWH):
            raise ConfigError(
                "emission_factor_kg_per_kwh", factor, f"kg/kWh from 0 to {MAX_FACTOR_KG_PER_KWH:g}; is it in g/kWh?"
            )
        if (factor is None) != (source is None) or (source is not None and not source.strip()):
            raise ConfigError("emission_factor_source", source, "a text that says who declares the factor, beside one")
        for name in ("job_type", "host_hw_id", "host_hw_name"):
            if not getattr(self, name):
                raise ConfigError(name, getattr(self, name), "a text")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> TelemetryConfig:
        """What KFM_RUN_ID, KFM_HW_ID, KFM_HW_NAME, KFM_EMISSION_FACTOR_KG_PER_KWH and its _SOURCE say; `given` wins.

        Raises:
            ConfigError: quoting the variable.
            IdentifierError: KFM_RUN_ID may not be a run id.
        """
        names = {"run_id": "KFM_RUN_ID", "host_hw_id": "KFM_HW_ID", "host_hw_name": "KFM_HW_NAME"}
        found: dict[str, Any] = {key: environ[name] for key, name in names.items() if environ.get(name)}
        if environ.get(_FACTOR) and "emission_factor_kg_per_kwh" not in given:
            try:
                found["emission_factor_kg_per_kwh"] = float(environ[_FACTOR])
            except ValueError as error:
                raise ConfigError(_FACTOR, environ[_FACTOR], "a number of kg/kWh") from error
            found["emission_factor_source"] = environ.get(_SOURCE)
        return cls(**{**found, **given})


@dataclass(frozen=True, slots=True)
class TelemetryResult:
    """What a run spent (S0-28), with how it is known (S0-59, S0-60, S0-68).

    Args:
        run_id: of the run.
        started_at: UTC, to the second.
        ended_at: UTC, to the second.
        duration_seconds: on the monotonic clock (D-29).
        energy_joules: of `energy_scope`, of the time that was covered; None where none was.
        energy_kwh: the same.
        co2_kg: an estimate: energy times factor; None where either is missing (S0-67).
        bytes_sent: None: what one process sent is not known (C-13).
        bytes_received: as `bytes_sent`.
        disk_bytes_read: of this process and the children it waited for.
        disk_bytes_write: the same.
        emission_factor_kg_per_kwh: as it was declared.
        emission_factor_source: as it was declared.
        energy_method: ``measured``, ``modelled``, ``mixed`` or ``unavailable``.
        energy_scope: ``host`` or ``process``.
        energy_reason: what is missing of the energy, and why.
        energy_covered_seconds: how much of the duration the energy is of.
        allocation_ratio: this process tree's part of the host's energy, where it is known (S3-09).
        attribution_mode: who said so (S3-08): ``governor_cpu_time`` where an agent did, with this process's part,
            ``governor_energy`` where it knows the host's alone, ``monitor_only`` without an agent or its energy.
        reasons: why each other figure is missing, by field.
        status: ``ok``, or ``error`` where the work raised.
    """

    run_id: str
    started_at: str
    ended_at: str
    duration_seconds: float
    energy_joules: float | None
    energy_kwh: float | None
    co2_kg: float | None
    bytes_sent: int | None
    bytes_received: int | None
    disk_bytes_read: int | None
    disk_bytes_write: int | None
    emission_factor_kg_per_kwh: float | None
    emission_factor_source: str | None
    energy_method: str
    energy_scope: str
    energy_reason: str | None
    energy_covered_seconds: float
    allocation_ratio: float | None
    attribution_mode: str
    reasons: Mapping[str, str]
    status: str

    def to_dict(self) -> dict[str, Any]:
        """Every field as a plain value."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people."""
        energy = f"{self.energy_joules:.3g} J" if self.energy_joules is not None else "energy not known"
        parts = [f"{energy} ({self.energy_method}, {self.energy_scope}) in {self.duration_seconds:.3g} s"]
        if self.co2_kg is not None:
            parts.append(f"{self.co2_kg * 1000:.3g} g CO2, an estimate")
        if self.energy_reason is not None:
            parts.append(self.energy_reason)
        return "; ".join(parts)
