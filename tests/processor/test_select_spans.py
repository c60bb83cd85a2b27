from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.records import LogRecord, RecordKind
from joulegram_pipeline.span_rows import NAME, PARENT
from joulegram_pipeline.span_rows import SPAN as SPAN_ID
from joulegram_pipeline.span_rows import TRACE as TRACE_ID
from joulegram_processor.enrich import WRITTEN_KEYS
from joulegram_processor.select import Selector
from joulegram_processor.spans import (
    MAX_NAME,
    Batch,
    SpanReader,
    node_of,
    reported_uj,
    run_of,
    shortened,
    status_text,
)
from simulators.traces import T0, TRACE, S, add_attributes, request, span, span_id, spans_of, trace_id


def read(payload: bytes, selector: Selector | None = None, default_run: str | None = None) -> Batch:
    return SpanReader(selector or Selector(), default_run, WRITTEN_KEYS).read(
        LogRecord(7, 8, RecordKind.TRACES, T0, payload)
    )


SELECTED = {
    "the job": ("etl.job", {}, True),
    "a node": ("etl.node.a", {}, True),
    "the bare prefix": ("etl.", {}, True),
    "another name": ("http.get", {}, False),
    "no name": ("", {}, False),
    "in capitals": ("ETL.job", {}, False),
    "a node by attribute": ("anything", {"kfm.node": "n"}, True),
    "another attribute": ("anything", {"kfm.run_id": "run-one-0001"}, False),
}


@pytest.mark.parametrize(("name", "attributes", "selected"), SELECTED.values(), ids=SELECTED.keys())
def test_what_is_selected(name: str, attributes: dict[str, object], selected: bool) -> None:
    """Design 2: by default `etl.job`, `etl.*`, or a `kfm.node` attribute."""
    batch = read(request(span(1, T0, T0 + S, name=name, attributes=attributes)))
    assert (len(batch.rows), batch.total) == (int(selected), 1)


def test_a_selector_of_ones_own() -> None:
    """Exact names, prefixes and attribute keys, none of them ours; an exact name is no prefix."""
    selector = Selector(names=("batch", "spark.*"), attributes=("team",))
    names = ["batch", "batches", "spark.stage", "etl.job", "x"]
    spans = [
        span(at + 1, T0, T0, name=name, attributes={"team": 5} if name == "x" else {}) for at, name in enumerate(names)
    ]
    batch = read(request(*spans), selector)
    assert [row[NAME] for row in batch.rows] == ["batch", "spark.stage", "x"]
    assert batch.indices == [0, 2, 4]
    assert batch.extras == {2: {"team": 5}}


