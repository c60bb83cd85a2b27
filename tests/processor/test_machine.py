from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.errors import DocumentError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind, RunRecord
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.join import CarbonModel
from joulegram_processor.machine import Machine
from joulegram_processor.machine_types import Settings
from joulegram_processor.runs import Identity
from joulegram_schemas import validate
from simulators.decoded import attributes
from simulators.traces import T0, TRACE, Log, S, host_energy, request, span, span_id, spans_of, tick, trace_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_processor.machine_types import Outputs

RUN = "run-one-0001"
OF_RUN = {"kfm.run_id": RUN}
FACTOR = StaticFactor("0.36", "utility bill 2025")  # 1 J is 100 ug


class Node:
    """A machine at the end of a log, and all that came out of it."""

    def __init__(self, carbon: CarbonModel | None = None, **settings: Any) -> None:
        self.log = Log()
        self.metrics = Metrics()
        identity = Identity("node-7f3a", "kfm-node", "co2e", None, FACTOR.source, (FACTOR.ref,))
        self.machine = Machine(Settings(**settings), carbon or CarbonModel(FACTOR), identity, self.log, self.metrics)
        self.lines: list[dict[str, Any]] = []
        self.sent: list[bytes] = []
        self.runs: list[RunRecord] = []
        self.archived: list[int] = []
        self.pids: set[int] = set()
        self._fed = self._seq = 0

    def feed(self) -> Node:
        """Feed what was appended to the log since the last call."""
        for record in self.log.records[self._fed :]:
            for out in self.machine.feed(record):
                self._take(out)
        self._fed = len(self.log.records)
        return self

    def tick(self, until_s: float, *, at_s: float | None = None, **made: Any) -> Node:
        """One tick from the last one's end; 1 J of CPU unless said otherwise."""
        self._seq += 1
        start = max(self.machine.store.watermark_ns, T0)
        domains = {"domains": made.pop("domains"), "reason": "no_source"} if "domains" in made else {"domains": None}
        energy = made or {"cpu_uj": 1_000_000}
        one = tick(self._seq, start, T0 + round(until_s * S), **energy)
        at = None if at_s is None else T0 + round(at_s * S)
        self.log.ticks(one, at=at, **{key: value for key, value in domains.items() if value is not None})
        return self.feed()

    def count(self, name: str, **labels: str) -> float:
        """The value of a counter."""
        return self.metrics.registry.get_sample_value(f"joulegram_{name}", labels) or 0.0

    def _take(self, out: Outputs) -> None:
        self.lines += [json.loads(f"{before}{between}{after}") for _, _, before, between, after in out.lines]
        self.lines += [dict(record) for record in out.records]
        self.sent += [item.body for item in out.forward]
        self.runs += out.runs
        self.archived += [lsn for lsn, _ in out.ticks]
        self.pids |= out.pids

    def gained(self) -> Iterator[dict[str, Any]]:
        """The attributes of every span sent on."""
        return (attributes(one) for payload in self.sent for one in spans_of(payload))


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


def test_a_trace_without_its_root_waits_no_longer_than_told() -> None:
    """Bounded waiting: children wait for the root, at most `max_wait` of log time; energy alone does not free them."""
    node = Node(max_wait_ns=5 * S)
    node.log.traces(span(2, T0, T0 + S, parent=1))
    node.tick(1).tick(4)
    assert node.lines == []
    assert node.count("processor_pending_spans") == 1
    node.tick(5)
    assert [line["span_id"] for line in node.lines] == [span_id(2).hex()]
    assert node.count("processor_pending_spans") == 0
    node.log.traces(span(1, T0, T0 + 5 * S, name="etl.job"))
    node.tick(6)
    assert node.lines[1]["energy"]["total_uj"] == 3_000_000  # 3 J in 5 s: two of its own, one of the child before it
    assert node.lines[1]["energy"]["exclusive_uj"] == 2_000_000


