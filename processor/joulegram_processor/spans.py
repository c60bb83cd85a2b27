"""What the join needs to know of the spans of a request, read column by column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import IdentifierError, WireError
from joulegram_pipeline.ids import check_run_id
from joulegram_pipeline.records import AFAR
from joulegram_pipeline.span_rows import (
    END,
    NAME,
    NO_SPAN,
    PARENT,
    SPAN,
    START,
    TRACE,
    Extract,
    all_regular,
    names_parent,
    plain,
    sound,
)
from joulegram_pipeline.units import UJ_PER_J
from joulegram_processor import native
from joulegram_processor.scopes import HOST, key_of
from joulegram_processor.wire import first_span_offset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from joulegram_pipeline.records import LogRecord
    from joulegram_pipeline.span_rows import Row
    from joulegram_processor.select import Selector

NODE_PREFIX = "etl.node."
ROOT_NAME = "etl.job"

MAX_NAME = 1024
"""Characters of a client's text in a ledger line, which has a limit of its own; the forwarded span keeps all of it."""

MAX_REPORTED_J = 1e9
"""A gigajoule is a megawatt for a quarter of an hour: beyond it a report is no span's energy."""

MAX_SPENT_NS = 2**62
"""Of CPU time: a century and a half of one CPU."""

_STATUS = ("unset", "ok", "error")

CPU_NS = "joulegram.cpu_ns"
"""What a span's threads spent while it was innermost on them, as the SDK's SpanProcessor says."""

_CPU_MARK = CPU_NS.encode()

_READ_KEYS = frozenset(
    {"energy.cpu_j", "hw.id", "job.id", "job.type", "kfm.node", "kfm.run_id", "kfm.stac_item", CPU_NS}
)
_MARKS = (b"energy.", b"hw.id", b"job.", b"joulegram.", b"kfm.", b"carbon.", b"timing.")
"""A request without any of these bytes in its spans has no span attribute the join would read or replace."""

_MAX_NAMES = 65_536

TRACE_BYTES = 16


