"""The compiled hot loops give what their Python references give, on good and on hostile input, and leak nothing."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.span_rows import Extract, Row
from joulegram_processor import attribution, native
from joulegram_processor.attribution import Columns, attribute, attribute_in_python
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.intensity.table import load_table
from joulegram_processor.intervals import IntervalSet
from joulegram_processor.join import CarbonModel, Joiner
from joulegram_processor.join_columns import ColumnJoiner, Portion
from joulegram_processor.select import Selector
from joulegram_processor.spans import SpanReader, run_of
from joulegram_processor.waiting import Settlement
from joulegram_processor.wire import SpanAt, splice, splice_all, splice_all_in_python, splice_some, varint
from simulators.traces import T0, S, request, span, tick, tick_batch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@pytest.fixture(autouse=True)
def compiled() -> ModuleType:
    """The module, for every test here: without it there is nothing to compare."""
    if native.LOADED is None:
        pytest.skip(f"the native part is {native.state()}")
    return native.LOADED


# -- extract -----------------------------------------------------------------------------------------------------

SELECTOR = Selector(names=("etl.job", "etl.*", "é"), attributes=("kfm.node", "team"))
READER = SpanReader(SELECTOR, None, WRITTEN_KEYS)
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


def no_growth(call: Callable[[], object]) -> None:
    """Calling it more often holds no more memory and no more references."""
    for _ in range(20):
        call()
    gc.collect()
    blocks, nones = sys.getallocatedblocks(), sys.getrefcount(None)
    for _ in range(200):
        call()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 50
    assert abs(sys.getrefcount(None) - nones) < 50


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


# -- the sweep ---------------------------------------------------------------------------------------------------

SMALL = st.integers(0, 40)
"""Few instants, so that pieces begin and end together, and pots that do not divide."""


@st.composite
def settlements(draw: st.DrawFn) -> tuple[EnergyStore, dict[int, IntervalSet], Columns]:
    """Spans over some ticks: with parents in a tree, a cycle or nowhere, the same id twice, of named processes."""
    store = EnergyStore(retention_ns=10**15)
    scale = draw(st.sampled_from([1, 7, 10**9]))
    at = draw(SMALL)
    for _ in range(draw(st.integers(0, 4))):
        end = at + draw(st.integers(1, 20))
        processes = draw(st.dictionaries(st.sampled_from([7, 8]), st.integers(0, scale), max_size=2))
        uj = st.one_of(st.integers(0, 9), st.integers(0, 10**9), st.integers(0, 2**61))
        made = tick(
            1,
            at * scale,
            end * scale,
            cpu_uj=draw(uj),
            dram_uj=draw(st.one_of(st.none(), uj)),
            busy_ns=draw(st.integers(0, 4 * scale)),
            total_ns=4 * scale,
            processes=processes,
        )
        store.add(tick_batch(made))
        at = end + draw(st.sampled_from([0, 0, 1]))
    spans = Columns()
    count = draw(st.integers(0, 12))
    keys = [bytes([draw(st.integers(0, count)) if draw(st.booleans()) else index]) * 24 for index in range(count)]
    far = draw(st.sampled_from([0] * 9 + [2**61, 2**62, 2**63, -5]))
    for key in keys:
        start = draw(SMALL) * scale + draw(st.integers(0, scale - 1)) + draw(st.sampled_from([0, far]))
        spans.starts.append(start)
        spans.ends.append(start + draw(st.one_of(st.just(0), SMALL.map(lambda wide: wide * scale))))
        spans.keys.append(key)
        spans.parents.append(draw(st.sampled_from([b"", b"x" * 24, *keys])))
        spans.pids.append(draw(st.sampled_from([0, 0, 7, 8, 9])))
    given = st.lists(st.tuples(SMALL, SMALL), max_size=3)
    claimed = {
        scope: IntervalSet((low * scale, high * scale) for low, high in draw(given))
        for scope in draw(st.lists(st.sampled_from([0, 7, 8]), unique=True))
    }
    return store, claimed, spans


def after(call: Callable[..., None], store: EnergyStore, claimed: dict[int, IntervalSet], spans: Columns) -> Any:
    """What it leaves, of copies."""
    claimed, spans = deepcopy(claimed), deepcopy(spans)
    call(store, claimed, spans)
    return spans.own, spans.scopes, [(scope, times.items) for scope, times in claimed.items()]


@settings(max_examples=500, deadline=None)
@given(settlements())
def test_attribute_gives_every_microjoule_to_whom_the_reference_does(
    case: tuple[EnergyStore, dict[int, IntervalSet], Columns],
) -> None:
    """Own energy, scopes and claimed time, in their order; nothing is changed where it refuses."""
    store, claimed, spans = case
    reference = after(attribute_in_python, store, claimed, spans)
    assert after(attribute, store, claimed, spans) == reference

    before = deepcopy((claimed, spans.own, spans.scopes))
    if attribution._attribute_natively(native.LOADED, store, claimed, spans):
        assert (spans.own, spans.scopes, [(x, y.items) for x, y in claimed.items()]) == reference
    else:
        assert (spans.own, spans.scopes) == before[1:]
        assert {x: y.items for x, y in claimed.items()} == {x: y.items for x, y in before[0].items()}


@pytest.mark.parametrize("pids", [[0], [7], [0, 7, 8, 9]], ids=str)
def test_attribute_answers_for_an_ordinary_second(pids: list[int]) -> None:
    """A tree of spans, named processes and time that was claimed before: no case for Python."""
    store = EnergyStore(retention_ns=10**15)
    for second in range(4):
        store.add(
            tick_batch(
                tick(
                    second + 1,
                    T0 + second * S,
                    T0 + second * S + S,
                    cpu_uj=5_000_003,
                    busy_ns=2 * S,
                    total_ns=4 * S,
                    processes={7: S // 3, 8: 1},
                )
            )
        )
    spans = Columns()
    for index in range(400):
        spans.starts.append(T0 + S + index * 1_000_003)
        spans.ends.append(spans.starts[-1] + (400 - index) * 5_000_000)
        spans.keys.append(index.to_bytes(24))
        spans.parents.append((index // 3).to_bytes(24) if index else b"")
        spans.pids.append(pids[index % len(pids)])
    claimed = {0: IntervalSet([(T0 + S, T0 + S + 1000), (T0 + 2 * S, T0 + 2 * S + 5)])}
    reference = after(attribute_in_python, store, claimed, spans)
    assert attribution._attribute_natively(native.LOADED, store, claimed, spans)
    assert (spans.own, spans.scopes, [(x, y.items) for x, y in claimed.items()]) == reference
    assert sum(map(sum, spans.own)) > 500_000
    no_growth(lambda: attribution._attribute_natively(native.LOADED, store, {}, spans))


# -- the join ----------------------------------------------------------------------------------------------------

NOON = 1_685_620_800 * S
MODELS = {
    "a region": CarbonModel(IntensityChain(load_table("epa-egrid-subregion"), "egrid:SPNO"), region="egrid:SPNO"),
    "a declared factor": CarbonModel(StaticFactor("0.394321", 'the "utility" bill \u2028 2025')),
    "a great factor": CarbonModel(StaticFactor("4.999999", "soot"), region="röof\u0007"),
    "nothing": CarbonModel(StaticFactor("0", "the sun")),
}
FIGURES = st.one_of(
    st.sampled_from([0, 1, 3_600_000_000, 2**50, 2**51 - 1, 2**51, 2**53, 2**62, 2**64]),
    st.integers(0, 10**7),
    st.integers(0, 10**13),
)
Chunk = tuple[EnergyStore, Columns, list[Row], list[dict[str, Any]], list[str]]


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Settled spans of one method with whatever figures, in adjoining ticks of whatever width and energy."""
    store = EnergyStore(retention_ns=10**17)
    dram = draw(st.booleans())
    width = draw(st.sampled_from([1, 7, S, 3600 * S]))
    for number in range(3):
        uj = st.one_of(st.integers(0, 9), st.integers(0, 10**9), st.integers(0, 2**54))
        at = NOON + number * width
        made = tick(number + 1, at, at + width, cpu_uj=draw(uj), dram_uj=draw(uj) if dram else None)
        store.add(tick_batch(made))
    rows: list[Row] = []
    extras: list[dict[str, Any]] = []
    spans = Columns()
    for _ in range(draw(st.integers(1, 5))):
        instants = st.one_of(st.integers(0, 3 * width), st.sampled_from([0, width, 2 * width, 3 * width]))
        start, end = sorted((NOON + draw(instants), NOON + draw(instants)))
        name = draw(st.one_of(st.sampled_from(["etl.job", 'etl.node."q"\\', "é\u2028\x07"]), TEXTS))
        rows.append(
            (name, draw(st.binary(min_size=16, max_size=16)), b"\1" * 8, b"", start, end, draw(st.integers(-1, 3)))
        )
        extras.append(draw(st.sampled_from([{}, {}, {"kfm.node": "n"}, {"job.type": 1}])))
        spans.starts.append(start)
        spans.ends.append(end)
        spans.parents.append(draw(st.sampled_from([b"", b"p" * 24])))
        spans.scopes.append(draw(st.sampled_from([0, 77])))
        for column in (*spans.own[:2], *spans.kids[:2]) if dram else (spans.own[0], spans.kids[0]):
            column.append(draw(FIGURES))
        for column in (*spans.own, *spans.kids):
            if len(column) < len(rows):
                column.append(0)
    runs = [draw(st.sampled_from(RUN_IDS)) for _ in rows]
    return store, spans, rows, extras, runs