@pytest.mark.parametrize("together", [True, False], ids=["in its request", "in a later one"])
def test_a_root_that_is_not_joined_ends_the_wait_too(together: bool) -> None:
    """A job under a server's span is not held for the time of a trace that never ends."""
    node = Node(max_wait_ns=600 * S)
    root = span(9, T0, T0 + S, name="POST /jobs")
    step = span(1, T0, T0 + S, name="etl.step", parent=9)
    node.log.traces(*([step, root] if together else [step]))
    if not together:
        node.tick(1, cpu_uj=900)
        assert node.lines == []
        node.log.traces(root)
    node.tick(2, cpu_uj=900)
    assert [line["name"] for line in node.lines] == ["etl.step"]


def test_a_span_waits_for_its_energy() -> None:
    """A root is settled when the watermark passes its end, not before; a heartbeat without energy passes it too."""
    node = Node()
    node.log.traces(span(1, T0, T0 + 2 * S, name="etl.job"))
    node.tick(1)
    assert node.lines == []
    node.tick(2, domains=())
    (line,) = node.lines
    assert line["energy"]["reason"] == "no_source"
    assert line["energy"]["covered_ns"] == str(S)
    (gained,) = node.gained()
    assert (gained["energy.state"], gained["energy.method"], gained["energy.total_j"]) == ("partial", "measured", 1.0)


