"""The machine, request by request: what is joined, what travels on, and in which bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import DocumentError
from joulegram_pipeline.records import RecordKind
from joulegram_processor.join import CarbonModel
from joulegram_schemas import validate
from simulators.decoded import attributes
from simulators.machine_node import FACTOR, OF_RUN, RUN, Node
from simulators.traces import T0, S, request, span, span_id, spans_of, trace_id


def test_the_whole_path_by_hand() -> None:
    """S1-21 to S1-24, S0-37: 2 J in 2 s, a job and a node in it; energy, time and carbon on both, one run of all."""
    node = Node()
    node.log.traces(
        span(1, T0, T0 + 2 * S, name="etl.job", status=1, attributes={"job.id": RUN, "job.type": "nightly"}),
        span(2, T0 + S, T0 + 2 * S, name="etl.node.hrrr", parent=1, status=1, attributes={"job.id": RUN}),
    )
    node.tick(1).tick(2)
    job, child = node.gained()
    for gained in (job, child):
        validate("otel-energy-span-v1", gained)
    assert (job["energy.cpu_j"], job["energy.total_j"], job["timing.duration_s"]) == (2.0, 2.0, 2.0)
    assert (child["energy.cpu_j"], child["timing.duration_s"], child["energy.allocation_ratio"]) == (1.0, 1.0, 1.0)
    assert (job["carbon.gco2e"], child["carbon.gco2e"]) == (0.0002, 0.0001)
    assert (job["energy.method"], job["energy.scope"], job["job.type"]) == ("measured", "host", "nightly")
    assert job["carbon.gco2e_lower"] < job["carbon.gco2e"] < job["carbon.gco2e_upper"]
    (run,) = node.runs
    assert (run.run_id, run.revision, run.ended_by, run.status, run.job_type) == (RUN, 1, "root_span", "ok", "nightly")
    assert (run.energy_uj, run.carbon_ug, run.spans) == (2_000_000, 200, 2)  # exclusive: nothing is counted twice
    assert (run.factor_kg_per_kwh, run.factor_source) == (0.36, FACTOR.source)  # S0-57, S0-58
    (listed,) = run.nodes
    assert (listed.node, listed.total_uj, listed.carbon_ug) == ("hrrr", 1_000_000, 100)


def test_an_unselected_request_is_sent_byte_for_byte() -> None:
    """A8: unknown fields, odd order and all; and nothing is recorded of it."""
    odd = b"\xc2\x3e\x03odd" + request(span(1, T0, T0 + S, name="http.get")) + b"\x0a\x80\x00"
    node = Node()
    node.log.append(RecordKind.TRACES, odd)
    node.log.append(RecordKind.LOGS, b"any logs")
    node.log.append(RecordKind.TRACES, b"\xff not OTLP")  # of another version's spool
    node.tick(2)
    assert node.sent == [odd, b"any logs", b"\xff not OTLP"]
    assert node.lines == []


INVALID = {
    "a trace id of zeros": {"trace_id": bytes(16)},
    "a short trace id": {"trace_id": b"short"},
    "no span id": {"span_id": b""},
    "a span id of zeros": {"span_id": bytes(8)},
    "an end before its start": {"end_time_unix_nano": T0 - 1},
    "no end": {"end_time_unix_nano": 0},
}


@pytest.mark.parametrize("fields", INVALID.values(), ids=INVALID.keys())
def test_an_invalid_span_travels_on_untouched(fields: dict[str, Any]) -> None:
    """A11: neither joined nor dropped, whether it is alone or beside a valid one."""
    broken = span(1, T0, T0 + S, name="etl.job")
    for name, value in fields.items():
        setattr(broken, name, value)
    node = Node()
    alone = node.log.traces(broken)
    node.log.traces(broken, span(2, T0, T0 + S, name="etl.job"))
    node.tick(1)
    assert node.sent[0] == alone.payload
    untouched, joined = spans_of(node.sent[1])
    assert untouched == broken
    assert attributes(joined)["energy.total_j"] == 1.0
    assert [line["span_id"] for line in node.lines] == [span_id(2).hex()]


def test_a_repeated_request_is_neither_joined_nor_sent_again() -> None:
    """Design 2: a retry whose acknowledgement was lost, while the first waits and after it went."""
    node = Node()
    for _ in range(2):
        node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    node.tick(1)
    node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    node.tick(2)
    assert (len(node.lines), len(node.sent)) == (1, 1)
    assert node.count("processor_duplicate_spans_total") == 2


def test_a_repeated_span_beside_others_is_left_out() -> None:
    """Of a request that repeats some spans the others go on: fresh ones joined, unselected ones as they came."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    node.log.traces(
        span(1, T0, T0 + S, name="etl.job"),
        span(3, T0, T0 + S, name="http.get", parent=1),
        span(2, T0, T0 + S, name="etl.step", parent=1),
        span(2, T0, T0 + S, name="etl.step", parent=1),
    )
    node.tick(1)
    assert sorted(line["span_id"] for line in node.lines) == [span_id(1).hex(), span_id(2).hex()]
    later = [one.span_id for payload in node.sent if len(spans_of(payload)) > 1 for one in spans_of(payload)]
    assert later == [span_id(3), span_id(2)]