def join_case(chunk: Chunk, model: CarbonModel) -> tuple[ColumnJoiner, Portion] | None:
    store, spans, rows, extras, runs = chunk
    joiner = Joiner(store, model)
    columns = ColumnJoiner(store, joiner)
    first, last = min(spans.starts), max(spans.ends)
    uniform = columns.uniform(joiner.window(first, last), first, last, spans.kids)
    if uniform is None:
        return None
    group = Settlement(spans, rows=rows, origins=[2**50] * len(rows), runs=runs, extras=extras)
    return columns, Portion(uniform, group, list(range(len(rows))), 2**51, 7)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@given(chunk=chunks())
@settings(max_examples=150, deadline=None)
def test_join_writes_what_the_reference_writes(model: CarbonModel, chunk: Chunk) -> None:
    """Lines, attributes and figures to the byte and the microgram, or a refusal."""
    case = join_case(chunk, model)
    if case is None:
        return
    columns, portion = case
    made = columns._join_natively(native.LOADED, portion)
    reference = columns.join_in_python(portion)
    assert columns.join(portion) == reference
    if max(map(max, (*chunk[1].own, *chunk[1].kids))) <= 10**9 and model is MODELS["a region"]:
        assert made is not None or chunk[0].rows[0].host[0] + chunk[0].rows[0].host[1] > 2**52
    if made is not None:
        assert made == reference


