"""Span and run records as the processor makes them, for every test of what is written from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joulegram_pipeline.records import Account, NodeRecord, RunRecord, TableRef

if TYPE_CHECKING:
    from joulegram_pipeline.records import SpanRecord

RUN_ID = "etl-20260102T030405Z"
START_NS = 1_767_323_045_000_000_000
"""2026-01-02T03:04:05Z."""

TABLE = TableRef(
    id="epa-egrid-subregion",
    version="2023r2-0123abcd",
    sha256="ab" * 32,
    title="eGRID subregion output emission rates",
    publisher="U.S. EPA",
    source_url="https://www.epa.gov/egrid",
    licence="public domain",
)

NODE = NodeRecord(
    node="hrrr_ingest",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="00f067aa0ba902b7",
    started_ns=START_NS,
    ended_ns=START_NS + 2_500_000_000,
    cpu_uj=1_200_000,
    gpu_uj=3_600_000,
    total_uj=4_800_000,
    carbon_ug=533,
)


def span_record(index: int, run_id: str = RUN_ID, **changes: Any) -> SpanRecord:
    """The record of the span that came `index`-th; a second long, 1.5 J, 167 ug."""
    record: dict[str, Any] = {
        "kind": "span",
        "pos": [1000 + index, 0],
        "origin": 640 + index,
        "run_id": run_id,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": f"{index + 1:016x}",
        "parent_span_id": "b7ad6b7169203331",
        "name": "etl.node.hrrr_ingest",
        "node": "hrrr_ingest",
        "start_ns": str(START_NS + index * 1_000_000_000),
        "end_ns": str(START_NS + (index + 1) * 1_000_000_000),
        "status": "ok",
        "energy": {
            "method": "measured",
            "scope": "host",
            "total_uj": 1_500_000,
            "cpu_uj": 1_200_000,
            "dram_uj": 300_000,
            "exclusive_uj": 900_000,
            "covered_ns": "1000000000",
        },
        "carbon": {
            "ug": 167,
            "lower_ug": 150,
            "upper_ug": 184,
            "exclusive_ug": 100,
            "intensity_mg_per_kwh": 400_000,
            "gas": "co2e",
            "region": "SPSO",
            "resolution": "annual",
            "table": TABLE.name,
        },
    }
    record.update(changes)
    return record  # type: ignore[return-value]


def run_record(**changes: Any) -> RunRecord:
    """A run of 0.01 kWh at 0.4 kg/kWh: 4 g."""
    fields: dict[str, Any] = {
        "pos": (9000, 0),
        "run_id": RUN_ID,
        "revision": 1,
        "job_type": "etl",
        "status": "ok",
        "ended_by": "root_span",
        "started_ns": START_NS,
        "ended_ns": START_NS + 90_500_000_000,
        "recorded_ns": START_NS + 92_000_000_000,
        "spans": 3,
        "trace_ids": ("0af7651916cd43dd8448eb211c80319c",),
        "energy_uj": 36_000_000_000,
        "cpu_uj": 30_000_000_000,
        "dram_uj": 6_000_000_000,
        "gpu_uj": None,
        "energy_method": "measured",
        "energy_scope": "host",
        "energy_reason": None,
        "carbon_ug": 4_000_000,
        "carbon_lower_ug": 3_600_000,
        "carbon_upper_ug": 4_400_000,
        "carbon_reason": None,
        "gas": "co2e",
        "region": "SPSO",
        "upper_bound": False,
        "factor_kg_per_kwh": 0.4,
        "factor_source": f"eGRID subregion output emission rates ({TABLE.name})",
        "tables": (TABLE,),
        "nodes": (NODE,),
        "account": Account(
            start_ns=START_NS,
            end_ns=START_NS + 91_000_000_000,
            measured_uj=40_000_000_000,
            spans_uj=36_000_000_000,
            other_spans_uj=0,
            idle_uj=3_000_000_000,
            other_uj=700_000_000,
            unattributed_uj=300_000_000,
            uncovered_ns=0,
        ),
        "stac_item": None,
        "hw_id": "node-7f3a",
        "hw_name": "kfm-node",
    }
    fields.update(changes)
    return RunRecord(**fields)


def unmeasured(**changes: Any) -> RunRecord:
    """A run whose energy is not known, and so its carbon neither."""
    fields: dict[str, Any] = {
        "energy_uj": None,
        "cpu_uj": None,
        "dram_uj": None,
        "energy_method": "unavailable",
        "energy_reason": "no energy source on this node",
        "carbon_ug": None,
        "carbon_lower_ug": None,
        "carbon_upper_ug": None,
        "carbon_reason": "energy is not known",
        "gas": None,
        "nodes": (),
        "account": None,
    }
    fields.update(changes)
    return run_record(**fields)
