"""What a ledger line is: its file, its hash, its genesis, and the line of a run (schemas: ledger-line-v1).

Invariants:
    * a line is the RFC 8785 bytes of its record and one LF; it never holds a float, so `canonical_plain` may
      write it;
    * line 0 is the genesis; every other line has `pos`, the position of its record in the log.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulegram_pipeline.records import Account, RunRecord

FIRST_SEGMENT = "ledger-000000.ndjson"
SEGMENTS = "ledger-??????.ndjson"
"""Names of all segments, sorted as they follow each other; this version writes the first alone."""

ZERO_HASH = "sha256:" + "0" * 64
"""`prev_hash` of the genesis line, which has none before it."""

MAX_LINE_BYTES = 65_535
"""A longer line would not fit the entry of a tlog-tiles log (16-bit length)."""


def line_hash(line: bytes) -> str:
    """The hash of a line without its LF, as the next line's `prev_hash` has it."""
    return "sha256:" + hashlib.sha256(line).hexdigest()


def genesis_line(log_id: str) -> dict[str, Any]:
    """Line 0 of a ledger; `log_id` is a ULID that no other ledger has."""
    return {"kind": "genesis", "log": log_id, "prev_hash": ZERO_HASH, "seq": 0, "version": "1"}


def is_genesis(value: object) -> bool:
    """Whether a parsed line is a genesis line, whole and of this version."""
    return isinstance(value, dict) and value == genesis_line(str(value.get("log")))


def run_line(run: RunRecord) -> dict[str, Any]:
    """The ledger line of a run before the ledger adds `seq` and `prev_hash`.

    Energy in microjoules, carbon in micrograms, time in nanoseconds as decimal strings; what is not known is
    absent and `reason` says why. Nodes and trace ids are not repeated: the run's span lines hold them.
    """
    line: dict[str, Any] = {
        "kind": "run",
        "pos": list(run.pos),
        "run_id": run.run_id,
        "revision": run.revision,
        "job_type": run.job_type,
        "status": run.status,
        "ended_by": run.ended_by,
        "started_ns": str(run.started_ns),
        "ended_ns": str(run.ended_ns),
        "recorded_ns": str(run.recorded_ns),
        "spans": run.spans,
        "traces": len(run.trace_ids),
        "hw_id": run.hw_id,
        "energy": _known(
            method=run.energy_method,
            scope=run.energy_scope,
            total_uj=run.energy_uj,
            cpu_uj=run.cpu_uj,
            dram_uj=run.dram_uj,
            gpu_uj=run.gpu_uj,
            reason=run.energy_reason,
        ),
        "carbon": _known(
            ug=run.carbon_ug,
            lower_ug=run.carbon_lower_ug,
            upper_ug=run.carbon_upper_ug,
            gas=run.gas,
            region=run.region,
            upper_bound=run.upper_bound or None,
            # Text, because the line holds no float: the shortest decimal that reads back as the same number.
            factor_kg_per_kwh=None if run.factor_kg_per_kwh is None else repr(run.factor_kg_per_kwh),
            factor_source=run.factor_source,
            tables=[{"id": ref.id, "version": ref.version, "sha256": ref.sha256} for ref in run.tables],
            reason=run.carbon_reason,
        ),
    }
    if run.account is not None:
        line["account"] = _account(run.account)
    return line


def _account(account: Account) -> dict[str, Any]:
    return {
        "start_ns": str(account.start_ns),
        "end_ns": str(account.end_ns),
        "measured_uj": account.measured_uj,
        "spans_uj": account.spans_uj,
        "other_spans_uj": account.other_spans_uj,
        "idle_uj": account.idle_uj,
        "other_uj": account.other_uj,
        "unattributed_uj": account.unattributed_uj,
        "uncovered_ns": str(account.uncovered_ns),
    }


def _known(**fields: object) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
