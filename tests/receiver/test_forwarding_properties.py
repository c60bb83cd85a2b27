"""Laws of what is forwarded: byte-equal but for the added keys, and the same whether it came as protobuf or as JSON."""

from __future__ import annotations

import json
from base64 import b64decode
from itertools import count
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.join import CarbonModel
from joulegram_processor.machine import Machine
from joulegram_processor.machine_types import Settings
from joulegram_processor.runs import Identity
from joulegram_receiver.otlp_json import from_otlp_json, to_otlp_json
from simulators.protobuf import field, fields_of, varint
from simulators.traces import T0, Log, S, tick

FACTOR = StaticFactor("0.36", "utility bill 2025")
ID = Identity("node-7f3a", "kfm-node", "co2e", None, FACTOR.source, (FACTOR.ref,))

# -- what is sent ----------------------------------------------------------------------------------------------------

values = st.recursive(
    st.one_of(
        st.just(AnyValue()),
        st.text(max_size=4).map(lambda text: AnyValue(string_value=text)),
        st.booleans().map(lambda value: AnyValue(bool_value=value)),
        st.integers(-(2**63), 2**63 - 1).map(lambda value: AnyValue(int_value=value)),
        st.floats(allow_nan=False).map(lambda value: AnyValue(double_value=value)),
        st.binary(max_size=4).map(lambda value: AnyValue(bytes_value=value)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda items: AnyValue(array_value=ArrayValue(values=items))),
        inner.map(lambda value: AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=value)]))),
    ),
    max_leaves=3,
)
KEYS = ("carbon.gco2e", "carbon.table", "energy.cpu_j", "energy.method", "kfm.node", "kfm.run_id", "job.id", "mine", "")
pairs = st.builds(lambda key, value: KeyValue(key=key, value=value), st.sampled_from(KEYS), values)


@st.composite
def unknown(draw: st.DrawFn) -> bytes:
    """Fields of every wire type that no version of OTLP has yet."""
    number = draw(st.sampled_from([100, 1000, 70_000]))
    wires = {
        0: st.integers(0, 2**64 - 1).map(varint),
        1: st.binary(min_size=8, max_size=8),
        2: st.binary(max_size=5).map(lambda data: varint(len(data)) + data),
        3: st.just(b"\x08\x01" + varint(number << 3 | 4)),
        5: st.binary(min_size=4, max_size=4),
    }
    kind = draw(st.sampled_from(sorted(wires)))
    return b"" if draw(st.booleans()) else varint(number << 3 | kind) + draw(wires[kind])


@st.composite
def spans(draw: st.DrawFn, number: int) -> Span:
    """Of any name, joined or not, sound or not."""
    start = T0 + draw(st.integers(0, S))
    made = Span(
        name=draw(st.sampled_from(["etl.job", "etl.node.load", "http.get", ""])),
        trace_id=draw(st.sampled_from([b"t" * 16, b"T" * 16, b"", bytes(16)])),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=draw(st.sampled_from([b"", bytes(7) + b"\1", b"odd"])),
        start_time_unix_nano=start,
        end_time_unix_nano=start + draw(st.integers(-1, S)),
        flags=draw(st.integers(0, 2**32 - 1)),
        trace_state=draw(st.sampled_from(["", "a=b"])),
        attributes=draw(st.lists(pairs, max_size=3)),
    )
    if draw(st.booleans()):
        made.events.add(name="e", time_unix_nano=start, attributes=[KeyValue(key="carbon.gco2e")])
        made.links.add(trace_id=b"l" * 16, span_id=b"l" * 8, flags=2**31)
        made.status.MergeFromString(draw(st.sampled_from([b"", b"\x18\x01", b"\x18\x02", b"\x18\x09"])))
    return made


