"""What OTLP asks of a span beyond bytes that parse: valid ids, and an end that is not before its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_pipeline.span_rows import END, NAME, SPAN, START, TRACE, all_regular, sound

if TYPE_CHECKING:
    from joulegram_pipeline.span_rows import Row, ScopeRows

_MAX_NAMED = 5
_MAX_NAME = 80


def broken_rows(scopes: list[ScopeRows]) -> list[Row]:
    """The spans of a request that break OTLP; hot, so it only finds them."""
    if all(all_regular(scope.rows) for scope in scopes):
        return []
    return [row for scope in scopes for row in scope.rows if not sound(row)]


def fault(row: Row) -> tuple[str, str] | None:
    """What is wrong with one span: a reason for the metric and a sentence for its sender; None if nothing.

    The first fault found in the order trace id, span id, times.
    """
    for reason, field, value, length in (
        ("trace_id", "trace id", row[TRACE], 16),
        ("span_id", "span id", row[SPAN], 8),
    ):
        if len(value) != length:
            return reason, (
                f"{field} of the wrong length: {reason}={value.hex()!r} ({len(value)} bytes), expected {length} bytes"
            )
        if not any(value):
            return reason, f"{field} all zero: {reason}={value.hex()!r}, expected {length} bytes not all zero"
    start_ns, end_ns = row[START], row[END]
    if start_ns == 0:
        return "times", "has no start: start_time_unix_nano=0, expected nanoseconds since 1970"
    if end_ns < start_ns:
        return "times", (
            f"ends before it starts: start_time_unix_nano={start_ns}, end_time_unix_nano={end_ns}, "
            "expected end >= start"
        )
    return None


def explain(rows: list[Row]) -> tuple[str, dict[str, int]]:
    """Name broken spans to their sender.

    Args:
        rows: as `broken_rows` found them.

    Returns:
        The text of `partial_success.error_message`, naming up to five, and the count of spans by reason.
    """
    counts: dict[str, int] = {}
    sentences: list[str] = []
    for row in rows:
        found = fault(row)
        if found is None:
            continue
        reason, sentence = found
        counts[reason] = counts.get(reason, 0) + 1
        if len(sentences) < _MAX_NAMED:
            sentences.append(f"span {_shown(row[NAME])}: {sentence}; forwarded without energy")
    more = sum(counts.values()) - len(sentences)
    return "; ".join(sentences) + (f"; and {more} more" if more else ""), counts


def _shown(name: str) -> str:
    cut = name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
    return f'"{cut}"'
