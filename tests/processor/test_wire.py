from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.varint import varint
from joulegram_processor.enrich import Encoder
from joulegram_processor.wire import (
    SpanAt,
    attribute_key,
    bool_attribute,
    double_prefix,
    first_span_offset,
    read_varint,
    skip_field,
    splice,
    splice_all,
    string_attribute,
    without_attributes,
)
from simulators.decoded import attributes
from simulators.traces import T0, S, request, span, spans_of

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = range(1 << 40)
"""Every span, whatever its index."""

Wire = tuple[bytes, bool]
"""Bytes of a message, and whether every tag and length that encloses a span is minimal."""


@st.composite
def fields(draw: st.DrawFn, depth: int = 0) -> bytes:
    """An unknown field: any wire type, a number no OTLP message has, groups in groups."""
    number = draw(st.sampled_from([100, 1000, 5000]))
    match draw(st.integers(0, 4 if depth < 2 else 3)):
        case 0:
            return varint(number << 3) + varint(draw(st.integers(0, 2**64 - 1)))
        case 1:
            return varint(number << 3 | 1) + draw(st.binary(min_size=8, max_size=8))
        case 2:
            data = draw(st.binary(max_size=6))
            return varint(number << 3 | 2) + varint(len(data)) + data
        case 3:
            return varint(number << 3 | 5) + draw(st.binary(min_size=4, max_size=4))
        case _:
            inner = b"".join(draw(st.lists(fields(depth=depth + 1), max_size=3)))
            return varint(number << 3 | 3) + inner + varint(number << 3 | 4)


def padded(value: int, more: int) -> bytes:
    """A varint that is longer than it must be."""
    plain = varint(value)
    return plain if not more else plain[:-1] + bytes((plain[-1] | 0x80,)) + b"\x80" * (more - 1) + b"\0"


@st.composite
def field(draw: st.DrawFn, number: int, content: Wire, *, odd: bool) -> Wire:
    """A length-delimited field, its tag and length perhaps not minimal."""
    data, minimal = content
    tag, length = (draw(st.sampled_from([0, 0, 0, 1, 2])) if odd else 0 for _ in range(2))
    out = padded(number << 3 | 2, tag) + padded(len(data), length) + data
    return out, minimal and not tag and not length


@st.composite
def message(draw: st.DrawFn, parts: list[Wire], *, odd: bool) -> Wire:
    """Parts in any order, unknown fields between them."""
    unknown = draw(st.lists(fields(), max_size=2)) if odd else []
    mixed = draw(st.permutations([*parts, *((data, True) for data in unknown)]))
    return b"".join(data for data, _ in mixed), all(minimal for _, minimal in mixed)


KEYS = ["carbon.gco2e", "energy.cpu_j", "kfm.node", "x" * 130, ""]


@st.composite
def span_wires(draw: st.DrawFn, *, odd: bool) -> Wire:
    """A span's content: attributes twice, flags with high bits, events, and unknown fields."""
    made = Span(name=draw(st.text(max_size=4)), flags=draw(st.sampled_from([0, 1, 0xFFFF_FC01])))
    made.trace_id, made.span_id = b"t" * 16, draw(st.binary(min_size=8, max_size=8))
    parts: list[Wire] = [(made.SerializeToString(), True)]
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=4)):
        pair = KeyValue(key=key)
        pair.value.string_value = draw(st.sampled_from(["", "v", "w" * 200]))
        parts.append(draw(field(9, (pair.SerializeToString(), True), odd=odd)))
    if draw(st.booleans()):
        parts.append((Span(events=[Span.Event(name="e")]).SerializeToString(), True))
    # What is not minimal inside a span stays so: only what encloses a span is written anew.
    return draw(message(parts, odd=odd))[0], True


@st.composite
def requests(draw: st.DrawFn, *, odd: bool = True) -> Wire:
    """A valid ExportTraceServiceRequest in any legal encoding."""
    resources: list[Wire] = []
    for _ in range(draw(st.integers(0, 2))):
        scopes: list[Wire] = [(b"\x0a\x07\x0a\x05\x0a\x01a\x12\x00", True)]  # a resource with an attribute
        for _ in range(draw(st.integers(0, 2))):
            spans = [draw(field(2, draw(span_wires(odd=odd)), odd=odd)) for _ in range(draw(st.integers(0, 3)))]
            library = (b"\xc2\x3e\x05\x0a\x03old", True)  # ScopeSpans 1000, the reserved instrumentation_library
            scopes.append(draw(field(2, draw(message([library, *spans], odd=odd)), odd=odd)))
        resources.append(draw(field(1, draw(message(scopes, odd=odd)), odd=odd)))
    return draw(message(resources, odd=odd))


def count_spans(data: bytes) -> int:
    return len(spans_of(data))


def parsed(data: bytes) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(data)


ADDED = string_attribute("joined", "yes") + bool_attribute("b", value=True)