def test_without_energy_it_is_missing_and_never_nothing() -> None:
    """D-10, D-22, S0-67, C-09: no key of a number, but a reason; the run has no carbon, and still a factor (D-17)."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job", attributes=OF_RUN))
    node.tick(1, domains=())
    (gained,) = node.gained()
    validate("otel-energy-span-v1", gained)
    assert gained["energy.method"] == "unavailable"
    assert gained["energy.reason"] == "no_source"
    assert gained["carbon.reason"] == "energy_unavailable"
    assert not {key for key in gained if key.endswith("_j") or key.startswith("carbon.gco2e")}
    (run,) = node.runs
    assert (run.energy_uj, run.carbon_ug, run.account) == (None, None, None)
    assert (run.factor_kg_per_kwh, run.energy_reason, run.carbon_reason) == (0.36, "no_source", "energy_unavailable")


def test_without_region_or_factor_there_is_energy_and_no_carbon() -> None:
    """S0-67: carbon only where a factor is declared; the reason is said."""
    node = Node(CarbonModel(None, "region_not_configured"))
    node.log.traces(span(1, T0, T0 + S, name="etl.job", attributes=OF_RUN))
    node.tick(1)
    (gained,) = node.gained()
    assert (gained["energy.total_j"], gained["carbon.reason"]) == (1.0, "region_not_configured")
    assert node.runs[0].carbon_ug is None


def test_a_run_is_ended_by_the_command_that_was_run() -> None:
    """A control record settles what waits of the run and ends it with the command's status."""
    node = Node()
    node.log.control("run.start", RUN, pid=11)
    node.log.traces(span(2, T0, T0 + S, parent=1), resource=OF_RUN | {"process.pid": 12})
    node.tick(1, cpu_uj=900, busy_ns=S, total_ns=S, processes={11: S // 3})
    assert node.pids == {11}  # the run's process speaks for its spans
    node.log.control("run.end", RUN, status="error", ended_by="command_exit")
    node.feed()
    (run,) = node.runs
    assert (run.ended_by, run.status, run.energy_uj, run.energy_scope) == ("command_exit", "error", 300, "process")
    node.log.control("run.end", "run-unheard-of", status="ok")
    assert len(node.feed().runs) == 1


def test_a_process_that_is_forgotten_speaks_for_nobody() -> None:
    """After a `joulegram run` that was killed, later spans get the host's energy, not a dead process's nothing."""
    node = Node()
    node.log.control("run.start", RUN, pid=11, alone=True)
    node.tick(1, cpu_uj=900, busy_ns=S, total_ns=S, processes={11: S // 3})
    node.feed()
    assert node.machine.names_processes
    node.log.control("run.forget", RUN)
    node.log.traces(span(2, T0 + S, T0 + 2 * S), resource={"kfm.run_id": "run-next-0001"})
    node.tick(2, cpu_uj=900, busy_ns=S, total_ns=S)
    node.feed()
    assert not node.machine.names_processes
    assert node.lines[-1]["energy"]["scope"] == "host"
    assert node.lines[-1]["energy"]["total_uj"] == 900


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
    again.machine.load(state)
    assert again.machine.holds()["spans"] == 1


def test_a_run_ends_when_nothing_comes_of_it_any_more() -> None:
    """Idle timeout in log time, which ticks alone drive on."""
    node = Node(max_wait_ns=S, run_idle_ns=10 * S)
    node.log.traces(span(2, T0, T0 + S, parent=1), resource=OF_RUN)
    node.tick(1).tick(10)
    assert node.runs == []
    node.tick(11)
    assert [(run.ended_by, run.status, run.revision) for run in node.runs] == [("idle_timeout", "unset", 1)]


def test_late_spans_make_a_revision() -> None:
    """Never a silent rewrite: after a quiet while a second revision has what came late, ended as the first was."""
    node = Node(run_quiet_ns=3 * S)
    node.log.traces(span(1, T0, T0 + S, name="etl.job", status=1), resource=OF_RUN)
    node.tick(1)
    node.log.traces(span(2, T0 + S, T0 + 2 * S, trace=trace_id(1)), resource=OF_RUN)
    node.tick(2).tick(4)
    assert [run.revision for run in node.runs] == [1]
    node.tick(5)
    first, second = node.runs
    assert (second.revision, second.ended_by, second.spans) == (2, first.ended_by, 2)
    assert (first.energy_uj, second.energy_uj) == (1_000_000, 2_000_000)
    assert second.recorded_ns > first.recorded_ns
    assert len(node.tick(20).runs) == 2


def test_spans_that_name_no_run_are_of_the_default_run() -> None:
    """`default_run`: unless span or resource names one."""
    node = Node(default_run="run-default-1")
    node.log.traces(span(1, T0, T0 + S), span(2, T0, T0 + S, attributes={"job.id": RUN}))
    node.log.traces(span(3, T0, T0 + S), resource={"kfm.run_id": "../etc/passwd"})
    node.tick(1)
    assert [line["run_id"] for line in node.lines] == ["run-default-1", RUN, "run-default-1"]


def test_a_trace_is_a_run_only_with_its_root() -> None:
    """Neither id nor `etl.job`: spans are joined, their run is the trace, and nothing is published of it."""
    node = Node(max_wait_ns=S, run_idle_ns=5 * S)
    node.log.traces(span(1, T0, T0 + S))
    node.log.traces(span(2, T0, T0 + S, name="etl.job", trace=trace_id(1)))
    node.tick(1).tick(50)
    assert [line["run_id"] for line in node.lines] == [TRACE.hex(), trace_id(1).hex()]
    assert [run.run_id for run in node.runs] == [trace_id(1).hex()]


def test_too_many_waiting_spans_are_settled_early() -> None:
    """`max_pending`: the oldest traces go first, until a quarter of the room is free again."""
    node = Node(max_pending=4)
    for number in range(5):
        node.log.traces(span(number + 1, T0, T0 + S, trace=trace_id(number)))
    node.feed()
    assert [line["trace_id"] for line in node.lines] == [trace_id(0).hex(), trace_id(1).hex()]
    assert node.count("processor_pending_spans") == 3


def test_an_unreadable_tick_record_is_counted_and_skipped() -> None:
    """It is no energy and no reason to stop; what follows is read."""
    node = Node()
    for payload in (b"", b"{", b'{"epoch":1}', b"\xff\xfe", b"[" * 100_000):
        node.log.append(RecordKind.TICKS, payload)
    node.feed()
    assert node.count("processor_energy_gaps_total", reason="unreadable_batch") == 5
    assert node.archived == []
    node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    assert node.tick(1).lines[0]["energy"]["total_uj"] == 1_000_000


def test_gaps_are_counted_by_reason() -> None:
    """What was not read is missing, named on the span, and counted."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    node.tick(1, cpu_uj=5, gaps=[("package-1", "counter_reset: 5 after 9")])
    assert node.count("processor_energy_gaps_total", reason="counter_reset") == 1
    assert node.lines[0]["energy"]["reason"] == "package-1: counter_reset: 5 after 9"
    assert node.lines[0]["energy"]["method"] == "measured"


def test_foreign_energy_is_joined_where_there_is_none_of_our_own() -> None:
    """`hw.host.energy` from outside: reported, CPU, archived like any tick, and passed on as it came."""
    node = Node(local_energy=False)
    node.log.traces(span(1, T0, T0 + 2 * S, name="etl.job"))
    payload = host_energy((T0, T0 + S, 1.0), (T0, T0 + 2 * S, 3.0))
    record = node.log.append(RecordKind.METRICS, payload)
    node.feed()
    assert node.archived == [record.lsn]
    (line,) = node.lines
    assert (line["energy"]["method"], line["energy"]["cpu_uj"]) == ("reported", 3_000_000)
    assert node.sent[0] == payload


def test_foreign_energy_is_ignored_where_there_is_our_own() -> None:
    """One node, one measure: the same joules are not counted twice (C-49); the metrics go on as they came."""
    node = Node()
    node.tick(1)
    node.log.traces(span(1, T0, T0 + 2 * S, name="etl.job"))
    payload = host_energy((T0, T0 + 2 * S, 500.0))
    node.log.append(RecordKind.METRICS, payload)
    node.feed()
    assert node.lines == []
    node.tick(2)
    assert node.lines[0]["energy"]["total_uj"] == 2_000_000
    assert node.sent[0] == payload


def test_the_agent_s_empty_heartbeats_make_way_for_foreign_energy() -> None:
    """An agent without a source drives the clock until somebody else has energy, and no longer (S0-66)."""
    node = Node()
    node.tick(1, domains=())
    node.log.append(RecordKind.METRICS, host_energy((T0 + S, T0 + 2 * S, 4.0), delta=True), T0 + 2 * S)
    node.log.traces(span(1, T0 + S, T0 + 3 * S, name="etl.job"))
    node.tick(3, domains=())
    assert node.lines == []
    node.log.append(RecordKind.METRICS, host_energy((T0 + 2 * S, T0 + 3 * S, 5.0), delta=True), T0 + 3 * S)
    assert node.feed().lines[0]["energy"]["total_uj"] == 9_000_000


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


def test_a_point_at_the_very_end_of_the_energy_is_joined() -> None:
    """A span without length where the last tick ends: nothing of energy, and no reason to stop."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job"), span(2, T0 + S, T0 + S, parent=1))
    node.tick(1)
    assert {line["span_id"]: line["energy"]["total_uj"] for line in node.lines} == {
        span_id(1).hex(): 1_000_000,
        span_id(2).hex(): 0,
    }


def test_a_node_of_a_run_has_no_gpu_energy_where_none_was_read() -> None:
    """D-10: a run that had GPU energy once does not make a later node's missing one into nothing."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.node.a"), resource=OF_RUN)
    node.tick(1, cpu_uj=5, gpu_uj=7)
    node.log.traces(span(2, T0 + S, T0 + 2 * S, name="etl.node.b"), resource=OF_RUN)
    node.tick(2)
    node.log.control("run.end", RUN)
    first, second = node.feed().runs[0].nodes
    assert (first.gpu_uj, second.gpu_uj) == (7, None)


def test_a_snapshot_of_another_version_is_refused() -> None:
    """What cannot be read is said, with what was expected."""
    node = Node()
    with pytest.raises(DocumentError, match="got machine state version 99, expected 1"):
        node.machine.load(node.machine.dump() | {"version": 99})
