"""Spans and the energy that the machine joins them with: how long they wait, and for whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.records import RecordKind
from joulegram_processor.machine import Machine
from joulegram_schemas import validate
from simulators.machine_node import OF_RUN, Node
from simulators.traces import T0, S, host_energy, span, span_id, trace_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_processor.machine_types import Outputs


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


def test_too_many_waiting_spans_are_settled_early() -> None:
    """`max_pending`: the oldest traces go first, until a quarter of the room is free again."""
    node = Node(max_pending=4)
    for number in range(5):
        node.log.traces(span(number + 1, T0, T0 + S, trace=trace_id(number)))
    node.feed()
    assert [line["trace_id"] for line in node.lines] == [trace_id(0).hex(), trace_id(1).hex()]
    assert node.count("processor_pending_spans") == 3


def _in_a_second(node: Node, traces: range) -> Node:
    """One span a trace, one behind the other, all over before the first of them came."""
    for number in traces:
        start_ns = T0 + number * S // 20
        node.log.traces(span(number + 1, start_ns, start_ns + S // 20, trace=trace_id(number)), at=T0 + S)
    return node.feed()


def test_too_many_spans_for_one_tick_all_get_its_energy() -> None:
    """`max_pending`, reached before the tick of their time: what comes behind is put off, and nobody goes without."""
    node = _in_a_second(Node(max_pending=4), range(12))
    assert (node.lines, node.sent) == ([], [])
    assert node.count("processor_pending_spans") == 5
    node.log.traces(span(99, T0, T0 + S, name="GET /", trace=trace_id(99)))
    assert len(node.feed().sent) == 1  # who needs no energy does not wait for it
    node.tick(1)
    node.tick(2)
    assert [line["trace_id"] for line in node.lines] == [trace_id(number).hex() for number in range(12)]
    assert {line["energy"]["method"] for line in node.lines} == {"measured"}
    assert sum("carbon.gco2e" in gained for gained in node.gained()) == 12


def test_a_tick_that_does_not_come_is_waited_for_so_long() -> None:
    """`tick_due_ns`: then the oldest are settled without, as too many waiting ones are."""
    node = _in_a_second(Node(max_pending=4, tick_due_ns=3 * S), range(6))
    node.log.traces(span(9, T0, T0 + S, trace=trace_id(9)), at=T0 + 4 * S)
    node.feed()
    assert [line["energy"]["reason"] for line in node.lines] == ["before_first_tick"] * 4
    assert node.count("processor_pending_spans") == 3


def test_the_end_of_a_run_takes_in_what_was_put_off() -> None:
    """All of a run's spans are settled before it is published, there being room or not."""
    node = Node(max_pending=4)
    for number in range(12):
        node.log.traces(span(number + 1, T0, T0 + S, parent=1 if number else None, attributes=OF_RUN), at=T0 + S)
    node.log.control("run.start", OF_RUN["kfm.run_id"], pid=11)
    node.log.control("run.end", OF_RUN["kfm.run_id"], status="ok", alone=True)
    node.feed()
    assert (len(node.lines), node.machine.is_waiting) == (12, False)
    assert [run.spans for run in node.runs] == [12]


def test_the_end_of_another_run_takes_nobodys_energy() -> None:
    """Whoever shares the node may end: what is put off still waits for its tick."""
    node = _in_a_second(Node(max_pending=4), range(12))
    node.log.control("run.end", "run-other-0009", status="ok")
    assert node.feed().lines == []
    node.tick(1)
    node.tick(2)
    assert [line["energy"]["method"] for line in node.lines] == ["measured"] * 12


def test_a_root_that_comes_while_its_trace_is_put_off_is_known_of() -> None:
    """In a request that nothing is selected of, which is sent on at once; else its trace would wait for `max_wait`."""
    node = Node(max_pending=4)
    for number in range(8):
        node.log.traces(span(number + 1, T0, T0 + S // 2, parent=99, trace=trace_id(number)), at=T0 + S)
        node.log.traces(span(99, T0, T0 + S // 2, name="GET /", trace=trace_id(number)), at=T0 + S)
    assert len(node.feed().sent) == 8
    node.tick(1)
    assert (len(node.lines), len(node.sent), node.machine.is_waiting) == (8, 16, False)


@pytest.mark.parametrize("looked_first", [False, True])
def test_what_was_put_off_and_dropped_is_told_as_lost(looked_first: bool) -> None:
    """`drop_oldest`: it was read, and nothing made of it, so the gap's line counts it as unread."""
    node = Node(max_pending=4)
    for number in range(8):
        node.log.traces(span(number + 1, T0, T0 + S // 2, trace=trace_id(number)), at=T0 + S)
    node.feed()
    node.log.start_lsn = end = node.log.end
    if looked_first:
        node.tick(1)
    lost = {"traces": 8}
    node.log.control("spool.gap", "run", first_lsn=0, next_lsn=end, records=lost, unread={"logs": 1}, bytes=900)
    node.feed()
    node.tick(2)
    (gap,) = [line for line in node.lines if line["kind"] == "gap"]
    assert gap["unread"] == {"logs": 1, "traces": 3}
    assert len(node.lines) == 1 + 5


def test_what_was_put_off_and_damaged_is_no_gaps_loss() -> None:
    """It is counted where damage is: the line of a part dropped later says what stood there."""
    node = Node(max_pending=4)
    for number in range(8):
        node.log.traces(span(number + 1, T0, T0 + S // 2, trace=trace_id(number)), at=T0 + S)
    node.feed()
    node.log._at[node.log.records[6].lsn] = None
    node.tick(1)
    node.tick(2)
    end = node.log.end
    node.log.control("spool.gap", "run", first_lsn=end, next_lsn=end + 9, records={"logs": 1}, unread={}, bytes=9)
    node.feed()
    (gap,) = [line for line in node.lines if line["kind"] == "gap"]
    assert gap["unread"] == {}
    assert len(node.lines) == 1 + 7


def test_without_any_energy_nothing_is_put_off() -> None:
    """There is no tick to wait for: too many waiting ones are settled early, as ever."""
    node = _in_a_second(Node(max_pending=4, local_energy=False), range(12))
    assert len(node.lines) >= 8
    assert {line["energy"]["reason"] for line in node.lines} == {"before_first_tick"}


def test_room_is_made_a_quarter_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans as long as it takes to fill the room: what each settling goes through is gone through seldom."""
    settled: list[int] = []
    settle = Machine._settle

    def counted(machine: Machine, keys: list[bytes]) -> Iterator[Outputs]:
        if keys:
            settled.append(len(keys))
        return settle(machine, keys)

    monkeypatch.setattr(Machine, "_settle", counted)
    node = Node(max_pending=40)
    for number in range(200):
        start_ns = T0 + number * S // 400
        node.log.traces(span(number + 1, start_ns, start_ns + S // 10, trace=trace_id(number)), at=T0 + S)
    node.feed()
    node.tick(1)
    node.tick(2)
    assert {line["energy"]["method"] for line in node.lines} == {"measured"}
    assert (len(node.lines), sum(settled)) == (200, 200)
    assert len(settled) <= 40, settled


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


def test_a_point_at_the_very_end_of_the_energy_is_joined() -> None:
    """A span without length where the last tick ends: nothing of energy, and no reason to stop."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.job"), span(2, T0 + S, T0 + S, parent=1))
    node.tick(1)
    assert {line["span_id"]: line["energy"]["total_uj"] for line in node.lines} == {
        span_id(1).hex(): 1_000_000,
        span_id(2).hex(): 0,
    }
