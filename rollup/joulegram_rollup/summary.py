"""A run as its ledger holds it: its spans, its totals, its energy account, and the state of the ledger.

Invariants:
    * only the ledger is read, no state of a running sidecar;
    * what the ledger does not say is None here and absent in the JSON; a reason is kept beside it;
    * lines that do not follow from each other are reported, not believed silently (`ledger_verify` says
      more).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from joulegram_pipeline.errors import DocumentError, StorageError
from joulegram_pipeline.units import ns_to_s, ug_to_g, uj_to_j

if TYPE_CHECKING:
    from pathlib import Path

_SEGMENTS = "ledger-??????.ndjson"
_ACCOUNT = ("measured", "spans", "other_spans", "idle", "other", "unattributed")


@dataclass(frozen=True, slots=True)
class SpanRow:
    """A joined span: seconds, joules and grams of itself with its descendants; the bounds are of 95 %."""

    name: str
    trace_id: str
    span_id: str
    duration_s: float
    method: str
    total_j: float | None = None
    gco2e: float | None = None
    gco2e_lower: float | None = None
    gco2e_upper: float | None = None
    node: str | None = None
    scope: str | None = None
    gas: str | None = None
    resolution: str | None = None
    table: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RunTotals:
    """The run's own line, of its highest revision: J and g of exclusive energy, seconds of wall time.

    `account_j` says where the energy of the run's window went; its parts add up to ``measured``.
    """

    revision: int
    status: str
    ended_by: str
    job_type: str
    duration_s: float
    spans: int
    method: str
    scope: str
    factor_source: str
    total_j: float | None = None
    gco2e: float | None = None
    gco2e_lower: float | None = None
    gco2e_upper: float | None = None
    gas: str | None = None
    region: str | None = None
    factor_kg_per_kwh: float | None = None
    energy_reason: str | None = None
    carbon_reason: str | None = None
    tables: tuple[str, ...] = ()
    account_j: dict[str, float] | None = None
    uncovered_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run read back.

    Args:
        run_id: of the run.
        spans: in the order they were recorded.
        totals: None while the run has not ended.
        ledger_lines: whole lines of the ledger, all runs and the genesis included.
        ledger_head: hash of the last; ``sha256:`` and 64 hex digits.
        problems: what is wrong with the ledger, each with file and line.
    """

    run_id: str
    spans: tuple[SpanRow, ...]
    totals: RunTotals | None
    ledger_lines: int
    ledger_head: str
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Reader:
    needle: bytes
    spans: list[SpanRow] = field(default_factory=list)
    totals: RunTotals | None = None
    lines: int = 0
    head: str = "sha256:" + "0" * 64
    problems: list[str] = field(default_factory=list)


def read_run(ledger_dir: Path, run_id: str) -> RunSummary:
    """Read a run back from the ledger of a directory.

    Raises:
        DocumentError: the ledger is not there, or holds nothing of this run.
        StorageError: a file cannot be read.
    """
    # RFC 8785 writes a key and its value in one way, so lines of other runs need no parsing.
    reader = _Reader(b'"run_id":' + orjson.dumps(run_id))
    segments = sorted(ledger_dir.glob(_SEGMENTS))
    if not segments:
        raise DocumentError(f"got no {_SEGMENTS} in {str(ledger_dir)!r}, expected a ledger")
    for path in segments:
        try:
            with path.open("rb") as handle:
                for number, raw in enumerate(handle, 1):
                    _take(f"{path.name}:{number}", raw, reader)
        except OSError as error:
            raise StorageError(f"cannot read ledger {str(path)!r}: {error.strerror or error}") from error
    if not reader.spans and reader.totals is None:
        raise DocumentError(f"got run {run_id!r}, expected one of which ledger {str(ledger_dir)!r} holds a line")
    return RunSummary(run_id, tuple(reader.spans), reader.totals, reader.lines, reader.head, tuple(reader.problems))


def to_json(summary: RunSummary) -> dict[str, Any]:
    """The summary as a JSON value; what is not known is absent."""
    out: dict[str, Any] = _known(asdict(summary))
    return out


def _take(where: str, raw: bytes, reader: _Reader) -> None:
    line = raw.removesuffix(b"\n")
    if line == raw:
        reader.problems.append(f"{where}: got a torn line of {len(raw)} bytes, expected a line feed at its end")
        return
    if f'"prev_hash":"{reader.head}"'.encode() not in line:
        reader.problems.append(f"{where}: got a line that does not name {reader.head!r}, the hash of the one before it")
    reader.head = "sha256:" + hashlib.sha256(line).hexdigest()
    reader.lines += 1
    if reader.needle not in line:
        return
    try:
        value = orjson.loads(line)
        if value["kind"] == "span":
            reader.spans.append(_span(value))
        elif reader.totals is None or value["revision"] >= reader.totals.revision:
            reader.totals = _totals(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reader.problems.append(f"{where}: got {line[:80]!r}, expected a ledger line: {type(error).__name__}: {error}")


def _span(value: dict[str, Any]) -> SpanRow:
    energy, carbon = value["energy"], value["carbon"]
    return SpanRow(
        name=value["name"],
        trace_id=value["trace_id"],
        span_id=value["span_id"],
        duration_s=ns_to_s(int(value["end_ns"]) - int(value["start_ns"])),
        method=energy["method"],
        total_j=_j(energy.get("total_uj")),
        gco2e=_g(carbon.get("ug")),
        gco2e_lower=_g(carbon.get("lower_ug")),
        gco2e_upper=_g(carbon.get("upper_ug")),
        node=value.get("node"),
        scope=energy.get("scope"),
        gas=carbon.get("gas"),
        resolution=carbon.get("resolution"),
        table=carbon.get("table"),
        reason=energy.get("reason") or carbon.get("reason"),
    )


def _totals(value: dict[str, Any]) -> RunTotals:
    energy, carbon, account = value["energy"], value["carbon"], value.get("account")
    factor = carbon.get("factor_kg_per_kwh")
    return RunTotals(
        revision=value["revision"],
        status=value["status"],
        ended_by=value["ended_by"],
        job_type=value["job_type"],
        duration_s=ns_to_s(int(value["ended_ns"]) - int(value["started_ns"])),
        spans=value["spans"],
        method=energy["method"],
        scope=energy["scope"],
        factor_source=carbon["factor_source"],
        total_j=_j(energy.get("total_uj")),
        gco2e=_g(carbon.get("ug")),
        gco2e_lower=_g(carbon.get("lower_ug")),
        gco2e_upper=_g(carbon.get("upper_ug")),
        gas=carbon.get("gas"),
        region=carbon.get("region"),
        factor_kg_per_kwh=None if factor is None else float(factor),
        energy_reason=energy.get("reason"),
        carbon_reason=carbon.get("reason"),
        tables=tuple(f"{table['id']}@{table['version']}" for table in carbon["tables"]),
        account_j=None if account is None else {part: uj_to_j(account[f"{part}_uj"]) for part in _ACCOUNT},
        uncovered_s=None if account is None else ns_to_s(int(account["uncovered_ns"])),
    )


def _j(energy_uj: int | None) -> float | None:
    return None if energy_uj is None else uj_to_j(energy_uj)


def _g(carbon_ug: int | None) -> float | None:
    return None if carbon_ug is None else ug_to_g(carbon_ug)


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_known(item) for item in value]
    return value
