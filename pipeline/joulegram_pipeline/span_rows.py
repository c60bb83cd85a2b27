"""The spans of a trace request as rows: what is checked at receipt and joined later, read from the message once."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter, le
from typing import Any, Final

Row = tuple[str, bytes, bytes, bytes, int, int, int]
"""Name, trace id, span id, parent span id, start and end (wall clock, ns), status code."""

NAME: Final = 0
TRACE: Final = 1
SPAN: Final = 2
PARENT: Final = 3
START: Final = 4
END: Final = 5
STATUS: Final = 6

_ZERO_TRACE, NO_SPAN = bytes(16), bytes(8)
_trace, _span, _parent = itemgetter(TRACE), itemgetter(SPAN), itemgetter(PARENT)
_start, _end = itemgetter(START), itemgetter(END)


@dataclass(slots=True)
class Extract:
    """What the join wants of a trace request.

    Args:
        total: spans in the request.
        rows: the spans to join, in order of appearance.
        indices: where each stands among all spans of the request.
        runs: the run of each.
        pids: the scope each names: a process, or the key of a container or pod; 0 where it names none.
        extras: attributes the join reads or replaces, by row; absent where a span has none.
        links: trace id + span id of spans that are not joined to those of their parents, where any may be needed.
        roots: traces whose root is here and is not joined, where any span of the request is.
        broken: spans that would be joined, did they not break OTLP.
        spent: trace id + span id of the spans that are not joined, with that of their parent (empty for a root) and the
            CPU time they say they spent, 0 where they do not; empty where none of them says it.
    """

    total: int = 0
    rows: list[Row] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    pids: list[int | str] = field(default_factory=list)
    extras: dict[int, dict[str, Any]] = field(default_factory=dict)
    links: dict[bytes, bytes] = field(default_factory=dict)
    roots: set[bytes] = field(default_factory=set)
    broken: list[Row] = field(default_factory=list)
    spent: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScopeRows:
    """The spans of one ScopeSpans, in order.

    Args:
        resource: attributes of their resource, as plain values; shared by the scopes of one resource.
        rows: the spans.
    """

    resource: dict[str, Any]
    rows: list[Row]


def scope_rows(request: Any) -> list[ScopeRows]:
    """All spans of a parsed ExportTraceServiceRequest, scope by scope."""
    found = []
    for resource_spans in request.resource_spans:
        resource = {item.key: plain(item.value) for item in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
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
                for span in scope_spans.spans
            ]
            found.append(ScopeRows(resource, rows))
    return found


def plain(value: Any) -> Any:
    """An AnyValue as str, bool, int or float; None where it is none of those."""
    kind = value.WhichOneof("value")
    if kind in {"string_value", "bool_value", "int_value", "double_value"}:
        return getattr(value, kind)
    return None


def sound(row: Row) -> bool:
    """Whether a span has the ids and times that OTLP asks for (A11); a parent id of another form names nobody."""
    return (
        row[END] >= row[START] > 0
        and len(row[TRACE]) == 16
        and len(row[SPAN]) == 8
        and row[TRACE] != _ZERO_TRACE
        and row[SPAN] != NO_SPAN
    )


def names_parent(row: Row) -> bool:
    """Whether the parent id is one."""
    return len(row[PARENT]) == 8 and row[PARENT] != NO_SPAN


def all_regular(rows: list[Row]) -> bool:
    """Whether every row is sound and its parent id empty or one; asked column by column, because it is asked often."""
    traces, spans, parents = set(map(_trace, rows)), list(map(_span, rows)), set(map(_parent, rows))
    return (
        all(map(le, map(_start, rows), map(_end, rows)))
        and 0 not in map(_start, rows)
        and set(map(len, parents)) <= {0, 8}
        and NO_SPAN not in parents
        and set(map(len, traces)) <= {16}
        and set(map(len, spans)) <= {8}
        and _ZERO_TRACE not in traces
        and NO_SPAN not in spans
    )
