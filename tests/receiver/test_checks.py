"""The structural checks of spans (otlp reference A11)."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.span_rows import scope_rows
from joulegram_receiver.checks import broken_rows, explain, fault


def request(*spans: dict[str, Any]) -> Any:
    message = ExportTraceServiceRequest()
    for fields in spans:
        whole = {"trace_id": b"t" * 16, "span_id": b"s" * 8, "start_time_unix_nano": 5, "end_time_unix_nano": 5}
        message.resource_spans.add().scope_spans.add().spans.add(**(whole | fields))
    return message


BROKEN = {
    "no trace id": ({"trace_id": b""}, "trace_id", "trace_id='' (0 bytes), expected 16 bytes"),
    "a trace id too long": ({"trace_id": b"t" * 17}, "trace_id", "(17 bytes), expected 16 bytes"),
    "a trace id of zeros": ({"trace_id": bytes(16)}, "trace_id", "expected 16 bytes not all zero"),
    "a span id too short": ({"span_id": b"s" * 7}, "span_id", "(7 bytes), expected 8 bytes"),
    "a span id of zeros": ({"span_id": bytes(8)}, "span_id", "expected 8 bytes not all zero"),
    "no start": ({"start_time_unix_nano": 0}, "times", "has no start: start_time_unix_nano=0"),
    "an end before its start": ({"end_time_unix_nano": 4}, "times", "start_time_unix_nano=5, end_time_unix_nano=4"),
    "no end": ({"end_time_unix_nano": 0}, "times", "end_time_unix_nano=0"),
}


@pytest.mark.parametrize(("fields", "reason", "text"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_span_is_found_and_said(fields: dict[str, Any], reason: str, text: str) -> None:
    """Both the quick search and the explanation see each fault."""
    (found,) = broken_rows(scope_rows(request({}, fields, {})))
    said = fault(found)
    assert said is not None
    assert said[0] == reason
    assert text in said[1]


def test_whole_spans_are_not_found() -> None:
    """An end equal to its start and an empty name are OTLP."""
    message = request({}, {"name": ""}, {"parent_span_id": b"odd"})
    assert broken_rows(scope_rows(message)) == []


def test_five_are_named_and_the_rest_counted() -> None:
    """The message stays short however many spans are broken, and however long their names are."""
    message = request(*({"name": f"n{i}" * 60, "span_id": b""} for i in range(9)))
    text, counts = explain(broken_rows(scope_rows(message)))
    assert counts == {"span_id": 9}
    assert text.count("forwarded without energy") == 5
    assert text.endswith("; and 4 more")
    assert len(text) < 1000