def several(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(inner, max_size=2)


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """A trace request of up to two resources, of two scopes each, of two spans each."""
    made = ExportTraceServiceRequest()
    numbers = count(1)
    for _ in range(draw(st.integers(0, 2))):
        group = made.resource_spans.add(schema_url=draw(st.sampled_from(["", "https://a/1"])))
        group.resource.attributes.extend(draw(st.lists(pairs, max_size=2)))
        for _ in range(draw(st.integers(0, 2))):
            scope = group.scope_spans.add()
            scope.scope.name = draw(st.sampled_from(["", "kfm.etl"]))
            for _ in range(draw(st.integers(0, 2))):
                scope.spans.append(draw(spans(next(numbers))))
    return made


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """The bytes of one, with fields nobody knows before and behind what is known, at every level."""

    def mixed(known: bytes) -> bytes:
        return draw(unknown()) + known + draw(unknown())

    out = b""
    for group in draw(messages()).resource_spans:
        scopes = b""
        for scope in group.scope_spans:
            inside = field(1, scope.scope.SerializeToString())
            inside += b"".join(field(2, mixed(span.SerializeToString())) + draw(unknown()) for span in scope.spans)
            scopes += field(2, mixed(inside))
        out += field(1, mixed(field(1, mixed(group.resource.SerializeToString())) + scopes)) + draw(unknown())
    return out


# -- what comes out --------------------------------------------------------------------------------------------------


def forwarded(payload: bytes, kind: RecordKind = RecordKind.TRACES) -> bytes:
    """What a sidecar sends on of one request, once its energy is there."""
    log = Log()
    machine = Machine(Settings(), CarbonModel(FACTOR), ID, log, Metrics())
    log.append(kind, payload)
    log.ticks(tick(1, T0 - S, T0 + 3 * S, cpu_uj=1_000_000))
    log.append(RecordKind.LOGS, b"later", T0 + 600 * S)
    log.ticks(tick(2, T0 + 3 * S, T0 + 601 * S, cpu_uj=1), at=T0 + 601 * S)
    found = [item.body for record in log.records for out in machine.feed(record) for item in out.forward]
    (sent,) = [body for body in found if body != b"later"]
    return sent


def span_contents(data: bytes, path: tuple[int, ...] = (1, 2, 2)) -> list[bytes]:
    """The content of every span, in order."""
    if not path:
        return [data]
    return [
        span for number, _, content in fields_of(data) if number == path[0] for span in span_contents(content, path[1:])
    ]


def around_spans(data: bytes, path: tuple[int, ...] = (1, 2, 2)) -> list[Any]:
    """All that is not a span, in order, spans marked by None."""
    if not path:
        return [None]
    return [
        around_spans(content, path[1:]) if number == path[0] else whole for number, whole, content in fields_of(data)
    ]


def key_of(pair: bytes) -> str:
    return str(KeyValue.FromString(pair).key)


def without_ours(span: bytes) -> bytes:
    """A span's content without the attributes that joulegram may write."""
    return b"".join(
        whole for number, whole, content in fields_of(span) if number != 9 or key_of(content) not in WRITTEN_KEYS
    )


def is_joined(content: bytes) -> bool:
    """As design section 6 and A11 have it, asked of protobuf."""
    span = Span.FromString(content)
    selected = span.name.startswith("etl.") or any(pair.key == "kfm.node" for pair in span.attributes)
    sound = len(span.trace_id) == 16 and any(span.trace_id)
    return selected and sound and span.end_time_unix_nano >= span.start_time_unix_nano


@given(wires())
@settings(max_examples=300, deadline=None)
def test_what_is_forwarded_is_byte_equal_but_for_the_added_keys(request: bytes) -> None:
    """Law (A8, A11): spans that are not joined stay as they are; of the others all but our keys, each at most once."""
    sent = forwarded(request)
    assert around_spans(sent) == around_spans(request)
    before, after = span_contents(request), span_contents(sent)
    assert len(before) == len(after)
    for was, became in zip(before, after, strict=True):
        if not is_joined(was):
            assert became == was
            continue
        assert without_ours(became) == without_ours(was)
        keys = [pair.key for pair in Span.FromString(became).attributes if pair.key in WRITTEN_KEYS]
        # A job that reports its own energy keeps it as it said it, were it twice.
        assert {key for key in keys if keys.count(key) > 1} <= {"energy.cpu_j"}
        assert {"energy.method", "timing.duration_s"} <= set(keys)
    if not any(map(is_joined, before)):
        assert sent == request


# -- and as JSON -----------------------------------------------------------------------------------------------------

IDS = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
HEX = {"traceId", "spanId", "parentSpanId"}
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
}


