"""OTLP JSON (H9): what it takes, what it refuses and where, and that nothing is lost on the way."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_pipeline.errors import WireError
from joulegram_receiver.intake_refusals import TooLargeError
from joulegram_receiver.otlp_json import MAX_VALUES, JsonError, from_otlp_json, to_otlp_json
from joulegram_receiver.signals import LOGS, METRICS, PROFILES, SIGNALS, TRACES

IDS = {"trace_id", "span_id", "parent_span_id", "profile_id"}
_Kind = FieldDescriptor


def read(tree: Any, kind: Any = TRACES.request) -> Any:
    return from_otlp_json(orjson.dumps(tree), kind)


def spans(*trees: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(trees)}]}]}


def one_span(**tree: Any) -> Any:
    return read(spans(tree)).resource_spans[0].scope_spans[0].spans[0]


def attribute(value: Any) -> dict[str, Any]:
    return {"attributes": [{"key": "k", "value": value}]}


# -- what is taken --------------------------------------------------------------------------------------------------


def test_an_example_as_the_standard_has_it() -> None:
    """A trace as SDKs send it: ids in hex, 64-bit numbers as strings, enums as numbers."""
    span = one_span(
        traceId="5B8EFFF798038103D269B633813FC60C",
        spanId="eee19b7ec3c1b174",
        parentSpanId="eee19b7ec3c1b173",
        name="I'm a server span",
        startTimeUnixNano="1544712660000000000",
        endTimeUnixNano="1544712661000000000",
        kind=2,
        flags=769,
        attributes=[{"key": "my.span.attr", "value": {"stringValue": "some value"}}],
        links=[{"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "EEE19B7EC3C1B174"}],
        status={"code": 1},
    )
    assert span.trace_id == span.links[0].trace_id == bytes.fromhex("5b8efff798038103d269b633813fc60c")
    assert (span.span_id.hex(), span.parent_span_id.hex()) == ("eee19b7ec3c1b174", "eee19b7ec3c1b173")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1544712660000000000, 1544712661000000000)
    assert (span.kind, span.flags, span.status.code, span.name) == (2, 769, 1, "I'm a server span")
    assert (span.attributes[0].key, span.attributes[0].value.string_value) == ("my.span.attr", "some value")


TAKEN = {
    "an int64 as a number": ({"startTimeUnixNano": 5}, "start_time_unix_nano", 5),
    "an int64 as a string": ({"startTimeUnixNano": "5"}, "start_time_unix_nano", 5),
    "a real that is whole": ({"startTimeUnixNano": 5.0}, "start_time_unix_nano", 5),
    "the largest fixed64": ({"startTimeUnixNano": "18446744073709551615"}, "start_time_unix_nano", 2**64 - 1),
    "the largest as a number": ({"startTimeUnixNano": 18446744073709551615}, "start_time_unix_nano", 2**64 - 1),
    "an enum that is not known yet": ({"kind": 77}, "kind", 77),
    "null": ({"name": None}, "name", ""),
    "null for a list": ({"events": None}, "events", []),
    "an empty id": ({"parentSpanId": ""}, "parent_span_id", b""),
    "an id of another length": ({"spanId": "0aFF"}, "span_id", b"\x0a\xff"),
    "an unknown name": ({"name": "n", "unknownField": {"deep": [1, {"x": "y"}]}}, "name", "n"),
    "a name with underscores": ({"start_time_unix_nano": "garbage"}, "start_time_unix_nano", 0),
}


@pytest.mark.parametrize(("tree", "field", "value"), TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken(tree: dict[str, Any], field: str, value: Any) -> None:
    """Numbers either way, unknown names ignored, null is absent, names in lowerCamelCase only."""
    assert getattr(one_span(**tree), field) == value


VALUES = {
    "a string": ({"stringValue": ""}, "string_value", ""),
    "false": ({"boolValue": False}, "bool_value", False),
    "an int as a string": ({"intValue": "-9223372036854775808"}, "int_value", -(2**63)),
    "an int as a number": ({"intValue": 7}, "int_value", 7),
    "a real": ({"doubleValue": 1.5}, "double_value", 1.5),
    "a real that is whole": ({"doubleValue": 3}, "double_value", 3.0),
    "a real as a string": ({"doubleValue": "1.5e3"}, "double_value", 1500.0),
    "infinity": ({"doubleValue": "-Infinity"}, "double_value", -math.inf),
    "bytes": ({"bytesValue": "+/8="}, "bytes_value", b"\xfb\xff"),
    "bytes for URLs, unpadded": ({"bytesValue": "-_8"}, "bytes_value", b"\xfb\xff"),
    "null beside a value": ({"stringValue": None, "intValue": 3}, "int_value", 3),
}


@pytest.mark.parametrize(("tree", "which", "value"), VALUES.values(), ids=VALUES.keys())
def test_attribute_values(tree: dict[str, Any], which: str, value: Any) -> None:
    """Every kind of AnyValue; presence is kept where the value is the default."""
    found = one_span(**attribute(tree)).attributes[0].value
    assert (found.WhichOneof("value"), getattr(found, which)) == (which, value)


def test_nan_and_what_has_no_content() -> None:
    """NaN is a string; an empty list, an empty kvlist and an empty value are themselves."""
    assert math.isnan(one_span(**attribute({"doubleValue": "NaN"})).attributes[0].value.double_value)
    for name, which in (("arrayValue", "array_value"), ("kvlistValue", "kvlist_value")):
        assert one_span(**attribute({name: {}})).attributes[0].value.WhichOneof("value") == which
    assert one_span(**attribute({})).attributes[0].value.WhichOneof("value") is None
    assert read({"resourceSpans": [{"resource": {}}]}).resource_spans[0].HasField("resource")


# -- what is refused ------------------------------------------------------------------------------------------------

SPAN = "resourceSpans[0].scopeSpans[0].spans[0]"
VALUE = f"{SPAN}.attributes[0].value"
REFUSED = {
    "an id that is not hex": (spans({}, {}, {}, {"traceId": "xyz"}), f"{SPAN[:-3]}[3].traceId: got 'xyz', expected 32"),
    "half a hex digit": (spans({"spanId": "abc"}), f"{SPAN}.spanId: got 'abc', expected 16 hex digits"),
    "an id with spaces": (spans({"spanId": "ab cd"}), f"{SPAN}.spanId: got 'ab cd', expected 16 hex digits"),
    "an id in base64": (spans({"traceId": "W47/95gDgQPSabYzgT/GDA=="}), "expected 32 hex digits"),
    "an id that is a number": (spans({"parentSpanId": 5}), f"{SPAN}.parentSpanId: got 5, expected 16 hex digits"),
    "an id of a link": (spans({"links": [{"traceId": "-"}]}), f"{SPAN}.links[0].traceId: got '-', expected 32"),
    "an enum by name": (spans({"kind": "SPAN_KIND_SERVER"}), f"{SPAN}.kind: got 'SPAN_KIND_SERVER', expected an int"),
    "an enum as a string": (spans({"kind": "2"}), f"{SPAN}.kind: got '2', expected an integer"),
    "an enum out of range": (spans({"kind": 2**31}), f"{SPAN}.kind: got 2147483648, expected an integer"),
    "a real for an int": (spans({"startTimeUnixNano": 5.5}), f"{SPAN}.startTimeUnixNano: got 5.5, expected an integer"),
    "true for an int": (spans({"startTimeUnixNano": True}), f"{SPAN}.startTimeUnixNano: got True, expected an integer"),
    "a negative unsigned": (spans({"flags": -1}), f"{SPAN}.flags: got -1, expected an integer from 0 to 4294967295"),
    "an int too large": (spans({"endTimeUnixNano": "18446744073709551616"}), "from 0 to 18446744073709551615"),
    "an int with spaces": (spans({"endTimeUnixNano": " 5"}), f"{SPAN}.endTimeUnixNano: got ' 5', expected"),
    "an int in other digits": (spans({"endTimeUnixNano": "\u0665"}), f"{SPAN}.endTimeUnixNano: got '\u0665', expected"),
    "an int in hex": (spans({"endTimeUnixNano": "0x5"}), f"{SPAN}.endTimeUnixNano: got '0x5', expected"),
    "a number for a string": (spans({"name": 5}), f"{SPAN}.name: got 5, expected a string"),
    "a string for a bool": (spans(attribute({"boolValue": "true"})), f"{VALUE}.boolValue: got 'true', expected true"),
    "a string for a real": (spans(attribute({"doubleValue": "nan"})), f"{VALUE}.doubleValue: got 'nan', expected a n"),
    "a real too large": (spans(attribute({"doubleValue": "1e999"})), f"{VALUE}.doubleValue: got '1e999', expected"),
    "bytes that are not base64": (spans(attribute({"bytesValue": "a!"})), f"{VALUE}.bytesValue: got 'a!', expected b"),
    "two values at once": (
        spans(attribute({"stringValue": "a", "intValue": 1})),
        f"{VALUE}: got a JSON object, expected one of stringValue and intValue",
    ),
    "an object for a list": ({"resourceSpans": {}}, "resourceSpans: got a JSON object, expected a JSON array"),
    "a list for an object": ({"resourceSpans": [[]]}, "resourceSpans[0]: got a JSON array, expected a JSON object"),
    "null in a list": (spans(None), f"{SPAN}: got None, expected a JSON object"),  # type: ignore[arg-type]
    "a list": ([], "got a JSON array, expected a JSON object"),
    "a string": ("x", "got 'x', expected a JSON object"),
    "a long string": (spans({"kind": "K" * 99}), f"{SPAN}.kind: got 'K{'K' * 38}…, expected an integer"),
}


@pytest.mark.parametrize(("tree", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_refused_with_its_path(tree: Any, text: str) -> None:
    """The path, what stood there and what was expected; a value is cut, so that no payload is told at length."""
    with pytest.raises(JsonError) as refusal:
        read(tree)
    assert text in str(refusal.value)
    assert refusal.value.field == str(refusal.value).rpartition(": got")[0]


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"{}x", b"NaN", b'{"a":NaN}', b"\xff", b'{"a":"\\ud800"}', b"[" * 5000, b'{"a":1e999}'],
)
def test_what_is_not_json_is_refused(document: bytes) -> None:
    """A WireError, whatever it is; a document nested without end is one of them."""
    with pytest.raises(WireError, match=f"got {len(document)} bytes that are not JSON .*, expected a JSON object"):
        from_otlp_json(document, TRACES.request)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"intValue": 1}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return spans(attribute(value))


def test_nesting_is_bounded_where_protobuf_bounds_it() -> None:
    """What is taken can be parsed by whoever reads it next; what cannot is refused here."""
    outcomes = []
    for depth in range(40, 60):
        try:
            message = read(nested(depth))
        except JsonError:
            outcomes.append(False)
        else:
            assert TRACES.parse(message.SerializeToString()) == message
            outcomes.append(True)
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes[0]
    assert not outcomes[-1]
    with pytest.raises(JsonError, match="expected at most 100 messages in each other"):
        read(nested(40 + outcomes.count(True)))
    too_deep = TRACES.request()
    value = too_deep.resource_spans.add().scope_spans.add().spans.add().attributes.add(key="k").value
    for _ in range(40 + outcomes.count(True)):
        value = value.array_value.values.add()
    with pytest.raises(WireError):
        TRACES.parse(too_deep.SerializeToString())


def test_a_document_of_many_values_is_too_large() -> None:
    """An empty object is three bytes of text and a hundred in memory."""
    with pytest.raises(TooLargeError, match=f"expected at most {MAX_VALUES}"):
        from_otlp_json(b'{"x":[' + b"{}," * MAX_VALUES + b"{}]}", TRACES.request)


# -- laws -----------------------------------------------------------------------------------------------------------


def messages(descriptor: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Any message of a type, driven by its descriptor; nested three deep in itself at most."""
    kind = descriptor._concrete_class

    @st.composite
    def build(draw: Any) -> Any:
        found: dict[str, Any] = {}
        chosen = {oneof.name: draw(st.sampled_from([None, *oneof.fields])) for oneof in descriptor.oneofs}
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and chosen[oneof.name] is not field:
                continue
            if oneof is None and draw(st.integers(0, 2)) == 0:
                continue
            if field.type == _Kind.TYPE_MESSAGE and depth > 6:
                continue
            value = one_value(field, depth)
            found[field.name] = draw(st.lists(value, max_size=2) if field.is_repeated else value)
        return kind(**found)

    return build()