def test_the_client_s_own_carbon_is_replaced() -> None:
    """A11, D-11: every key enrichment writes is taken out first, however often it stood there; the rest stays."""
    mine: list[tuple[str, object]] = [
        ("carbon.gco2e", 7.5),
        ("kfm.node", "n"),
        ("carbon.gco2e", "twice"),
        ("energy.total_j", 3),
        ("energy.reason", "old"),
        ("carbon.custom", "stays"),
    ]
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job", attributes=mine))
    node.tick(1)
    (one,) = spans_of(node.sent[0])
    keys = [pair.key for pair in one.attributes]
    assert len(set(keys)) == len(keys)
    assert keys[:2] == ["kfm.node", "carbon.custom"]
    assert attributes(one)["carbon.gco2e"] == 0.0001
    assert "energy.reason" not in keys


def test_energy_the_job_reported_is_kept_and_said() -> None:
    """S0-59: `energy.cpu_j` stays as it came, the method says reported, and no key stands twice (A11)."""
    reported: dict[str, object] = {
        "energy.cpu_j": 2.5,
        "energy.method": "modelled",
        "energy.scope": "process",
        "energy.reason": "job says so",
        "energy.state": "partial",
        "carbon.gco2e": 1.0,
    }
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job", attributes=reported))
    node.log.traces(span(2, T0 - 2 * S, T0 - S, name="etl.job", attributes=reported, trace=trace_id(1)))
    node.tick(1)
    for payload in node.sent:
        (one,) = spans_of(payload)
        keys = [pair.key for pair in one.attributes]
        assert len(set(keys)) == len(keys), keys
        gained = attributes(one)
        validate("otel-energy-span-v1", gained)
        assert (gained["energy.cpu_j"], gained["energy.method"]) == (2.5, "reported")
        assert gained["carbon.gco2e"] == 0.00025
    assert len(node.sent) == 2
    assert all(line["energy"]["reported_uj"] == line["energy"]["total_uj"] == 2_500_000 for line in node.lines)


def test_without_region_or_factor_there_is_energy_and_no_carbon() -> None:
    """S0-67: carbon only where a factor is declared; the reason is said."""
    node = Node(CarbonModel(None, "region_not_configured"))
    node.log.traces(span(1, T0, T0 + S, name="etl.job", attributes=OF_RUN))
    node.tick(1)
    (gained,) = node.gained()
    assert (gained["energy.total_j"], gained["carbon.reason"]) == (1.0, "region_not_configured")
    assert node.runs[0].carbon_ug is None


