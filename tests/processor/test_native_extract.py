"""The compiled extraction reads what its Python reference reads, on good and on hostile input, and leaks nothing."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.span_rows import Extract
from joulegram_processor import native
from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.select import Selector
from joulegram_processor.spans import SpanReader, run_of
from processor.compiled import COMPILED, no_growth
from simulators.odd_requests import ODD_FIELDS, REQUESTS, hostile, wrapped
from simulators.traces import T0, S, request, span

pytestmark = COMPILED

SELECTOR = Selector(names=("etl.job", "etl.*", "é"), attributes=("kfm.node", "team"))
READER = SpanReader(SELECTOR, None, WRITTEN_KEYS)


def by_native(payload: bytes, reader: SpanReader = READER) -> tuple[Any, ...] | None:
    assert native.LOADED is not None
    fields: tuple[Any, ...] | None = native.LOADED.extract(
        payload,
        reader._exact_bytes,
        reader._prefix_bytes,
        reader._wanted_bytes,
        reader._attributes,
        reader._place,
        run_of,
    )
    return fields


def shown(found: Extract) -> str:
    """Everything in it, so that what is not a number is equal to itself; a set has no order of its own."""
    return repr(
        (
            found.total,
            found.rows,
            found.indices,
            found.runs,
            found.pids,
            found.extras,
            found.links,
            sorted(found.roots),
            found.broken,
        )
    )


def check_extract(payload: bytes, reader: SpanReader = READER) -> bool:
    """Hold both against each other; whether the native one answered."""
    fields = by_native(payload, reader)
    try:
        reference = reader.extract_in_python(payload)
    except WireError:
        assert fields is None
        return False
    if fields is not None:
        assert shown(Extract(*fields)) == shown(reference)
    assert shown(reader.extract(payload)) == shown(reference)
    return fields is not None


@settings(deadline=None)
@given(REQUESTS)
def test_extract_reads_every_ordinary_request_as_protobuf_does(payload: bytes) -> None:
    """All fields of OTLP, nested values, ids of any length: it answers, and answers the same."""
    assert check_extract(payload)


@settings(max_examples=600, deadline=None)
@given(hostile())
@example(b"\x0a")
@example(wrapped(b"\x0a" * 200, b"\x12", b"\x12", b"\x0a"))
def test_extract_never_accepts_or_reads_what_protobuf_does_not(payload: bytes) -> None:
    """H-rows of hostile bytes: refused, or the same."""
    check_extract(payload)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_extract_on_any_bytes(payload: bytes) -> None:
    check_extract(payload)


@settings(deadline=None)
@given(
    REQUESTS,
    st.sampled_from([None, "run-default-01"]),
    st.sampled_from([Selector(), Selector((), ()), Selector(("*",))]),
)
def test_extract_with_other_selectors_and_runs(payload: bytes, run: str | None, selector: Selector) -> None:
    """No prefix, no name, every name; a run of the configuration."""
    assert check_extract(payload, SpanReader(selector, run, WRITTEN_KEYS))


@pytest.mark.parametrize("depth", [1, 21, 22, 40, 47, 48, 200])
def test_extract_and_values_inside_each_other(depth: int) -> None:
    """Protobuf allows a hundred messages inside each other; what is near that is its own to judge."""
    value = wrapped(b"", *[b"\x0a", b"\x2a"] * depth)
    payload = wrapped(wrapped(b"\x0a\x01x" + wrapped(value, b"\x12"), b"\x4a"), b"\x12", b"\x12", b"\x0a")
    assert check_extract(payload) == (depth <= 21)


@pytest.mark.parametrize("odd", ODD_FIELDS[1:15], ids=lambda odd: odd.hex())
def test_extract_leaves_what_is_odd_to_python(odd: bytes) -> None:
    """Each is refused or read as protobuf reads it."""
    check_extract(wrapped(span(1, T0, T0 + S, name="etl.job").SerializeToString() + odd, b"\x12", b"\x12", b"\x0a"))


def said(key: bytes, text: bytes) -> bytes:
    """A request of one span with one attribute of text."""
    pair = wrapped(key, b"\x0a") + wrapped(wrapped(text, b"\x0a"), b"\x12")
    return wrapped(wrapped(b"etl.job", b"\x2a") + wrapped(pair, b"\x4a"), b"\x12", b"\x12", b"\x0a")


@pytest.mark.parametrize("size", [*range(20), 123, 124, 125, 126, 127, 128, 129, 300])
def test_extract_of_an_attribute_of_text_of_every_length(size: int) -> None:
    """Where the common form of an attribute ends, where its length takes two bytes, and each byte that is no text."""
    for key in (b"job.id", b"other"):  # one whose value is read, and one of which only the form is looked at
        assert check_extract(said(key, b"v" * size))
    assert check_extract(said(b"k" * size, b"run-one-0001"))
    for at in range(size):
        broken = b"v" * at + b"\xff" + b"v" * (size - at - 1)
        assert by_native(said(b"other", broken)) is None
        assert by_native(said(broken, b"v")) is None


def test_extract_of_an_attribute_that_only_looks_common() -> None:
    """Each byte of its frame another: read as protobuf reads it, or left to that."""
    for key in (b"job.id", b"others"):
        whole = said(key, b"run-one-0001")
        begin = whole.index(b"\x0a\x06" + key)
        for at in (begin, begin + 1, *range(begin + 8, begin + 12)):
            for byte in range(256):
                check_extract(whole[:at] + bytes([byte]) + whole[at + 1 :])


def test_extract_selects_by_an_attribute_before_and_behind_the_name() -> None:
    """The order of fields on the wire is the sender's."""
    one = span(1, T0, T0 + S, name="other", attributes={"kfm.node": "n"}).SerializeToString()
    fields = [wrapped(b"other", b"\x2a"), wrapped(b"\x0a\x08kfm.node\x12\x03\x0a\x01n", b"\x4a")]
    times = b"\x39" + struct.pack("<Q", T0) + b"\x41" + struct.pack("<Q", T0 + S)
    ids = wrapped(b"\3" * 16, b"\x0a") + wrapped(b"\1" * 8, b"\x12")
    for content in (one, ids + times + fields[0] + fields[1], fields[1] + fields[0] + times + ids):
        payload = wrapped(content, b"\x12", b"\x12", b"\x0a")
        assert check_extract(payload)
        assert len(READER.extract(payload).rows) == 1


def test_extract_leaks_nothing() -> None:
    """Neither where it answers nor where it refuses, at whatever point."""
    whole = request(
        *(
            span(at, T0, T0 + S, name=name, attributes={"kfm.node": "n", "job.id": "run-one-0001", "other": 1})
            for at, name in enumerate(["etl.job", "etl.a", "other", "x"], start=1)
        )
    )
    payloads = [whole, *(whole[:cut] for cut in range(0, len(whole), 9)), *(whole + odd for odd in ODD_FIELDS)]
    no_growth(lambda: [by_native(payload) for payload in payloads])


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=4))
def test_holds_says_what_the_interpreter_says(payload: bytes, mark: bytes) -> None:
    """Anywhere in the bytes, at their very end among it."""
    assert native.LOADED is not None
    assert native.LOADED.holds(payload, mark) == (mark in payload)
    assert native.LOADED.holds(payload + mark, mark)