@given(requests())
@settings(max_examples=200, deadline=None)
def test_an_identity_edit_gives_the_same_request(wire: Wire) -> None:
    """Law (A8): the same bytes where what encloses spans is minimal, and the same message where it is not."""
    data, minimal = wire
    places: list[SpanAt] = []

    def edit(index: int, place: SpanAt) -> bytes:
        assert index == len(places)
        places.append(place)
        return data[place.start : place.end]

    out = splice(data, EVERY, edit)
    assert parsed(out) == parsed(data)
    assert parsed(out).SerializeToString() == parsed(data).SerializeToString()  # unknown fields too
    if minimal:
        assert out == data
    assert [Span.FromString(data[at.start : at.end]) for at in places] == spans_of(data)


@given(requests(), st.data())
@settings(max_examples=200, deadline=None)
def test_appended_attributes_are_all_that_changes(wire: Wire, data: st.DataObject) -> None:
    """Law (A8): decoded, what comes out differs from what came in by the appended attributes only; a span may go."""
    sent, _ = wire
    count = count_spans(sent)
    fate = data.draw(st.lists(st.sampled_from(["keep", "add", "drop"]), min_size=count, max_size=count))
    additions = [data.draw(st.sampled_from([b"", ADDED, ADDED * 9])) for _ in range(count)]

    chosen = {at for at in range(count) if fate[at] != "keep"}

    def edit(index: int, place: SpanAt) -> bytes | None:
        assert index in chosen
        return None if fate[index] == "drop" else sent[place.start : place.end] + additions[index]

    out = parsed(splice(sent, chosen, edit))
    wanted = parsed(sent)
    index = 0
    for resource in wanted.resource_spans:
        for scope in resource.scope_spans:
            kept = []
            for one in scope.spans:
                if fate[index] == "add":
                    one.MergeFromString(additions[index])
                if fate[index] != "drop":
                    kept.append(one)
                index += 1
            copies = [Span.FromString(one.SerializeToString()) for one in kept]
            del scope.spans[:]
            scope.spans.extend(copies)
    assert out == wanted
    assert out.SerializeToString() == wanted.SerializeToString()


@given(requests(), st.data())
@settings(max_examples=200, deadline=None)
def test_the_quick_splice_is_the_splice(wire: Wire, data: st.DataObject) -> None:
    """Law: `splice_all` gives the bytes of `splice` with an edit that appends."""
    sent, _ = wire
    lengths = st.sampled_from([0, 1, 90, 127, 128, 300, 16_300, 16_384])
    additions = [fields_of(data.draw(lengths)) for _ in range(count_spans(sent))]
    edit: Callable[[int, SpanAt], bytes] = lambda index, at: sent[at.start : at.end] + additions[index]  # noqa: E731
    assert splice_all(sent, additions) == splice(sent, EVERY, edit)


def fields_of(size: int) -> bytes:
    """About this many bytes of an attribute."""
    return string_attribute("k", "v" * size) if size else b""


@given(span_wires(odd=True), st.sets(st.sampled_from(KEYS)))
@settings(max_examples=200, deadline=None)
def test_only_the_named_attributes_are_taken_out(wire: Wire, keys: set[str]) -> None:
    """Law (A11): all of a key, however often it stands; every other field stays as it was."""
    data, _ = wire
    out = without_attributes(data, {key.encode() for key in keys})
    wanted, made = Span.FromString(data), Span.FromString(out)
    kept = [pair for pair in wanted.attributes if pair.key not in keys]
    assert list(made.attributes) == kept
    del wanted.attributes[:], made.attributes[:]
    assert wanted.SerializeToString() == made.SerializeToString()
    if not keys & {pair.key for pair in Span.FromString(data).attributes}:
        assert out == data


def test_a_key_given_twice_in_one_attribute_is_the_last() -> None:
    """As in protobuf, where the last scalar counts; so a hidden `carbon.gco2e` is found (A11)."""
    pair = b"\x0a\x01a" + b"\x0a\x0ccarbon.gco2e" + b"\x12\x02\x10\x01"
    assert attribute_key(pair, 0, len(pair)) == KeyValue.FromString(pair).key.encode()
    content = b"\x4a" + varint(len(pair)) + pair
    assert without_attributes(content, {b"carbon.gco2e"}) == b""
    assert without_attributes(content, {b"a"}) == content


def all_of_it(data: bytes) -> None:
    """Everything that reads a request's bytes."""
    splice(data, EVERY, lambda _, at: data[at.start : at.end])
    splice(data, EVERY, lambda _, at: without_attributes(data[at.start : at.end], {b"carbon.gco2e"}))
    first_span_offset(data)
    without_attributes(data, {b"a"})
    attribute_key(data, 0, len(data))


WHOLE = request(span(1, T0, T0 + S, attributes={"carbon.gco2e": 1.0}), span(2, T0, T0 + S, parent=1))