def test_what_a_full_spool_dropped_is_a_line_of_the_ledger() -> None:
    """Each loss is written down; a request dropped while it waited leaves nothing but its spans."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S), resource={"kfm.run_id": RUN})
    node.feed()
    lost = {"traces": 3, "ticks": 1}
    node.log.control(
        "spool.gap", RUN, first_lsn=0, next_lsn=node.log.end, records=lost, unread={"traces": 2}, bytes=900
    )
    node.log.start_lsn = node.log.end
    node.tick(1, cpu_uj=900, busy_ns=S, total_ns=S)
    node.feed()
    (gap,) = [line for line in node.lines if line["kind"] == "gap"]
    validate("ledger-line-v1", {**gap, "seq": 1, "prev_hash": "sha256:" + "0" * 64})
    assert (gap["records"], gap["unread"], gap["bytes"], gap["first_lsn"]) == (lost, {"traces": 2}, 900, 0)
    assert [line["kind"] for line in node.lines] == ["gap", "span"]
    assert node.sent == []


def test_a_request_that_is_damaged_while_it_waits_stops_nobody() -> None:
    """Its spans are in the ledger, what is behind it leaves, and a start from the snapshot goes on without it."""
    node = Node()
    lost = node.log.traces(span(1, T0, T0 + S, trace=trace_id(1)), resource={"kfm.run_id": RUN})
    node.log.traces(span(2, T0, T0 + S, trace=trace_id(2)), resource={"kfm.run_id": RUN})
    node.feed()
    state = json.loads(json.dumps(node.machine.dump()))
    node.log._at[lost.lsn] = None
    node.tick(1, cpu_uj=900, busy_ns=S, total_ns=S)
    assert [line["span_id"] for line in node.lines] == [f"{1:016x}", f"{2:016x}"]
    assert len(node.sent) == 1
    again = Node()
    again.machine._log = node.log
    again.machine.load_scopes(state)
    again.machine.load(state)
    assert again.machine.holds()["spans"] == 1


def test_children_of_an_unselected_span_belong_to_the_selected_one_above_it() -> None:
    """What lies between is not joined, but the tree holds over it."""
    node = Node()
    node.log.traces(
        span(1, T0, T0 + 2 * S, name="etl.job"),
        span(2, T0, T0 + 2 * S, name="http.get", parent=1),
        span(3, T0, T0 + S, name="etl.step", parent=2),
    )
    node.tick(1).tick(2)
    job, step = node.lines
    assert (job["energy"]["total_uj"], job["energy"]["exclusive_uj"]) == (2_000_000, 1_000_000)
    assert step["energy"]["total_uj"] == 1_000_000


def test_without_an_upstream_nothing_is_made_for_it() -> None:
    """`forwarding` off: lines and runs are the same, no request leaves."""
    node = Node(forwarding=False)
    node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    node.log.append(RecordKind.LOGS, b"any")
    node.tick(1)
    assert (len(node.lines), len(node.runs), node.sent) == (1, 1, [])


def test_what_is_sent_differs_by_appended_attributes_only() -> None:
    """A8: unknown fields, field 1000, high flag bits and the order of everything stay."""
    one = span(1, T0, T0 + S, name="etl.job", attributes={"a": 1})
    one.flags = 0xFFFF_FF01
    one.MergeFromString(b"\xc2\x3e\x01x")  # field 1000
    node = Node()
    record = node.log.traces(one, span(2, T0, T0 + S, parent=1))
    node.tick(1)
    before, after = (ExportTraceServiceRequest.FromString(data) for data in (record.payload, node.sent[0]))
    for then, now in zip(spans_of(record.payload), spans_of(node.sent[0]), strict=True):
        assert now.SerializeToString(deterministic=True) != then.SerializeToString(deterministic=True)
    for message in (after.resource_spans[0].scope_spans[0].spans[:], before.resource_spans[0].scope_spans[0].spans[:]):
        for item in message:
            del item.attributes[1 if item.span_id == span_id(1) else 0 :]
    assert before.SerializeToString() == after.SerializeToString()
    assert b"\xc2\x3e\x01x" in node.sent[0]


def test_a_snapshot_of_another_version_is_refused() -> None:
    """What cannot be read is said, with what was expected."""
    node = Node()
    with pytest.raises(DocumentError, match="got machine state version 99, expected 2"):
        node.machine.load_scopes(node.machine.dump() | {"version": 99})
