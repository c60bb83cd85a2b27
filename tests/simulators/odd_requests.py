"""Trace requests with every field of OTLP, drawn by hypothesis, and the same ones damaged."""

from __future__ import annotations

from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from joulegram_pipeline.varint import varint
from simulators.traces import T0, S

KEYS = [
    "kfm.node",
    "team",
    "kfm.run_id",
    "job.id",
    "job.type",
    "energy.cpu_j",
    "process.pid",
    "container.id",
    "",
    "é",
    "x",
]

RUN_IDS = ["run-one-0001", "run-two-0002", "bad/run/id", "short"]
IDS = [bytes(8), bytes(16), b"", b"\1" * 8, b"\2" * 8, b"\3" * 16, b"\4" * 16, b"\1" * 7, b"\1" * 17]
TEXTS = st.one_of(st.sampled_from(["a", *RUN_IDS]), st.text(st.characters(codec="utf-8"), max_size=9))


def values(depth: int = 2) -> st.SearchStrategy[AnyValue]:
    plain = st.one_of(
        st.builds(AnyValue),
        st.builds(AnyValue, string_value=TEXTS),
        st.builds(AnyValue, bool_value=st.booleans()),
        st.builds(AnyValue, int_value=st.one_of(st.integers(1, 70_000), st.integers(-(2**63), 2**63 - 1))),
        st.builds(AnyValue, double_value=st.floats(allow_nan=False)),
        st.builds(AnyValue, bytes_value=st.binary(max_size=4)),
    )
    if not depth:
        return plain
    inner = values(depth - 1)

    def array(items: list[AnyValue]) -> AnyValue:
        made = AnyValue()
        made.array_value.values.extend(items)
        return made

    def pairs(items: list[tuple[str, AnyValue]]) -> AnyValue:
        made = AnyValue()
        made.kvlist_value.values.extend(KeyValue(key=key, value=value) for key, value in items)
        return made

    return st.one_of(
        plain,
        st.lists(inner, max_size=2).map(array),
        st.lists(st.tuples(TEXTS, inner), max_size=2).map(pairs),
    )


PAIRS = st.lists(st.builds(KeyValue, key=st.sampled_from(KEYS), value=values()), max_size=3)
INSTANTS = st.one_of(st.sampled_from([0, T0, T0 + S]), st.integers(0, 2**64 - 1))
EVENTS = st.lists(st.builds(Span.Event, time_unix_nano=INSTANTS, name=TEXTS, attributes=PAIRS), max_size=1)

LINKS = st.lists(
    st.builds(Span.Link, trace_id=st.sampled_from(IDS), attributes=PAIRS, flags=INSTANTS.map(int.bit_length)),
    max_size=1,
)

SPANS = st.builds(
    Span,
    trace_id=st.sampled_from([*IDS[5:7] * 3, *IDS]),
    span_id=st.one_of(st.binary(min_size=8, max_size=8), st.sampled_from(IDS)),
    parent_span_id=st.sampled_from([*IDS[:5] * 2, *IDS]),
    trace_state=TEXTS,
    name=st.one_of(st.sampled_from(["etl.job", "etl.", "etl.node.ü", "é", "éa", "", "http.get"]), TEXTS),
    kind=st.sampled_from([0, 1, 5]),
    start_time_unix_nano=INSTANTS,
    end_time_unix_nano=INSTANTS,
    attributes=PAIRS,
    dropped_attributes_count=st.integers(0, 2**32 - 1),
    events=EVENTS,
    links=LINKS,
    status=st.one_of(st.none(), st.builds(Status, message=TEXTS, code=st.sampled_from([0, 1, 2]))),
    flags=st.integers(0, 2**32 - 1),
)

SCOPES = st.builds(ScopeSpans, spans=st.lists(SPANS, max_size=4), schema_url=TEXTS)

GROUPS = st.builds(
    ResourceSpans,
    resource=st.one_of(st.none(), st.builds(Resource, attributes=PAIRS)),
    scope_spans=st.lists(SCOPES, max_size=2),
    schema_url=TEXTS,
)

REQUESTS = st.builds(ExportTraceServiceRequest, resource_spans=st.lists(GROUPS, max_size=3)).map(
    ExportTraceServiceRequest.SerializeToString
)

ODD_FIELDS = [
    b"",
    b"\x0b\x0c",  # a group
    b"\x78\x01",  # an unknown field
    b"\x2d1234",  # the name as a fixed32
    b"\x2a\x03etl",  # the name again
    b"\x2a\x02\xc3\x28",  # not UTF-8
    b"\x2a\x03\xed\xa0\x80",  # a surrogate
    b"\x2a\x81\x00a",  # a length written longer than need be
    b"\x7a\x02\x18\x02\x7a\x02\x12\x00",  # the status in two parts
    b"\x7a\x0b\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # status -1
    b"\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a varint of more than 64 bits
    b"\x4a\x0c\x0a\x04team\x12\x04\x18\x01\x10\x01",  # an attribute value that is two
    b"\x4a\x0a\x0a\x04team\x12\x00\x12\x00",  # and one given twice
    b"\x4a\x07\x0a\x01x\x0a\x02id",  # a key given twice
    b"\x00\x00",  # field number 0
    b"\x4a\x7f",  # a length that lies
    b"\x4d",
    b"\x48\x01",
    b"\x4a" + varint(4 * 120) + b"",
]


def wrapped(content: bytes, *fields: bytes) -> bytes:
    """The content inside one message after another, from the innermost."""
    for field in fields:
        content = field + varint(len(content)) + content
    return content


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A request that was damaged: bytes changed, cut, put in, or a span with an odd field of ours."""
    payload = bytearray(draw(REQUESTS))
    if draw(st.booleans()):
        span_bytes = draw(SPANS).SerializeToString()
        odd = draw(st.sampled_from(ODD_FIELDS))
        payload += wrapped(odd + span_bytes if draw(st.booleans()) else span_bytes + odd, b"\x12", b"\x12", b"\x0a")
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(payload)))
        match draw(st.integers(0, 3)):
            case 0:
                payload[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                payload[at:at] = draw(st.sampled_from(ODD_FIELDS))
            case 2:
                del payload[at : at + draw(st.integers(1, 4))]
            case _:
                payload[at:] = payload[at:] * 2
    return bytes(payload)