TELLING = st.lists(st.sampled_from([0x0A, 0x12, 0x4A, 0x80, 0xFF, 3, 4, 1, 5]), max_size=40).map(bytes)


@given(st.one_of(st.binary(max_size=60), TELLING))
@example(b"\x0a")
@example(b"\x0a\x05\x12\x80")
@example(b"\x0b\x0b\x0b")
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@settings(max_examples=500)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Law: malformed bytes give WireError and nothing else."""
    for additions in ([], [b""], [ADDED] * 50):
        with contextlib.suppress(WireError):
            splice_all(data, additions)
    with contextlib.suppress(WireError):
        all_of_it(data)


@given(st.integers(0, len(WHOLE)), st.binary(max_size=3), st.integers(0, 3))
@settings(max_examples=300)
def test_a_request_that_was_hurt_is_read_or_refused(at: int, inserted: bytes, lost: int) -> None:
    """Law: one that was cut, or had bytes put in or taken out, is a WireError or a request."""
    hurt = WHOLE[:at] + inserted + WHOLE[at + lost :]
    with contextlib.suppress(WireError):
        all_of_it(hurt)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_request_is_refused(at: int) -> None:
    """Law: no prefix of a request is taken for one with less in it, unless it is one."""
    cut = WHOLE[:at]
    try:
        parsed(cut)
    except DecodeError:
        with pytest.raises(WireError):
            splice(cut, EVERY, lambda _, place: without_attributes(cut[place.start : place.end], ()))


BAD = {
    "a varint of eleven bytes": (lambda: read_varint(b"\xff" * 11, 0), "more than 10 bytes at offset 0"),
    "a varint cut off": (lambda: read_varint(b"\x01\x80", 1), "cut off at offset 1"),
    "a wire type that is none": (lambda: skip_field(b"\0\0", 1, 6), "got wire type 6 at offset 1, expected"),
    "an end of group not begun": (lambda: skip_field(b"\x0c", 0, 4), "got wire type 4"),
    "another group's end": (lambda: skip_field(b"\x14", 0, 11), "got an end of group 2"),
    "a field past the end": (lambda: skip_field(b"\x05ab", 0, 10), "ends at offset 6, expected at most 3"),
    "fewer additions than spans": (lambda: splice_all(WHOLE, [b""]), "more spans than were read"),
}


@pytest.mark.parametrize(("work", "text"), BAD.values(), ids=BAD.keys())
def test_what_is_malformed_is_said(work: Callable[[], object], text: str) -> None:
    """Each error quotes what was got."""
    with pytest.raises(WireError, match=text):
        work()


def test_where_the_first_span_begins() -> None:
    """Behind the resource; the end where there is none, or where nothing of that kind is."""
    at = first_span_offset(WHOLE)
    assert WHOLE[at] == 0x12
    assert b"kfm.etl.test" in WHOLE[:at]
    assert b"etl.step" not in WHOLE[:at]
    assert first_span_offset(b"") == 0
    assert first_span_offset(b"\x0a\x02\x0a\x00") == 4


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_read_as_it_was_written(value: int) -> None:
    """Law: there and back."""
    data = varint(value)
    assert read_varint(b"x" + data + b"y", 1) == (value, 1 + len(data))


@given(
    st.lists(st.tuples(st.text(max_size=200), st.floats(allow_nan=False)), max_size=5),
    st.lists(st.tuples(st.text(max_size=200), st.one_of(st.booleans(), st.text(max_size=200))), max_size=5),
)
def test_attributes_are_what_protobuf_reads(
    doubles: list[tuple[str, float]], texts: list[tuple[str, str | bool]]
) -> None:
    """Law: encoded by hand, decoded by protobuf, in order and of the same type; asked twice, the same bytes."""
    encoder = Encoder()
    for _ in range(2):
        data = encoder.doubles(tuple(key for key, _ in doubles), [value for _, value in doubles])
        data += encoder.texts(tuple(texts))
        read = [
            (pair.key, getattr(pair.value, str(pair.value.WhichOneof("value"))))
            for pair in Span.FromString(data).attributes
        ]
        assert read == [*doubles, *texts]
        assert Counter(type(value) for _, value in read) == Counter(type(value) for _, value in [*doubles, *texts])
    assert attributes(Span.FromString(double_prefix("k") + bytes(8))) == {"k": 0.0}


@pytest.mark.parametrize("size", [1, 127, 128, 129, 16_383, 16_384, 16_385])
def test_a_length_takes_the_bytes_it_needs(size: int) -> None:
    """Where a varint grows by a byte: content that is just below, at and above it."""
    sent = b"\x0a\x04\x12\x02\x12\x00"
    addition = b"\x01" * size
    assert splice_all(sent, [addition]) == splice(sent, EVERY, lambda *_: addition)
    inner = b"\x12" + varint(size) + addition
    scope = b"\x12" + varint(len(inner)) + inner
    assert splice_all(sent, [addition]) == b"\x0a" + varint(len(scope)) + scope