def scalars(of: Any) -> st.SearchStrategy[Any]:
    """What a field may hold that is no message."""
    if of.cpp_type in INTEGERS:
        return INTEGERS[of.cpp_type]
    if of.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in of.enum_type.values])
    if of.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if of.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return st.floats(allow_nan=False)
    if of.type == FieldDescriptor.TYPE_BYTES:
        size = IDS.get(of.name)
        return st.binary(max_size=4) if size is None else st.binary(min_size=size, max_size=size)
    return st.text(max_size=4)


def fill(draw: Any, made: Any, depth: int) -> Any:
    """Some fields of a message, and of those within it."""
    for of in made.DESCRIPTOR.fields:
        if of.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for _ in range(draw(st.integers(0, 1 + of.is_repeated)) if depth else 0):
                inner = getattr(made, of.name).add() if of.is_repeated else getattr(made, of.name)
                inner.SetInParent()
                fill(draw, inner, depth - 1)
        elif draw(st.booleans()):
            if of.is_repeated:
                getattr(made, of.name).extend(draw(st.lists(scalars(of), max_size=2)))
            else:
                setattr(made, of.name, draw(scalars(of)))
    return made


def standard_json(message: Any) -> Any:
    """OTLP JSON as protobuf's own writer makes it, with enums as integers and ids in hex (H9); nothing of ours."""

    def in_hex(value: Any) -> Any:
        if isinstance(value, list):
            return [in_hex(each) for each in value]
        if isinstance(value, dict):
            return {
                key: b64decode(each).hex() if key in HEX else in_hex(each)  # in OTLP no other field is called so
                for key, each in value.items()
            }
        return value

    return in_hex(MessageToDict(message, use_integers_for_enums=True))


def check_alike(kind: RecordKind, message: Any) -> None:
    """By our own writer and by protobuf's, the bytes that leave are those that leave of the message."""
    plain = forwarded(message.SerializeToString(), kind)
    for document in (to_otlp_json(message), standard_json(message)):
        from_json = from_otlp_json(json.dumps(document).encode(), type(message))
        assert forwarded(from_json.SerializeToString(), kind) == plain


@given(messages())
@settings(max_examples=150, deadline=None)
def test_json_and_protobuf_of_the_same_spans_are_forwarded_alike(message: Any) -> None:
    """Law (H9): the very same bytes leave."""
    check_alike(RecordKind.TRACES, message)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@pytest.mark.parametrize(
    ("kind", "inner", "outer"),
    [
        (RecordKind.METRICS, Metric, ExportMetricsServiceRequest),
        (RecordKind.LOGS, LogRecord, ExportLogsServiceRequest),
    ],
    ids=["metrics", "logs"],
)
def test_json_and_protobuf_of_the_same_metrics_and_logs_are_forwarded_alike(
    kind: RecordKind, inner: Any, outer: Any, data: st.DataObject
) -> None:
    """Law (H9): every kind of point and record, whatever is in its fields."""
    message = outer()
    for _ in range(data.draw(st.integers(0, 2))):
        one = fill(data.draw, inner(), 3)
        if kind is RecordKind.METRICS:
            message.resource_metrics.add(schema_url="s").scope_metrics.add().metrics.append(one)
        else:
            message.resource_logs.add(schema_url="s").scope_logs.add().log_records.append(one)
    check_alike(kind, message)
