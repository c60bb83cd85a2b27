"""What the join needs to know of the spans of a request, read column by column."""

from __future__ import annotations

from operator import itemgetter, le
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import IdentifierError, WireError
from joulegram_pipeline.ids import check_run_id
from joulegram_pipeline.units import UJ_PER_J
from joulegram_processor.wire import first_span_offset

if TYPE_CHECKING:
    from joulegram_processor.select import Selector

Row = tuple[str, bytes, bytes, bytes, int, int, int]
"""Name, trace id, span id, parent span id, start and end (wall clock, ns), status code."""

NAME: Final = 0
TRACE: Final = 1
SPAN: Final = 2
PARENT: Final = 3
START: Final = 4
END: Final = 5
STATUS: Final = 6

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

_ZERO_TRACE, _ZERO_SPAN = bytes(16), bytes(8)
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
        total: spans in the request.
        links: parent keys of the spans that are not selected, where some are and some are not.
    """

    __slots__ = (
        "blobs",
        "extras",
        "indices",
        "links",
        "lsn",
        "pids",
        "received_ns",
        "repeated",
        "rows",
        "runs",
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

    def read(self, payload: bytes, lsn: int, received_ns: int) -> Batch:
        """The spans to join, in order of appearance; those that break OTLP (ids, times) are left out.

        Raises:
            WireError: the bytes are not a trace request.
        """
        try:
            request = ExportTraceServiceRequest.FromString(payload)
        except Exception as error:  # protobuf's DecodeError is not the same class in every backend
            raise WireError(f"got {len(payload)} bytes that are not an ExportTraceServiceRequest: {error}") from error
        # Resources hold such keys as a rule, spans often do not; with one resource, it stands before its spans.
        begin = first_span_offset(payload) if len(request.resource_spans) == 1 else 0
        attributed = any(payload.find(mark, begin) >= 0 for mark in self._marks)
        batch = Batch(lsn, received_ns)
        for resource_spans in request.resource_spans:
            resource = attribute_values(resource_spans.resource.attributes)
            pid = process_of(resource)
            run = run_of(resource) or self._default_run
            for scope_spans in resource_spans.scope_spans:
                spans = scope_spans.spans
                rows: list[Row] = [
                    (
                        span.name,
                        span.trace_id,
                        span.span_id,
                        span.parent_span_id,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.status.code,
                    )
                    for span in spans
                ]
                self._take(batch, rows, run, pid, spans if attributed else None)
                batch.total += len(rows)
        if batch.rows and len(batch.rows) < batch.total:
            batch.links = _links(request, set(batch.indices))
        batch.waiting = len(batch.rows)
        return batch

    def _take(self, batch: Batch, rows: list[Row], run: str | None, pid: int, attributed: Any | None) -> None:
        """Add the selected and well-formed rows of one scope to the batch."""
        first = batch.total
        if attributed is None and all(map(self._selects, set(map(_name, rows)))) and _all_sound(rows):
            batch.indices += range(first, first + len(rows))
            batch.runs += [run] * len(rows) if run is not None else [row[TRACE].hex() for row in rows]
            batch.pids += [pid] * len(rows)
            batch.rows += rows
            return
        for at, row in enumerate(rows):
            values: dict[str, Any] = {}
            if attributed is not None:
                values = {item.key: plain(item.value) for item in attributed[at].attributes if item.key in self._wanted}
            if not _sound(row) or not (self._selects(row[NAME]) or not self._attributes.isdisjoint(values)):
                continue
            if len(row[PARENT]) not in {0, 8} or row[PARENT] == _ZERO_SPAN:
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


_name, _trace, _span, _parent = itemgetter(NAME), itemgetter(TRACE), itemgetter(SPAN), itemgetter(PARENT)
_start, _end = itemgetter(START), itemgetter(END)


def _all_sound(rows: list[Row]) -> bool:
    """Whether `_sound` holds for every row, asked column by column."""
    traces, spans, parents = set(map(_trace, rows)), list(map(_span, rows)), set(map(_parent, rows))
    return (
        all(map(le, map(_start, rows), map(_end, rows)))
        and 0 not in map(_start, rows)
        and set(map(len, parents)) <= {0, 8}
        and _ZERO_SPAN not in parents
        and set(map(len, traces)) <= {16}
        and set(map(len, spans)) <= {8}
        and _ZERO_TRACE not in traces
        and _ZERO_SPAN not in spans
    )


def _sound(row: Row) -> bool:
    """Whether a span has ids and times that OTLP allows."""
    return (
        row[END] >= row[START] > 0
        and len(row[TRACE]) == 16
        and len(row[SPAN]) == 8
        and row[TRACE] != _ZERO_TRACE
        and row[SPAN] != _ZERO_SPAN
    )


def _links(request: Any, selected: set[int]) -> dict[bytes, bytes]:
    every = (
        span
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    )
    return {
        span.trace_id + span.span_id: span.trace_id + span.parent_span_id
        for index, span in enumerate(every)
        if index not in selected and len(span.parent_span_id) == 8
    }


def attribute_values(attributes: Any) -> dict[str, Any]:
    """Attributes as plain values; the last one counts where a key is given twice."""
    return {item.key: plain(item.value) for item in attributes}


def plain(value: Any) -> Any:
    """An AnyValue as str, bool, int or float; None where it is none of those."""
    kind = value.WhichOneof("value")
    if kind in {"string_value", "bool_value", "int_value", "double_value"}:
        return getattr(value, kind)
    return None


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
