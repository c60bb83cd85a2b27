"""What travels between the rooms: records of the log, joined spans, and the run they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

if TYPE_CHECKING:
    from joulegram_pipeline.span_rows import Extract


class RecordKind(IntEnum):
    """What a log record holds; the number stands in the file."""

    TRACES = 1
    METRICS = 2
    LOGS = 3
    PROFILES = 4
    TICKS = 5
    CONTROL = 6


Metadata = tuple[tuple[str, str], ...]
"""Request headers that the configuration lists, as (lower-case name, value); they travel with the request upstream."""

AFAR: tuple[str, str] = (":sender", "afar")
"""Beside a request's headers in the log: it came from another address than this machine's. No header can be called so,
and it is not sent on."""


def without_afar(metadata: Metadata) -> Metadata:
    """What of a record's metadata travels upstream."""
    return tuple(pair for pair in metadata if pair != AFAR) if AFAR in metadata else metadata


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of a write-ahead log.

    Args:
        lsn: its position: the byte offset of its header since the log began. Grows, is never reused.
        next_lsn: the position after it.
        kind: what `payload` is: a raw OTLP request, a `TickBatch`, or JSON of a control record.
        received_ns: wall clock at receipt; the only clock the processor knows.
        payload: the bytes as they came.
        parsed: what was read of a trace request at receipt, where it is still in memory.
        metadata: headers of the request that travel with it.
    """

    lsn: int
    next_lsn: int
    kind: RecordKind
    received_ns: int
    payload: bytes
    parsed: Extract | None = field(default=None, compare=False)
    metadata: Metadata = ()


class Outgoing(NamedTuple):
    """A request for the upstream.

    Args:
        pos: (lsn of the record that brought it about, ordinal among its outputs).
        kind: its signal.
        request: protobuf bytes, whole or in pieces that follow each other.
        metadata: sent along as headers.
    """

    pos: tuple[int, int]
    kind: RecordKind
    request: bytes | tuple[bytes, ...] | list[bytes]
    metadata: Metadata = ()

    @property
    def body(self) -> bytes:
        """The request whole."""
        return self.request if isinstance(self.request, bytes) else b"".join(self.request)


class SpanEnergy(TypedDict):
    """Energy of a joined span in the ledger; a kind that was not measured is absent."""

    method: str
    scope: NotRequired[str]
    total_uj: NotRequired[int]
    cpu_uj: NotRequired[int]
    dram_uj: NotRequired[int]
    gpu_uj: NotRequired[int]
    exclusive_uj: NotRequired[int]
    reported_uj: NotRequired[int]
    covered_ns: NotRequired[str]
    reason: NotRequired[str]


class SpanCarbon(TypedDict):
    """Carbon of a joined span in the ledger; the estimate with its 95 % interval, and the row it rests on."""

    ug: NotRequired[int]
    lower_ug: NotRequired[int]
    upper_ug: NotRequired[int]
    exclusive_ug: NotRequired[int]
    intensity_mg_per_kwh: NotRequired[int]
    gas: NotRequired[str]
    region: NotRequired[str]
    resolution: NotRequired[str]
    table: NotRequired[str]
    upper_bound: NotRequired[bool]
    reason: NotRequired[str]


class SpanRecord(TypedDict):
    """A ledger line of kind ``span`` before the ledger adds `seq` and `prev_hash` (schemas: ledger-line-v1)."""

    kind: str
    pos: list[int]
    origin: int
    run_id: str
    trace_id: str
    span_id: str
    parent_span_id: NotRequired[str]
    name: str
    node: NotRequired[str]
    start_ns: str
    end_ns: str
    status: str
    energy: SpanEnergy
    carbon: SpanCarbon


class GapRecord(TypedDict):
    """A ledger line of kind ``gap``: acknowledged records that a full spool dropped, by kind; `unread` is the loss."""

    kind: str
    pos: list[int]
    cause: str
    first_lsn: int
    next_lsn: int
    records: dict[str, int]
    unread: dict[str, int]
    bytes: int


LedgerLine = tuple[int, int, str, str, str]
"""A ledger line made as text: lsn and ordinal of its position, and its canonical JSON in three parts. Between the first
and second belongs the member `prev_hash`, between the second and third `seq`; only the ledger knows their values."""


@dataclass(frozen=True, slots=True)
class TableRef:
    """The intensity table a result rests on, as an auditor needs it named.

    Args:
        id: table id, ``epa-egrid-subregion``.
        version: upstream label and eight hex digits of the hash.
        sha256: of ``table.csv``.
        title: for people.
        publisher: who published the figures.
        source_url: where.
        licence: SPDX or as published.
    """

    id: str
    version: str
    sha256: str
    title: str
    publisher: str
    source_url: str
    licence: str

    @property
    def name(self) -> str:
        """``id@version``, the value of `carbon.table`."""
        return f"{self.id}@{self.version}"


@dataclass(frozen=True, slots=True)
class Account:
    """Where the energy of a window went; the parts add up to `measured_uj`, to the microjoule (design section 4).

    Args:
        start_ns: window, wall clock.
        end_ns: exclusive.
        measured_uj: what the domains counted.
        spans_uj: given to spans of this run, exclusive.
        other_spans_uj: given to spans of other runs, exclusive.
        idle_uj: spent whether or not anything ran.
        other_uj: spent by processes that no span speaks for.
        unattributed_uj: spent by a process that sent spans, at times when none of them was open.
        uncovered_ns: time of the window that no tick covers.
    """

    start_ns: int
    end_ns: int
    measured_uj: int
    spans_uj: int
    other_spans_uj: int
    idle_uj: int
    other_uj: int
    unattributed_uj: int
    uncovered_ns: int


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One ETL node of a run (S1-40): a span ``etl.node.<name>``, inclusive of its descendants."""

    node: str
    trace_id: str
    span_id: str
    started_ns: int
    ended_ns: int
    cpu_uj: int | None
    gpu_uj: int | None
    total_uj: int | None
    carbon_ug: int | None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A finished run: what the roll-up, PROV, STAC and the ledger's ``run`` line are written from.

    A quantity that is not known is None and `energy_reason` or `carbon_reason` says why.

    Args:
        pos: the ledger position (lsn, ordinal) of the run line.
        revision: 1, and one more each time late spans changed the run.
        ended_by: ``root_span``, ``command_exit``, ``idle_timeout`` or ``shutdown``.
        recorded_ns: log time of the record that closed the run, so that a replay writes the same bytes.
        energy_uj: Σ exclusive energy of the run's spans.
        factor_kg_per_kwh: effective, energy-weighted emission factor.
        factor_source: human-readable, with table id and version, or the configured source.
        stac_item: the Item the job named, as it named it.
    """

    pos: tuple[int, int]
    run_id: str
    revision: int
    job_type: str
    status: str
    ended_by: str
    started_ns: int
    ended_ns: int
    recorded_ns: int
    spans: int
    trace_ids: tuple[str, ...]
    energy_uj: int | None
    cpu_uj: int | None
    dram_uj: int | None
    gpu_uj: int | None
    energy_method: str
    energy_scope: str
    energy_reason: str | None
    carbon_ug: int | None
    carbon_lower_ug: int | None
    carbon_upper_ug: int | None
    carbon_reason: str | None
    gas: str | None
    region: str | None
    upper_bound: bool
    factor_kg_per_kwh: float | None
    factor_source: str
    tables: tuple[TableRef, ...]
    nodes: tuple[NodeRecord, ...]
    account: Account | None
    stac_item: str | None
    hw_id: str
    hw_name: str


Json = dict[str, Any]