def one_value(field: Any, depth: int) -> st.SearchStrategy[Any]:
    kind = field.type
    if kind == _Kind.TYPE_MESSAGE:
        return messages(field.message_type, depth + 1)
    if kind == _Kind.TYPE_STRING:
        return st.text(max_size=4)
    if kind == _Kind.TYPE_BYTES:
        return st.binary(max_size=17)
    if kind == _Kind.TYPE_BOOL:
        return st.booleans()
    if kind == _Kind.TYPE_DOUBLE:
        return st.floats(width=64, allow_nan=False)
    if kind == _Kind.TYPE_ENUM:
        return st.integers(-(2**31), 2**31 - 1)
    wide = kind in {_Kind.TYPE_INT64, _Kind.TYPE_SINT64, _Kind.TYPE_SFIXED64, _Kind.TYPE_UINT64, _Kind.TYPE_FIXED64}
    unsigned = kind in {_Kind.TYPE_UINT32, _Kind.TYPE_FIXED32, _Kind.TYPE_UINT64, _Kind.TYPE_FIXED64}
    bits = 64 if wide else 32
    return st.integers(0, 2**bits - 1) if unsigned else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_message_survives_its_json(signal: Any, data: st.DataObject) -> None:
    """Message → OTLP JSON → the same message, for every field there is."""
    message = data.draw(messages(signal.request.DESCRIPTOR))
    document = orjson.dumps(to_otlp_json(message))
    assert from_otlp_json(document, signal.request) == message
    assert from_otlp_json(document, signal.request).SerializeToString(deterministic=True) == message.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_without_ids_it_is_the_json_of_protobuf(signal: Any, data: st.DataObject) -> None:
    """Golden: where the two forms do not differ, protobuf's own reader and writer agree with ours."""
    message = without_ids(data.draw(messages(signal.request.DESCRIPTOR)))
    theirs = json_format.MessageToDict(message, use_integers_for_enums=True)
    assert to_otlp_json(message) == theirs
    assert read(theirs, signal.request) == json_format.ParseDict(theirs, signal.request())


