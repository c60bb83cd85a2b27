"""What the join needs to know of the spans of a request, read column by column."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import IdentifierError, WireError
from joulegram_pipeline.ids import check_run_id
from joulegram_pipeline.span_rows import (
    END,
    NAME,
    PARENT,
    SPAN,
    START,
    TRACE,
    all_regular,
    names_parent,
    plain,
    scope_rows,
    sound,
)
from joulegram_pipeline.units import UJ_PER_J
from joulegram_processor.wire import first_span_offset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_pipeline.records import LogRecord
    from joulegram_pipeline.span_rows import Row
    from joulegram_processor.select import Selector

NODE_PREFIX = "etl.node."
ROOT_NAME = "etl.job"

MAX_NAME = 1024
"""Characters of a client's text in a ledger line, which has a limit of its own; the forwarded span keeps all of it."""

MAX_REPORTED_J = 1e9
"""A gigajoule is a megawatt for a quarter of an hour: beyond it a report is no span's energy."""

_STATUS = ("unset", "ok", "error")

_READ_KEYS = frozenset({"energy.cpu_j", "job.id", "job.type", "kfm.node", "kfm.run_id", "kfm.stac_item"})
_MARKS = (b"energy.", b"job.", b"kfm.", b"carbon.", b"timing.")
"""A request without any of these bytes in its spans has no span attribute the join would read or replace."""

_CONTAINED = ("container.id", "k8s.pod.uid")
"""Resource attributes that say the process id is one of another pid namespace."""

_MAX_NAMES = 65_536


class Batch:
    """The selected spans of one request, on their way to their energy.

    Args:
        lsn: of the request.
        received_ns: log time of the request.
        rows: the selected spans.
        indices: where each stands among all spans of the request.
        runs: the run of each.
        pids: the process of each, 0 where none is known.
        extras: attributes the join reads or replaces, by row; absent where a span has none.
        keys: trace id + span id of each, `parents` likewise of its parent, empty for a root; `starts` and `ends` in ns.
        total: spans in the request.
        links: parent keys of the spans that are not selected, where some are and some are not.
    """

    __slots__ = (
        "blobs",
        "ends",
        "extras",
        "indices",
        "keys",
        "links",
        "lsn",
        "parents",
        "pids",
        "received_ns",
        "repeated",
        "rows",
        "runs",
        "starts",
        "total",
        "waiting",
    )

    def __init__(self, lsn: int, received_ns: int) -> None:
        self.lsn = lsn
        self.received_ns = received_ns
        self.rows: list[Row] = []
        self.indices: list[int] = []
        self.runs: list[str] = []
        self.pids: list[int] = []
        self.extras: dict[int, dict[str, Any]] = {}
        self.links: dict[bytes, bytes] = {}
        self.keys: list[bytes] = []
        self.parents: list[bytes] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.total = 0
        self.waiting = 0
        self.blobs: dict[int, bytes] = {}
        """Encoded attributes of the settled spans, by row."""
        self.repeated: set[int] = set()
        """Rows of spans that were joined before."""