def test_join_leaks_nothing() -> None:
    """Neither where it answers nor where it refuses in the midst of the spans."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, NOON, NOON + S, cpu_uj=10**7, dram_uj=5)))
    rows: list[Row] = [(f"etl.{at}", b"t" * 16, bytes([at]) * 8, b"", NOON + at, NOON + S, 0) for at in range(9)]
    spans = Columns([row[4] for row in rows], [row[5] for row in rows], [], [b"p" * 24] * 9, [], scopes=[0] * 9)
    spans.own, spans.kids = ([10**5] * 9, [3] * 9, [0] * 9), ([0] * 9, [0] * 9, [0] * 9)
    case = join_case((store, spans, rows, [{}, {"kfm.node": "n"}, {}] * 3, ["run-one-0001"] * 9), MODELS["a region"])
    assert case is not None
    columns, portion = case
    assert columns._join_natively(native.LOADED, portion) is not None
    no_growth(lambda: columns._join_natively(native.LOADED, portion))
    spans.own[0][8] = 2**60
    assert columns._join_natively(native.LOADED, portion) is None
    no_growth(lambda: columns._join_natively(native.LOADED, portion))


# -- the splice --------------------------------------------------------------------------------------------------


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


# -- the seam ----------------------------------------------------------------------------------------------------


def test_the_variable_leaves_it_aside() -> None:
    """JOULEGRAM_NATIVE=0 is Python alone."""
    code = "from joulegram_processor import native; print(native.LOADED, native.state())"
    shown = subprocess.run([sys.executable, "-c", code], env={native.VARIABLE: "0"}, capture_output=True, text=True)
    assert shown.stdout.strip() == "None off: JOULEGRAM_NATIVE is 0"