class Batch:
    """The selected spans of one request, on their way to their energy.

    Args:
        lsn: of the request.
        received_ns: log time of the request.
        rows: the selected spans.
        indices: where each stands among all spans of the request.
        runs: the run of each.
        pids: the scope each names: a process, or the key of a container or pod; 0 where it names none.
        extras: attributes the join reads or replaces, by row; absent where a span has none.
        keys: trace id + span id of each, `parents` likewise of its parent, empty for a root; `starts` and `ends` in ns.
        total: spans in the request.
        links: parent keys of the spans that are not selected, where some are and some are not.
        roots: traces whose root is among those.
        spent: as in `Extract`.
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
        "roots",
        "rows",
        "runs",
        "spent",
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
        self.pids: list[int | str] = []
        self.extras: dict[int, dict[str, Any]] = {}
        self.links: dict[bytes, bytes] = {}
        self.spent: dict[bytes, tuple[bytes, int]] = {}
        self.roots: set[bytes] = set()
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

    @property
    def processes(self) -> set[int]:
        """Those its spans name."""
        return {pid for pid in set(self.pids) if isinstance(pid, int) and pid > HOST}


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
        self._attribute_marks = [(key, key.encode()) for key in selector.attributes]
        self._marks = (*_MARKS, *(mark for key, mark in self._attribute_marks if not key.startswith("kfm.")))
        self._default_run = default_run
        self._wanted = _READ_KEYS | written_keys | self._attributes
        self._by_name: dict[str, bool] = {}
        # As bytes, for the native reader; a lone surrogate is in no name that came as UTF-8.
        self._exact_bytes = tuple(name.encode(errors="surrogatepass") for name in selector.exact)
        self._prefix_bytes = tuple(prefix.encode(errors="surrogatepass") for prefix in selector.prefixes)
        self._wanted_bytes = {key.encode(errors="surrogatepass"): key for key in self._wanted}

    def read(self, record: LogRecord) -> Batch:
        """The spans of a record to join, as a batch; see `extract`.

        Raises:
            WireError: the record is not a trace request.
        """
        found = record.parsed if record.parsed is not None else self.extract(record.payload)
        batch = Batch(record.lsn, record.received_ns)
        batch.total, batch.rows, batch.indices = found.total, found.rows, found.indices
        batch.runs, batch.pids, batch.extras = found.runs, found.pids, found.extras
        batch.links, batch.roots, batch.spent = found.links, found.roots, found.spent
        if AFAR in record.metadata:  # the number of a process of some other kernel
            batch.pids = [HOST if isinstance(pid, int) else pid for pid in batch.pids]
        # Columns are taken while the rows are still in the cache: a second and fifty thousand spans later they are not.
        batch.keys = [row[TRACE] + row[SPAN] for row in batch.rows]
        batch.parents = [row[PARENT] and row[TRACE] + row[PARENT] for row in batch.rows]
        batch.starts = [row[START] for row in batch.rows]
        batch.ends = [row[END] for row in batch.rows]
        batch.waiting = len(batch.rows)
        return batch

    def extract(self, payload: bytes) -> Extract:
        """The spans to join, in order of appearance; those of them that break OTLP (ids, times) are set apart.

        The names of all spans are read, and all else only of those that the join wants. Attributes are looked at only
        where the request has the bytes of a key that matters: those of other spans cost nothing.

        Raises:
            WireError: the bytes are not a trace request.
        """
        found = self._extract(payload)
        if len(found.rows) < found.total and _holds(payload, _CPU_MARK):
            found.spent = spent_outside(payload, {row[TRACE] + row[SPAN] for row in found.rows})
        return found

    def _extract(self, payload: bytes) -> Extract:
        if native.LOADED is not None:
            fields = native.LOADED.extract(
                payload,
                self._exact_bytes,
                self._prefix_bytes,
                self._wanted_bytes,
                self._attributes,
                self._place,
                run_of,
            )
            if fields is not None:
                return Extract(*fields)
        return self.extract_in_python(payload)

    def extract_in_python(self, payload: bytes) -> Extract:
        """`extract` where the native module is not there, or refuses the request."""
        request = _parse(payload)
        groups = request.resource_spans
        # A resource holds such keys as a rule, spans often do not; with one resource, it stands before its spans.
        begin = first_span_offset(payload) if len(groups) == 1 else 0
        found = Extract()
        named: list[tuple[Any, Any, list[str], list[int] | None]] = []
        for group in groups:
            for scope in group.scope_spans:
                names = [span.name for span in scope.spans]
                chosen = {name for name in set(names) if self._selects(name)}
                picks = None if len(chosen) == len(set(names)) else [i for i, n in enumerate(names) if n in chosen]
                named.append((group.resource, scope.spans, names, picks))
                found.total += len(names)
        by_attribute = self._attributes_select(payload, begin, named)
        few = sum(len(names if picks is None else picks) for _, _, names, picks in named) * 8 < found.total
        marked = by_attribute or few or any(payload.find(mark, begin) >= 0 for mark in self._marks)
        first = 0
        for resource, spans, names, picks in named:
            if by_attribute or picks is None or picks:
                attributes = {item.key: plain(item.value) for item in resource.attributes}
                run, pid = self._place(attributes)
                # With an attribute that selects about, every span is looked at.
                self._take(
                    found,
                    spans,
                    range(len(names)) if by_attribute else picks,
                    first,
                    run,
                    pid,
                    by_attribute=by_attribute,
                    marked=marked,
                )
            first += len(names)
        if found.rows and len(found.rows) < found.total:
            self._link(found, named)
        return found

    def _place(self, resource: dict[str, Any]) -> tuple[str | None, int | str]:
        """Run and scope of the spans of a resource, as far as they name no other."""
        return run_of(resource) or self._default_run, key_of(resource)

    def _attributes_select(self, payload: bytes, begin: int, named: list[Any]) -> bool:
        """Whether a span that no name selects may carry an attribute that does."""
        for key, mark in self._attribute_marks:
            hits = payload.count(mark, begin)
            if hits and any(picks is not None for _, _, _, picks in named):
                known = sum(
                    item.key == key
                    for _, spans, _, picks in named
                    for span in (spans if picks is None else map(spans.__getitem__, picks))
                    for item in span.attributes
                )
                if hits > known:
                    return True
        return False

    def _take(
        self,
        found: Extract,
        spans: Any,
        picks: Sequence[int] | None,
        first: int,
        run: str | None,
        pid: int | str,
        *,
        by_attribute: bool,
        marked: bool,
    ) -> None:
        """Add the spans of one scope that are picked, all where `picks` is None, and well-formed."""
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
            for span in (spans if picks is None else map(spans.__getitem__, picks))
        ]
        if not marked and all_regular(rows):
            found.indices += range(first, first + len(rows)) if picks is None else [first + at for at in picks]
            found.runs += [run] * len(rows) if run is not None else [row[TRACE].hex() for row in rows]
            found.pids += [pid] * len(rows)
            found.rows += rows
            return
        for at, row in zip(range(len(rows)) if picks is None else picks, rows, strict=True):
            values = {item.key: plain(item.value) for item in spans[at].attributes if item.key in self._wanted}
            if by_attribute and self._attributes.isdisjoint(values) and not self._selects(row[NAME]):
                continue
            if not sound(row):
                found.broken.append(row)
                continue
            if row[PARENT] and not names_parent(row):
                row = (*row[:PARENT], b"", *row[START:])  # noqa: PLW2901 - no id, so no parent
            if values:
                found.extras[len(found.rows)] = values
            found.runs.append((run_of(values) if values else None) or run or row[TRACE].hex())
            found.indices.append(first + at)
            found.pids.append(pid)
            found.rows.append(row)

    @staticmethod
    def _link(found: Extract, named: list[Any]) -> None:
        """Note roots, and parents by which a span finds the next above it that is joined, of spans that are not.

        A root that is not joined ends the wait of its trace like any other.
        """
        keys = {row[TRACE] + row[SPAN] for row in found.rows}
        for _, spans, _, _ in named:
            for span in spans:
                trace, parent = span.trace_id, span.parent_span_id
                key = trace + span.span_id
                if key in keys:
                    continue
                if len(parent) == len(NO_SPAN) and parent != NO_SPAN:
                    found.links[key] = trace + parent
                elif not parent:
                    found.roots.add(trace)

    def _selects(self, name: str) -> bool:
        known = self._by_name.get(name)
        if known is None:
            known = name in self._exact or name.startswith(self._prefixes)
            if len(self._by_name) < _MAX_NAMES and len(name) <= MAX_NAME:
                self._by_name[name] = known
        return known


def _holds(payload: bytes, mark: bytes) -> bool:
    """Whether a request has the bytes of a key anywhere."""
    return native.LOADED.holds(payload, mark) if native.LOADED is not None else mark in payload


def _parse(payload: bytes) -> Any:
    try:
        return ExportTraceServiceRequest.FromString(payload)
    except Exception as error:  # protobuf's DecodeError is not the same class in every backend
        raise WireError(
            f"got {len(payload)} bytes that are not an ExportTraceServiceRequest, "
            f"beginning {payload[:16].hex()!r}, expected one: {error}"
        ) from error


def roots_of(payload: bytes) -> set[bytes]:
    """The traces whose root is in a request; none where it is not one."""
    try:
        request = _parse(payload)
    except WireError:
        return set()
    return {
        span.trace_id
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
        if not span.parent_span_id
    }


def spent_outside(payload: bytes, joined: set[bytes]) -> dict[bytes, tuple[bytes, int]]:
    """The spans of a request that are not joined, with parent and CPU time; empty where none of them says any."""
    found: dict[bytes, tuple[bytes, int]] = {}
    for group in _parse(payload).resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                trace, parent = span.trace_id, span.parent_span_id
                key = trace + span.span_id
                if key in joined or len(trace) != TRACE_BYTES or len(span.span_id) != len(NO_SPAN):
                    continue
                said = {item.key: plain(item.value) for item in span.attributes if item.key == CPU_NS}
                found[key] = (trace + parent if len(parent) == len(NO_SPAN) else b"", spent_ns(said) or 0)
    return found if any(spent for _, spent in found.values()) else {}


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


def spent_ns(extras: dict[str, Any]) -> int | None:
    """The CPU time a span says its threads spent; None where it does not say, or says what cannot be one."""
    value = extras.get(CPU_NS)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SPENT_NS else None
