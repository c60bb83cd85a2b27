"""What is fuzzed: one function for each decoder that reads bytes of others, on the wire or on the disk.

Each takes any bytes and raises for a defect alone: an exception that the decoder does not promise, or a law that does
not hold of what it gave. Where protobuf, zlib or the json module read the same, they are the judge.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from fuzz import on_disk, on_wire
from joulegram_pipeline.errors import WireError
from joulegram_pipeline.span_rows import sound
from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.select import Selector
from joulegram_processor.spans import SpanReader
from joulegram_processor.wire import splice, splice_all, string_attribute, without_attributes
from joulegram_receiver.intake_refusals import TooLargeError
from joulegram_receiver.otlp_json import from_otlp_json, to_otlp_json
from joulegram_receiver.signals import SIGNALS
from joulegram_sink.upstream_split import halves

if TYPE_CHECKING:
    from collections.abc import Callable

_SELECTOR = Selector()
_READER = SpanReader(_SELECTOR, None, WRITTEN_KEYS)
_ADDED = string_attribute("joined", "yes")


def _parsed(kind: Any, data: bytes) -> Any:
    """What protobuf makes of the bytes; None where it refuses them."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def _spans(request: Any) -> list[Any]:
    return [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]


def fuzz_extract(data: bytes) -> None:
    """`SpanReader.extract` takes what protobuf takes, and finds the spans that a plain look finds."""
    request = _parsed(ExportTraceServiceRequest, data)
    try:
        found = _READER.extract(data)
    except WireError:
        assert request is None, "a request that protobuf reads was refused"
        return
    assert request is not None, "bytes that protobuf refuses were read"
    spans = _spans(request)
    wanted = [
        at
        for at, span in enumerate(spans)
        if span.name in _SELECTOR.exact
        or span.name.startswith(_SELECTOR.prefixes)
        or any(pair.key in _SELECTOR.attributes for pair in span.attributes)
    ]
    rows = {at: (spans[at].name, spans[at].trace_id, spans[at].span_id) for at in wanted}
    assert found.total == len(spans)
    assert len(found.rows) == len(found.indices) == len(found.runs) == len(found.pids)
    assert all(map(sound, found.rows))
    assert not any(map(sound, found.broken))
    assert {at: row[:3] for at, row in zip(found.indices, found.rows, strict=True)}.items() <= rows.items()
    assert len(found.rows) + len(found.broken) == len(wanted)
    assert set(found.extras) <= set(range(len(found.rows)))


def fuzz_splice(data: bytes) -> None:
    """`splice` and `splice_all` find the spans that protobuf finds, and change nothing that they are not told to."""
    request = _parsed(ExportTraceServiceRequest, data)
    count = 0 if request is None else len(_spans(request))
    try:
        same = splice(data, range(count), lambda _, at: data[at.start : at.end])
        grown = splice(data, range(count), lambda _, at: data[at.start : at.end] + _ADDED)
        quick = splice_all(data, [_ADDED] * count)
    except WireError:
        assert request is None, "a request that protobuf reads could not be edited"
        return
    if request is None:
        return  # what is inside a span is not looked at here
    assert ExportTraceServiceRequest.FromString(same).SerializeToString() == request.SerializeToString()
    assert quick == grown
    for span in _spans(request):
        span.MergeFromString(_ADDED)
    assert ExportTraceServiceRequest.FromString(grown).SerializeToString() == request.SerializeToString()


def fuzz_attributes(data: bytes) -> None:
    """`without_attributes` takes all of a key from a span, and nothing else."""
    span = _parsed(Span, data)
    keys = {b"carbon.gco2e", b"k"}
    try:
        out = without_attributes(data, keys)
    except WireError:
        assert span is None, "a span that protobuf reads was refused"
        return
    if span is None:
        return
    kept = [pair for pair in span.attributes if pair.key.encode() not in keys]
    made = Span.FromString(out)
    assert [pair.SerializeToString() for pair in made.attributes] == [pair.SerializeToString() for pair in kept]
    del span.attributes[:], made.attributes[:]
    assert made.SerializeToString() == span.SerializeToString()


def fuzz_json(data: bytes) -> None:
    """OTLP JSON is read or refused with what it promises; what was read survives JSON and protobuf."""
    if not data:
        return
    signal = SIGNALS[data[0] % len(SIGNALS)]
    try:
        message = from_otlp_json(data[1:], signal.request)
    except (WireError, TooLargeError):
        return
    assert isinstance(json.loads(data[1:]), dict), "bytes that are not JSON were read"
    encoded = message.SerializeToString()
    assert signal.parse(encoded).SerializeToString() == encoded
    assert from_otlp_json(orjson.dumps(to_otlp_json(message)), signal.request).SerializeToString() == encoded


def fuzz_halves(data: bytes) -> None:
    """Two halves say together what the whole said, in order, and each is a request and not empty."""
    request = _parsed(ExportTraceServiceRequest, data)
    found = halves(data)
    if request is None or found is None:
        return
    parts = [_parsed(ExportTraceServiceRequest, half) for half in found]
    assert None not in parts, "half of a request is none"
    whole = [span.SerializeToString() for span in _spans(request)]
    assert [span.SerializeToString() for part in parts for span in _spans(part)] == whole
    assert all(part.resource_spans for part in parts)
    assert max(map(len, found)) < len(data), "what is halved again and again must come to an end"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "extract": fuzz_extract,
    "splice": fuzz_splice,
    "attributes": fuzz_attributes,
    "json": fuzz_json,
    "halves": fuzz_halves,
    **{
        name.removeprefix("fuzz_"): target
        for module in (on_disk, on_wire)
        for name, target in vars(module).items()
        if name.startswith("fuzz_")
    },
}
"""By the name of their corpus."""
