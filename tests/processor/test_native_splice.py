"""The compiled splice gives the bytes of its Python reference, or refuses where it does, and leaks nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import WireError
from joulegram_processor import native
from joulegram_processor.wire import SpanAt, splice, splice_all, splice_all_in_python, splice_some
from processor.compiled import COMPILED, no_growth
from simulators.odd_requests import REQUESTS, hostile
from simulators.traces import T0, S, request, span

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = COMPILED


def outcome(call: Callable[..., bytes], *arguments: Any) -> bytes | str:
    """Its bytes, or its refusal."""
    try:
        return call(*arguments)
    except WireError:
        return "refused"


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_splice_gives_the_bytes_of_the_reference(data: st.DataObject, damaged: bool) -> None:
    """All spans, some, some left out; of a request as it should be and of one that was damaged."""
    payload = data.draw(hostile() if damaged else REQUESTS)
    assert native.LOADED is not None
    spans = sum(map(bool, spans_in(payload)))
    more = [data.draw(st.sampled_from([b"", b"\x48\x01", b"x" * 127, b"y" * 17_000])) for _ in range(spans)]
    assert outcome(splice_all, payload, more) == outcome(splice_all_in_python, payload, more)
    chosen = sorted(data.draw(st.sets(st.integers(0, spans + 1))))
    gains: list[bytes | None] = [data.draw(st.sampled_from([None, b"", b"\x48\x01", b"z" * 200])) for _ in chosen]
    at = dict(zip(chosen, gains, strict=True))

    def edit(index: int, place: SpanAt) -> bytes | None:
        gain = at[index]
        return None if gain is None else payload[place.start : place.end] + gain

    assert outcome(splice_some, payload, chosen, gains) == outcome(splice, payload, at, edit)
    if not damaged:
        assert native.LOADED.splice(payload, None, more) is not None
        assert native.LOADED.splice(payload, chosen, gains) is not None


def spans_in(payload: bytes) -> list[int]:
    """One 1 for each span there may be."""
    try:
        message = ExportTraceServiceRequest.FromString(payload)
    except DecodeError:
        return [1]
    return [1 for group in message.resource_spans for scope in group.scope_spans for _ in scope.spans]


def test_splice_leaks_nothing() -> None:
    """Neither where it answers nor where it refuses."""
    whole = request(*(span(at, T0, T0 + S, name="etl.job") for at in range(1, 5)))
    assert native.LOADED is not None
    call = native.LOADED.splice
    no_growth(lambda: [call(whole[:cut], [1, 2], [b"more", None]) for cut in range(len(whole) + 1)])