class SpanReader:
    """Reads the selected, well-formed spans of a request.

    Args:
        selector: which spans are joined.
        default_run: the run of spans that name none; None makes it the span's trace.
        written_keys: the attribute keys enrichment writes, so that a span which has one already is known.
    """

    def __init__(self, selector: Selector, default_run: str | None, written_keys: frozenset[str]) -> None:
        self._exact = selector.exact
        self._prefixes = selector.prefixes
        self._attributes = frozenset(selector.attributes)
        self._marks = (*_MARKS, *(key.encode() for key in selector.attributes if not key.startswith("kfm.")))
        self._default_run = default_run
        self._wanted = _READ_KEYS | written_keys | self._attributes
        self._by_name: dict[str, bool] = {}

    def read(self, record: LogRecord) -> Batch:
        """The spans to join, in order of appearance; those that break OTLP (ids, times) are left out.

        Raises:
            WireError: the record is not a trace request.
        """
        payload, scopes, request = record.payload, record.parsed, None
        if scopes is None:
            request = _parse(payload)
            scopes = scope_rows(request)
        # Resources hold such keys as a rule, spans often do not; with one resource, it stands before its spans.
        one = len({id(scope.resource) for scope in scopes}) == 1
        begin = first_span_offset(payload) if one else 0
        spans: Iterator[Any] | None = None
        if any(payload.find(mark, begin) >= 0 for mark in self._marks):
            spans = _every_span(request if request is not None else _parse(payload))
        batch = Batch(record.lsn, record.received_ns)
        unselected: list[Row] = []
        for scope in scopes:
            run = run_of(scope.resource) or self._default_run
            self._take(batch, scope.rows, run, process_of(scope.resource), spans, unselected)
            batch.total += len(scope.rows)
        if batch.rows and unselected:
            batch.links = {row[TRACE] + row[SPAN]: row[TRACE] + row[PARENT] for row in unselected if names_parent(row)}
        # Columns are taken while the rows are still in the cache: a second and fifty thousand spans later they are not.
        batch.keys = [row[TRACE] + row[SPAN] for row in batch.rows]
        batch.parents = [row[PARENT] and row[TRACE] + row[PARENT] for row in batch.rows]
        batch.starts = [row[START] for row in batch.rows]
        batch.ends = [row[END] for row in batch.rows]
        batch.waiting = len(batch.rows)
        return batch

    def _take(
        self,
        batch: Batch,
        rows: list[Row],
        run: str | None,
        pid: int,
        spans: Iterator[Any] | None,
        unselected: list[Row],
    ) -> None:
        """Add the selected and well-formed rows of one scope to the batch."""
        first = batch.total
        if spans is None and all(map(self._selects, set(map(_name, rows)))) and all_regular(rows):
            batch.indices += range(first, first + len(rows))
            batch.runs += [run] * len(rows) if run is not None else [row[TRACE].hex() for row in rows]
            batch.pids += [pid] * len(rows)
            batch.rows += rows
            return
        for at, row in enumerate(rows):
            values: dict[str, Any] = {}
            if spans is not None:
                values = {item.key: plain(item.value) for item in next(spans).attributes if item.key in self._wanted}
            if not sound(row) or not (self._selects(row[NAME]) or not self._attributes.isdisjoint(values)):
                unselected.append(row)
                continue
            if row[PARENT] and not names_parent(row):
                row = (*row[:PARENT], b"", *row[START:])  # noqa: PLW2901 - no id, so no parent
            if values:
                batch.extras[len(batch.rows)] = values
            batch.runs.append((run_of(values) if values else None) or run or row[TRACE].hex())
            batch.indices.append(first + at)
            batch.pids.append(pid)
            batch.rows.append(row)

    def _selects(self, name: str) -> bool:
        known = self._by_name.get(name)
        if known is None:
            known = name in self._exact or name.startswith(self._prefixes)
            if len(self._by_name) < _MAX_NAMES and len(name) <= MAX_NAME:
                self._by_name[name] = known
        return known


_name = itemgetter(NAME)


def _parse(payload: bytes) -> Any:
    try:
        return ExportTraceServiceRequest.FromString(payload)
    except Exception as error:  # protobuf's DecodeError is not the same class in every backend
        raise WireError(f"got {len(payload)} bytes that are not an ExportTraceServiceRequest: {error}") from error


def _every_span(request: Any) -> Iterator[Any]:
    return (
        span
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    )


def process_of(resource: dict[str, Any]) -> int:
    """The process a resource names, 0 where it names none that could be one of this node's."""
    pid = resource.get("process.pid")
    if any(key in resource for key in _CONTAINED):
        return 0
    if isinstance(pid, str) and pid.isascii() and pid.isdigit() and len(pid) < 10:
        pid = int(pid)
    return pid if isinstance(pid, int) and not isinstance(pid, bool) and 1 < pid < 2**31 else 0


def run_of(values: dict[str, Any]) -> str | None:
    """The run an attribute set names, `kfm.run_id` before `job.id`; None where it names none that may be used."""
    for key in ("kfm.run_id", "job.id"):
        value = values.get(key)
        if isinstance(value, str):
            try:
                return check_run_id(value)
            except IdentifierError:
                continue
    return None


def shortened(text: str) -> str:
    """A client's text as a ledger line holds it."""
    return text if len(text) <= MAX_NAME else text[:MAX_NAME] + "…"


def status_text(code: int) -> str:
    """A span's status as the ledger writes it; a code OTLP does not know is unset."""
    return _STATUS[code] if 0 <= code < len(_STATUS) else _STATUS[0]


def node_of(name: str, extras: dict[str, Any]) -> str | None:
    """The ETL node a span is: its `kfm.node`, else what follows ``etl.node.`` in its name (S1-21, S1-22)."""
    value = extras.get("kfm.node")
    if isinstance(value, str) and value:
        return shortened(value)
    return shortened(name.removeprefix(NODE_PREFIX)) if name.startswith(NODE_PREFIX) else None


def reported_uj(extras: dict[str, Any]) -> int | None:
    """Energy the job itself reported as `energy.cpu_j`, None where it reported none that can be an energy."""
    value = extras.get("energy.cpu_j")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(value * UJ_PER_J) if 0 <= value < MAX_REPORTED_J else None
