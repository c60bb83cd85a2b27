"""What OTLP asks of a span beyond bytes that parse: valid ids, and an end that is not before its start."""

from __future__ import annotations

from typing import Any

_NO_TRACE_ID = bytes(16)
_NO_SPAN_ID = bytes(8)
_MAX_NAMED = 5
_MAX_NAME = 80


def broken_spans(request: Any) -> list[Any]:
    """The spans of a parsed ExportTraceServiceRequest that break OTLP; hot, so it only finds them."""
    return [
        span
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
        if not 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        or len(trace_id := span.trace_id) != 16
        or trace_id == _NO_TRACE_ID
        or len(span_id := span.span_id) != 8
        or span_id == _NO_SPAN_ID
    ]


def fault(span: Any) -> tuple[str, str] | None:
    """What is wrong with one span: a reason for the metric and a sentence for its sender; None if nothing.

    The first fault found in the order trace id, span id, times.
    """
    for reason, field, value, length in (
        ("trace_id", "trace id", span.trace_id, 16),
        ("span_id", "span id", span.span_id, 8),
    ):
        if len(value) != length:
            return reason, (
                f"{field} of the wrong length: {reason}={value.hex()!r} ({len(value)} bytes), expected {length} bytes"
            )
        if not any(value):
            return reason, f"{field} all zero: {reason}={value.hex()!r}, expected {length} bytes not all zero"
    start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
    if start_ns == 0:
        return "times", "has no start: start_time_unix_nano=0, expected nanoseconds since 1970"
    if end_ns < start_ns:
        return "times", (
            f"ends before it starts: start_time_unix_nano={start_ns}, end_time_unix_nano={end_ns}, "
            "expected end >= start"
        )
    return None


def explain(spans: list[Any]) -> tuple[str, dict[str, int]]:
    """Name broken spans to their sender.

    Args:
        spans: as `broken_spans` found them.

    Returns:
        The text of `partial_success.error_message`, naming up to five, and the count of spans by reason.
    """
    counts: dict[str, int] = {}
    sentences: list[str] = []
    for span in spans:
        found = fault(span)
        if found is None:
            continue
        reason, sentence = found
        counts[reason] = counts.get(reason, 0) + 1
        if len(sentences) < _MAX_NAMED:
            sentences.append(f"span {_shown(span.name)}: {sentence}; forwarded without energy")
    more = sum(counts.values()) - len(sentences)
    return "; ".join(sentences) + (f"; and {more} more" if more else ""), counts


def _shown(name: str) -> str:
    cut = name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
    return f'"{cut}"'