SPAN = st.builds(
    lambda number, name, parent, attributes, times: span(
        number, T0 + times[0], T0 + times[1], name=name, parent=parent, attributes=attributes
    ),
    st.integers(0, 5),
    st.sampled_from(["etl.job", "etl.a", "http.get", ""]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([{}, {}, {"kfm.node": "n"}, {"carbon.gco2e": 1.5}, {"job.id": "run-two-0002"}, {"other": 1}]),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)


@given(st.lists(st.lists(st.tuples(st.booleans(), SPAN), max_size=4), max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_request_is_read_as_span_by_span(shape: list[list[tuple[bool, Any]]]) -> None:
    """Law: rows, places, runs, processes and attributes are those of each sound, selected span, over all resources."""
    message = ExportTraceServiceRequest()
    wanted: list[tuple[Any, ...]] = []
    links: dict[bytes, bytes] = {}
    number = 0
    for at, group in enumerate(shape):
        resource = message.resource_spans.add()
        add_attributes(resource.resource, {"process.pid": 50 + at, "kfm.run_id": f"run-{at}-0000"})
        for new_scope, one in group:
            if new_scope or not resource.scope_spans:
                resource.scope_spans.add()
            resource.scope_spans[-1].spans.append(one)
            values = {item.key: item.value for item in one.attributes}
            sound = any(one.span_id) and one.end_time_unix_nano >= one.start_time_unix_nano
            if sound and (one.name.startswith("etl.") or "kfm.node" in values):
                run = values["job.id"].string_value if "job.id" in values else f"run-{at}-0000"
                extras = set(values) - {"other"}
                wanted.append((number, one.name, one.span_id, run, 50 + at, extras))
            elif one.parent_span_id:
                links[one.trace_id + one.span_id] = one.trace_id + one.parent_span_id
            number += 1
    batch = read(message.SerializeToString())
    made = [
        (batch.indices[at], row[0], row[2], batch.runs[at], batch.pids[at], set(batch.extras.get(at, ())))
        for at, row in enumerate(batch.rows)
    ]
    assert made == wanted
    assert (batch.total, batch.waiting) == (number, len(wanted))
    joined = {row[TRACE_ID] + row[SPAN_ID] for row in batch.rows}
    assert batch.links == ({key: above for key, above in links.items() if key not in joined} if wanted else {})


@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_a_wire_error(data: bytes) -> None:
    """Law: nothing else leaves the reader."""
    try:
        total = len(spans_of(data))
    except DecodeError:
        with pytest.raises(WireError, match=f"got {len(data)} bytes that are not an ExportTraceServiceRequest"):
            read(data)
    else:
        assert read(data).total == total


def test_which_run_a_span_is_of() -> None:
    """Its own before its resource's, before the default, before its trace; an id that may not be used is none."""
    mine: dict[str, object] = {"kfm.run_id": "run-mine-001"}
    own = span(1, T0, T0, attributes=mine)
    assert read(request(own, resource={"kfm.run_id": "run-res-0001"}), None, "run-def-0001").runs == ["run-mine-001"]
    bare = span(1, T0, T0, trace=trace_id(3))
    assert read(request(bare, resource={"job.id": "run-res-0001"}), None, "run-def-0001").runs == ["run-res-0001"]
    assert read(request(bare, resource={"job.id": "../../etc"}), None, "run-def-0001").runs == ["run-def-0001"]
    assert read(request(bare)).runs == [trace_id(3).hex()]


RUNS: dict[str, tuple[dict[str, Any], str | None]] = {
    "kfm before job": ({"job.id": "run-job-0001", "kfm.run_id": "run-kfm-0001"}, "run-kfm-0001"),
    "job where kfm is no id": ({"job.id": "run-job-0001", "kfm.run_id": "no/id/here"}, "run-job-0001"),
    "no text": ({"kfm.run_id": 12345678}, None),
    "too short": ({"job.id": "run"}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize(("values", "wanted"), RUNS.values(), ids=RUNS.keys())
def test_which_run_attributes_name(values: dict[str, Any], wanted: str | None) -> None:
    """S0-37, S1-22: `kfm.run_id` before `job.id`, and only what may name a file."""
    assert run_of(values) == wanted


NODES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "by name": ("etl.node.hrrr_ingest", {}, "hrrr_ingest"),
    "by attribute": ("anything", {"kfm.node": "n"}, "n"),
    "attribute before name": ("etl.node.a", {"kfm.node": "b"}, "b"),
    "an empty attribute": ("etl.node.a", {"kfm.node": ""}, "a"),
    "no text": ("etl.node.a", {"kfm.node": 5}, "a"),
    "neither": ("etl.job", {}, None),
}


@pytest.mark.parametrize(("name", "extras", "wanted"), NODES.values(), ids=NODES.keys())
def test_which_node_a_span_is(name: str, extras: dict[str, Any], wanted: str | None) -> None:
    """S1-21, S1-22: `kfm.node`, else what follows ``etl.node.``."""
    assert node_of(name, extras) == wanted


@given(st.text(max_size=MAX_NAME + 5))
def test_long_text_is_shortened_and_says_so(text: str) -> None:
    """Law: at most 1024 characters and an ellipsis; what is no longer stays."""
    short = shortened(text)
    assert short == text if len(text) <= MAX_NAME else short == text[:MAX_NAME] + "…"


@given(st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.booleans(), st.none()))
def test_a_report_is_an_energy_or_nothing(value: Any) -> None:
    """Law (S0-66): no report is negative, infinite or more than a gigajoule."""
    uj = reported_uj({"energy.cpu_j": value})
    assert uj is None or 0 <= uj <= 10**15
    assert reported_uj({}) is None


def test_a_status_code_otlp_does_not_know_is_unset() -> None:
    """The ledger has three words for it."""
    assert [status_text(code) for code in (-1, 0, 1, 2, 3)] == ["unset", "unset", "ok", "error", "unset"]


def test_a_span_with_odd_ids_beside_a_sound_one() -> None:
    """A11: of one scope the sound is read, in the place it stands at."""
    odd = span(1, T0, T0 + S)
    odd.trace_id = TRACE + b"x"
    batch = read(request(odd, span(2, T0, T0 + S), span(3, T0 + S, T0)))
    assert [row[2] for row in batch.rows] == [span_id(2)]
    assert batch.indices == [1]


def test_a_span_without_a_start_is_not_joined() -> None:
    """OTLP says 0 where a time is not known: such a span would claim all the energy there ever was."""
    assert [row[NAME] for row in read(request(span(1, 0, T0), span(2, T0, T0, name="etl.known"))).rows] == ["etl.known"]


def test_a_parent_id_that_is_none_makes_a_root() -> None:
    """Eight zero bytes, or another number of bytes, name no span."""
    zeros, short, real = span(1, T0, T0), span(2, T0, T0), span(3, T0, T0, parent=1)
    zeros.parent_span_id, short.parent_span_id = bytes(8), b"abc"
    assert [row[PARENT] for row in read(request(zeros, short, real)).rows] == [b"", b"", span_id(1)]
