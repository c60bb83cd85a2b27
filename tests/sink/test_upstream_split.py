"""Dividing one request: two valid ones that together say the same, for every signal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_sink.upstream_split import halves

SIGNALS: dict[str, tuple[Any, str, str, str]] = {
    "traces": (ExportTraceServiceRequest, "resource_spans", "scope_spans", "spans"),
    "metrics": (ExportMetricsServiceRequest, "resource_metrics", "scope_metrics", "metrics"),
    "logs": (ExportLogsServiceRequest, "resource_logs", "scope_logs", "log_records"),
    "profiles": (ExportProfilesServiceRequest, "resource_profiles", "scope_profiles", "profiles"),
}
UNKNOWN = b"\xf8\x3f\x07"
"""Field 1023 with the number 7, which no OTLP message knows."""

Leaf = tuple[bytes, bytes, bytes]
"""Resource and scope, with all else that stands there, and item; each serialised."""


def leaves(signal: str, request: bytes) -> list[Leaf]:
    """Every item with what it belongs to."""
    kind, resources, scopes, items = SIGNALS[signal]
    found = []
    for resource in getattr(kind.FromString(request), resources):
        above = type(resource).FromString(resource.SerializeToString())
        above.ClearField(scopes)
        for scope in getattr(resource, scopes):
            beside = type(scope).FromString(scope.SerializeToString())
            beside.ClearField(items)
            found += [
                (above.SerializeToString(), beside.SerializeToString(), item.SerializeToString())
                for item in getattr(scope, items)
            ]
    return found


def build(signal: str, shape: list[list[int]]) -> bytes:
    """A request with so many items in each scope of each resource, and a field nobody knows at every level."""
    kind, resources, scopes, items = SIGNALS[signal]
    message = kind()
    number = 0
    for counts in shape:
        resource = getattr(message, resources).add(schema_url=f"resource {number}")
        for count in counts:
            scope = getattr(resource, scopes).add(schema_url=f"scope {number}")
            for _ in range(count):
                number += 1
                item = getattr(scope, items).add()
                item.MergeFromString(b"\xfa\x3f\x04%04d" % number)
            scope.MergeFromString(UNKNOWN)
        resource.MergeFromString(UNKNOWN)
    if signal == "profiles":
        message.dictionary.string_table.extend(["", "a", "b"])
    return bytes(message.SerializeToString())


@pytest.mark.parametrize("signal", SIGNALS)
@given(shape=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=3))
def test_the_halves_say_what_the_whole_said(signal: str, shape: list[list[int]]) -> None:
    """Divided down to what cannot be: every item once, in order, with its resource, scope and unknown fields."""
    whole = build(signal, shape)
    parts, undone = [], [whole]
    while undone:
        part = undone.pop(0)
        found = halves(part)
        if found is None:
            parts.append(part)
        else:
            assert all(len(half) < len(part) for half in found)
            undone[:0] = found
    assert [leaf for part in parts for leaf in leaves(signal, part)] == leaves(signal, whole)
    assert all(len(leaves(signal, part)) <= 1 for part in parts)
    if signal == "profiles":
        assert {len(ExportProfilesServiceRequest.FromString(part).dictionary.string_table) for part in parts} == {3}


def test_the_halves_are_about_equal() -> None:
    """By bytes: neither is more than two thirds where the items are alike."""
    whole = build("traces", [[100]])
    found = halves(whole)
    assert found is not None
    assert max(map(len, found)) < len(whole) * 2 / 3


BAD = {
    "nothing": b"",
    "text": b"not protobuf at all",
    "a group": b"\x0b\x0c",
    "a length that lies": b"\x0a\xff\xff\xff\x7f",
    "a varint without end": b"\x0a" + b"\xff" * 12,
    "a torn fixed field": b"\x09\x01",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_request_is_not_divided(data: bytes) -> None:
    """It was accepted as OTLP once; if it is none, it is at least left whole."""
    assert halves(data) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_divided_or_left(data: bytes) -> None:
    """No error leaves it."""
    found = halves(data)
    assert found is None or len(found) == 2
