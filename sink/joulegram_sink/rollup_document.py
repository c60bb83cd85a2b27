"""The roll-up of a run: ``<run_id>-telemetry.json`` and `properties.telemetry` of an Item (B1, S0-40, S0-41).

Invariants:
    * a quantity that is not known is null and a reason stands beside it (D-32, D-42, S0-66, S0-67);
    * ``energy_kwh = energy_joules / 3_600_000``; ``co2_kg = energy_kwh x emission_factor_kg_per_kwh`` to
      1e-9 of itself: the factor written is the effective one of the integers (S0-52, S0-53);
    * the same RunRecord gives the same document, key order included.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.clock import utc_iso
from joulegram_pipeline.units import UG_PER_KG, UJ_PER_KWH, ns_to_s, ug_to_kg, uj_to_j, uj_to_kwh

if TYPE_CHECKING:
    from joulegram_pipeline.records import RunRecord

SCHEMA_VERSION = "telemetry-rollup-v1"

_METHODS = {
    "measured": "measured",
    "modelled": "estimated",
    # The job's own figure: no counter that we read stands behind it.
    "reported": "estimated",
    "mixed": "mixed",
}
_SCOPES = {
    "host": "host",
    "package": "package",
    "process": "process",
    "container": "container",
    "pod": "pod",
    "job": "job",
    "span": "job",
}
_JOB_LEVEL = frozenset({"process", "container", "pod", "job"})


def rollup_document(run: RunRecord) -> dict[str, Any]:
    """The roll-up of a run: the seed's 14 keys in its order, then what says how they came about."""
    kwh = None if run.energy_uj is None else uj_to_kwh(run.energy_uj)
    # S0-67: carbon only when energy is known and a factor is declared.
    known = run.energy_uj is not None and run.carbon_ug is not None and run.factor_kg_per_kwh is not None
    co2_kg = ug_to_kg(run.carbon_ug) if known and run.carbon_ug is not None else None
    # A scope that this contract has no word for is called by the widest: never claim more than is known (S0-06).
    scope = _SCOPES.get(run.energy_scope, "host")
    document: dict[str, Any] = {
        "run_id": run.run_id,
        "started_at": utc_iso(run.started_ns),
        "ended_at": utc_iso(run.ended_ns),
        "duration_seconds": ns_to_s(run.ended_ns - run.started_ns),
        "energy_joules": None if run.energy_uj is None else uj_to_j(run.energy_uj),
        "energy_kwh": kwh,
        "co2_kg": co2_kg,
        "bytes_sent": None,
        "bytes_received": None,
        "disk_bytes_read": None,
        "disk_bytes_write": None,
        "emission_factor_kg_per_kwh": _factor(run, kwh, co2_kg),
        "emission_factor_source": run.factor_source.strip() or "none declared",
        "recorded_at": utc_iso(run.recorded_ns),
        "energy_method": "unavailable" if kwh is None else _METHODS.get(run.energy_method, "mixed"),
        "energy_method_detail": "unavailable" if kwh is None else run.energy_method,
        "energy_scope": scope,
    }
    if kwh is None or run.energy_reason is not None:
        document["energy_reason"] = run.energy_reason or "not recorded"
    document["co2_label"] = f"estimate, {'job' if scope in _JOB_LEVEL else 'host'}-level"
    if co2_kg is not None and run.carbon_lower_ug is not None and run.carbon_upper_ug is not None:
        document["co2_kg_lower"] = ug_to_kg(run.carbon_lower_ug)
        document["co2_kg_upper"] = ug_to_kg(run.carbon_upper_ug)
    if co2_kg is None or run.carbon_reason is not None:
        document["carbon_reason"] = run.carbon_reason or (
            "energy is not known" if kwh is None else "no emission factor is declared"
        )
    elif (share := _covered(run)) is not None:
        document["carbon_reason"] = f"the carbon of {share:.2%} of the energy is known; the factor is over all of it"
    if run.gas is not None:
        document["gas"] = run.gas
    if run.region is not None:
        document["factor_region"] = run.region
    if run.tables:
        document["factor_version"] = ", ".join(table.name for table in run.tables)
    if run.upper_bound:
        document["factor_upper_bound"] = True
    document["job_type"] = run.job_type
    document["status"] = run.status
    document["revision"] = run.revision
    document["spans"] = run.spans
    document["schema_version"] = SCHEMA_VERSION
    return document


def document_bytes(document: dict[str, Any]) -> bytes:
    """A document as it is written: UTF-8, indent 2, non-ASCII kept, a line feed at the end (S0-41)."""
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _factor(run: RunRecord, kwh: float | None, co2_kg: float | None) -> float | None:
    declared = run.factor_kg_per_kwh
    if declared is None or kwh is None or not co2_kg:
        return declared
    # Carbon is a sum of whole micrograms, one rounding a span: within that the table's own figure stands.
    if abs(kwh * declared - co2_kg) * UG_PER_KG <= max(1.0, run.spans / 2):
        return declared
    assert run.energy_uj is not None
    assert run.carbon_ug is not None
    return (run.carbon_ug * UJ_PER_KWH) / (run.energy_uj * UG_PER_KG)


def _covered(run: RunRecord) -> float | None:
    """The part of the energy whose carbon is known, None where it is all; rounding is below a microgram a span."""
    assert run.energy_uj is not None
    assert run.carbon_ug is not None
    assert run.factor_kg_per_kwh is not None
    whole_ug = run.energy_uj * run.factor_kg_per_kwh * UG_PER_KG / UJ_PER_KWH
    if whole_ug - run.carbon_ug <= max(run.spans, whole_ug * 1e-9):
        return None
    return run.carbon_ug / whole_ug
