"""What the join needs to know of a span, read from a trace request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import IdentifierError, WireError
from joulegram_pipeline.ids import check_run_id, is_span_id, is_trace_id

if TYPE_CHECKING:
    from joulegram_processor.select import Selector

_SPAN_KEYS = frozenset(
    {
        "energy.cpu_j",
        "job.id",
        "job.type",
        "kfm.node",
        "kfm.run_id",
        "kfm.stac_item",
    }
)
_MARKS = (b"energy.", b"job.", b"kfm.", b"carbon.", b"timing.")
"""A request without any of these bytes has no span attribute the join would read or replace."""

_CONTAINED = ("container.id", "k8s.pod.uid")
"""Resource attributes that say the process id is one of another pid namespace."""

_STATUS = ("unset", "ok", "error")


class OpenSpan:
    """A selected span on its way to its energy; one of hundreds of thousands, hence no dataclass machinery.

    `key` is trace id + span id, `parent_key` trace id + parent span id or empty; times are wall-clock nanoseconds;
    `own` is exclusive energy, `kids` what settled descendants add to it, both by kind in microjoules.
    """

    __slots__ = (
        "attributes",
        "end_ns",
        "index",
        "key",
        "kids",
        "name",
        "node_uj",
        "origin",
        "own",
        "parent_key",
        "pid",
        "replaces",
        "run_id",
        "scope",
        "start_ns",
        "status",
        "waiting",
    )

    def __init__(
        self,
        origin: int,
        index: int,
        key: bytes,
        parent_key: bytes,
        name: str,
        start_ns: int,
        end_ns: int,
        status: int,
        pid: int,
        run_id: str,
    ) -> None:
        self.origin = origin
        self.index = index
        self.key = key
        self.parent_key = parent_key
        self.name = name
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.status = status
        self.pid = pid
        self.run_id = run_id
        self.attributes: dict[str, Any] = _NONE
        self.replaces = False
        self.own: tuple[int, int, int] = (0, 0, 0)
        self.kids: tuple[int, int, int] = (0, 0, 0)
        self.node_uj = 0
        self.scope = 0
        self.waiting = 0

    @property
    def status_text(self) -> str:
        return _STATUS[self.status] if 0 <= self.status < 3 else "unset"


_NONE: dict[str, Any] = {}


class SpanReader:
    """Reads the selected, well-formed spans of a request.

    Args:
        selector: which spans are joined.
        default_run: the run of spans that name none; None makes it the span's trace.
        written_keys: the attribute keys enrichment writes; a span that has one already is marked `replaces`.
    """

    def __init__(self, selector: Selector, default_run: str | None, written_keys: frozenset[str]) -> None:
        self._exact = selector.exact
        self._prefixes = selector.prefixes
        self._attributes = frozenset(selector.attributes)
        self._attribute_marks = tuple(key.encode() for key in selector.attributes)
        self._default_run = default_run
        self._written = written_keys
        self._wanted = _SPAN_KEYS | written_keys | self._attributes

    def read(self, payload: bytes, origin: int) -> tuple[list[OpenSpan], dict[bytes, bytes]]:
        """The spans to join, in order of appearance; those that break OTLP (ids, times) are left out.

        Beside them, where there are any, the parents of the spans that are not joined, so that a joined span below
        another is known as its descendant though there are others between.

        Raises:
            WireError: the bytes are not a trace request.
        """
        try:
            request = ExportTraceServiceRequest.FromString(payload)
        except Exception as error:  # protobuf's DecodeError is not the same class in every backend
            raise WireError(f"got {len(payload)} bytes that are not an ExportTraceServiceRequest: {error}") from error
        attributed = any(mark in payload for mark in _MARKS + self._attribute_marks)
        exact, prefixes = self._exact, self._prefixes
        found: list[OpenSpan] = []
        index = -1
        for resource_spans in request.resource_spans:
            resource = attribute_values(resource_spans.resource.attributes)
            pid = process_of(resource)
            named_run = run_of(resource)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    index += 1
                    name = span.name
                    attributes = _NONE
                    if attributed:
                        attributes = {item.key: item.value for item in span.attributes if item.key in self._wanted}
                    if not (
                        name in exact
                        or name.startswith(prefixes)
                        or (attributes and not self._attributes.isdisjoint(attributes))
                    ):
                        continue
                    trace_id, span_id = span.trace_id, span.span_id
                    start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
                    if end_ns < start_ns or not is_trace_id(trace_id) or not is_span_id(span_id):
                        continue
                    parent_id = span.parent_span_id
                    run_id = named_run
                    if attributes:
                        values = {key: plain(value) for key, value in attributes.items()}
                        run_id = run_of(values) or named_run
                    item = OpenSpan(
                        origin,
                        index,
                        trace_id + span_id,
                        trace_id + parent_id if len(parent_id) == 8 else b"",
                        name,
                        start_ns,
                        end_ns,
                        span.status.code,
                        pid,
                        run_id or self._default_run or trace_id.hex(),
                    )
                    if attributes:
                        item.attributes = values
                        item.replaces = not self._written.isdisjoint(values)
                    found.append(item)
        return found, _links(request, found) if 0 < len(found) <= index else {}


def _links(request: Any, found: list[OpenSpan]) -> dict[bytes, bytes]:
    joined = {span.index for span in found}
    every = (
        span
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    )
    return {
        span.trace_id + span.span_id: span.trace_id + span.parent_span_id
        for index, span in enumerate(every)
        if index not in joined and len(span.parent_span_id) == 8
    }


def attribute_values(attributes: Any) -> dict[str, Any]:
    """Resource attributes as plain values; the last one counts where a key is given twice."""
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