def without_ids(message: Any) -> Any:
    for field, value in list(message.ListFields()):
        if field.name in IDS:
            message.ClearField(field.name)
        elif field.type == _Kind.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                without_ids(item)
    return message


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["resourceSpans", "scopeSpans", "spans", "attributes", "value", "intValue", "traceId", "kind", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=25,
    ),
    st.sampled_from([TRACES, METRICS, LOGS, PROFILES]),
)
def test_any_json_is_read_or_refused(tree: Any, signal: Any) -> None:
    """Nothing else than a WireError leaves the reader."""
    try:
        message = read(tree, signal.request)
    except WireError:
        return
    assert signal.parse(message.SerializeToString()) == message


def test_the_writer_writes_what_the_standard_asks() -> None:
    """Ids in lower-case hex, 64-bit numbers as strings, enums as numbers, bytes in base64, NaN by name."""
    message = TRACES.request()
    span = (
        message.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=b"\xab" * 16, span_id=b"\xcd" * 8, kind=2, flags=1, start_time_unix_nano=5)
    )
    span.attributes.add(key="b").value.bytes_value = b"\xfb\xff"
    span.attributes.add(key="d").value.double_value = math.nan
    span.attributes.add(key="i").value.int_value = -5
    assert to_otlp_json(message) == spans(
        {
            "traceId": "ab" * 16,
            "spanId": "cd" * 8,
            "kind": 2,
            "flags": 1,
            "startTimeUnixNano": "5",
            "attributes": [
                {"key": "b", "value": {"bytesValue": "+/8="}},
                {"key": "d", "value": {"doubleValue": "NaN"}},
                {"key": "i", "value": {"intValue": "-5"}},
            ],
        }
    )
