"""Spans of several traces in one scope: what each gets by what is known, and what is said of one that is too late."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_schemas import validate
from joulegram_sink.ledger_format import ZERO_HASH
from simulators.machine_node import Node
from simulators.traces import T0, S, span, span_id, trace_id

LAST = 6
"""Seconds of ticks."""


def exclusive(node: Node) -> dict[str, int]:
    return {line["span_id"]: line["energy"]["exclusive_uj"] for line in node.lines}


@st.composite
def traces(draw: st.DrawFn) -> list[Any]:
    """Roots and their children, of processes that the ticks name or of none, some with CPU time of their own."""
    made: list[Any] = []
    for number in range(draw(st.integers(1, 5))):
        start = T0 + draw(st.integers(0, 8)) * (S // 2)
        end = start + draw(st.integers(1, 4)) * (S // 2)
        attributes = draw(st.sampled_from([{}, {}, {"joulegram.cpu_ns": S // 4}]))
        identity: dict[str, Any] = {"trace": trace_id(number), "attributes": attributes}
        made.append(span(10 * number + 1, start, end, name="etl.job", **identity))
        for child in range(draw(st.integers(0, 2))):
            at = start + (end - start) * child // 3
            made.append(span(10 * number + 2 + child, at, end, name="etl.step", parent=10 * number + 1, **identity))
    return made


@given(traces(), st.data())
@settings(max_examples=150, deadline=None)
def test_the_order_in_which_spans_come_is_nothing(made: list[Any], data: st.DataObject) -> None:
    """Issue 5: whatever request each comes in and in what order, if it is here before its energy is."""
    order = data.draw(st.permutations(made))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(made)), max_size=3)) | {len(made)})
    found = []
    for requests in ([made], [order[low:high] for low, high in zip([0, *cuts], cuts, strict=False)]):
        node = Node()
        for some in requests:
            node.log.traces(*some)
        for second in range(1, LAST + 1):
            node.tick(second, cpu_uj=3_000_001, busy_ns=S, total_ns=2 * S)
        found.append(exclusive(node))
    assert found[0].keys() == found[1].keys()
    assert sum(found[0].values()) == sum(found[1].values())
    assert all(abs(uj - found[1][key]) <= 1 for key, uj in found[0].items())


@given(traces(), st.data())
@settings(max_examples=80, deadline=None)
def test_when_each_comes_is_nothing_while_others_wait_for_it(made: list[Any], data: st.DataObject) -> None:
    """`settle_after`: exporters send in batches, each when it will; all are here before the first is settled."""
    found = []
    for delays in ([0] * len(made), [data.draw(st.integers(0, LAST)) for _ in made]):
        node = Node(settle_after_ns=LAST * S)
        for second in range(1, 2 * LAST + 1):
            for one, delay in zip(made, delays, strict=True):
                if delay == second - 1:
                    node.log.traces(one)
            node.tick(second, cpu_uj=3_000_001, busy_ns=S, total_ns=2 * S)
        found.append(exclusive(node))
    assert len(found[0]) == len(made)
    assert found[0].keys() == found[1].keys()
    assert all(abs(uj - found[1][key]) <= 1 for key, uj in found[0].items())


def test_a_whole_trace_waits_no_longer_than_told() -> None:
    """It is settled when the ticks are so far past its end, and never later than `max_wait` says."""
    node = Node(settle_after_ns=2 * S, max_wait_ns=30 * S)
    node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    node.tick(1).tick(2)
    assert node.lines == []
    node.tick(3)
    assert [line["energy"]["exclusive_uj"] for line in node.lines] == [1_000_000]
    node = Node(settle_after_ns=600 * S, max_wait_ns=2 * S)
    node.log.traces(span(1, T0, T0 + S, name="etl.job"))
    for second in range(1, 5):
        node.tick(second)
    assert [line["energy"]["exclusive_uj"] for line in node.lines] == [1_000_000]


def test_when_the_receiver_is_closed_nobody_waits_for_others() -> None:
    """What is whole is settled with the ticks that are here; what has no tick yet, or no root, goes on waiting."""
    node = Node(settle_after_ns=600 * S, max_wait_ns=900 * S)
    node.log.traces(span(1, T0, T0 + S, name="etl.job", trace=trace_id(1)))
    node.log.traces(span(2, T0, T0 + 2 * S, name="etl.job", trace=trace_id(2)))
    node.log.traces(span(3, T0, T0 + S, name="etl.step", parent=9, trace=trace_id(3)))
    node.tick(1)
    assert node.lines == []
    node.log.control("intake.closed", "")
    node.feed()
    assert exclusive(node) == {span_id(1).hex(): 333_333}
    node.tick(2)
    assert len(node.lines) == 1, "a sidecar that starts anew has others to wait for"


def test_a_trace_leaves_a_longer_one_its_share() -> None:
    """C-49: two jobs of nobody's process share the second in which both run, though one is settled a tick earlier."""
    node = Node()
    short, long = (span(at, T0, T0 + at * S, name="etl.job", trace=trace_id(at)) for at in (1, 2))
    node.log.traces(short, long)
    node.tick(1)
    assert [line["energy"]["exclusive_uj"] for line in node.lines] == [500_000]
    node.tick(2)
    assert [line["energy"]["exclusive_uj"] for line in node.lines] == [500_000, 1_500_000]


def test_a_trace_that_waits_for_its_root_does_not_lose_its_share() -> None:
    """A step of a long job is here; a short job beside it is settled first and leaves the step what is its own."""
    node = Node()
    node.log.traces(span(2, T0, T0 + S, name="etl.step", parent=1, trace=trace_id(1)))
    node.log.traces(span(3, T0, T0 + S, name="etl.job", trace=trace_id(2)))
    node.tick(1)
    assert [line["energy"]["exclusive_uj"] for line in node.lines] == [500_000]
    node.log.traces(span(1, T0, T0 + 2 * S, name="etl.job", trace=trace_id(1)))
    node.tick(2)
    assert {line["name"]: line["energy"]["exclusive_uj"] for line in node.lines[1:]} == {
        "etl.step": 500_000,
        "etl.job": 1_000_000,
    }


def test_what_comes_when_its_energy_is_given_says_so() -> None:
    """Issue 5: marked and not guessed; what was given stays, and of its own time nothing is covered (C-49)."""
    node = Node()
    node.log.traces(span(1, T0, T0 + 2 * S, name="etl.job", trace=trace_id(1)))
    node.tick(1).tick(2)
    node.log.traces(span(2, T0, T0 + S, name="etl.job", trace=trace_id(2)))
    node.tick(3)
    first, late = (line["energy"] for line in node.lines)
    assert (first["exclusive_uj"], "reason" in first) == (2_000_000, False)
    assert late == {"method": "unavailable", "reason": "late", "covered_ns": "0"}, "what it spent is not known: never 0"
    assert node.lines[1]["carbon"] == {"reason": "energy_unavailable"}
    validate("ledger-line-v1", {**node.lines[1], "seq": 1, "prev_hash": ZERO_HASH})
    gained = list(node.gained())[1]
    validate("otel-energy-span-v1", gained)
    assert (gained["energy.method"], gained["energy.reason"]) == ("unavailable", "late")
    assert not {"energy.total_j", "energy.cpu_j", "energy.state", "carbon.gco2e"} & set(gained)


def test_a_late_span_has_what_those_below_it_have() -> None:
    """A root that comes when all is given: its inclusive energy is that of its children, and partial."""
    node = Node(max_wait_ns=S)
    node.log.traces(span(2, T0, T0 + S, name="etl.step", parent=1, trace=trace_id(1)))
    node.tick(1)
    node.log.traces(span(3, T0 + S, T0 + 2 * S, name="etl.job", trace=trace_id(2)))
    node.tick(2)
    node.log.traces(span(1, T0, T0 + 2 * S, name="etl.job", trace=trace_id(1)))
    node.tick(3)
    assert [line["energy"].get("exclusive_uj") for line in node.lines] == [1_000_000, 1_000_000, None]
    root = node.lines[-1]["energy"]
    assert (root["method"], root["total_uj"], root["reason"]) == ("measured", 1_000_000, "late")
    assert node.lines[-1]["carbon"]["ug"] == node.lines[0]["carbon"]["ug"]
    assert "exclusive_ug" not in node.lines[-1]["carbon"]
    validate("ledger-line-v1", {**node.lines[-1], "seq": 2, "prev_hash": ZERO_HASH})
    gained = list(node.gained())[-1]
    assert (gained["energy.total_j"], gained["energy.state"], gained["energy.reason"]) == (1.0, "partial", "late")


def test_a_late_span_that_finds_something_left_is_not_marked() -> None:
    """With CPU time of its own it has its part whenever it comes."""
    node = Node()
    half = {"joulegram.cpu_ns": S // 2}
    node.log.traces(span(1, T0, T0 + S, name="etl.job", trace=trace_id(1), attributes=half))
    node.tick(1, cpu_uj=1_000_000, busy_ns=S, total_ns=S)
    node.log.traces(span(2, T0, T0 + S, name="etl.job", trace=trace_id(2), attributes=half))
    node.tick(2)
    assert [line["energy"]["exclusive_uj"] for line in node.lines] == [500_000, 500_000]
    assert "reason" not in node.lines[1]["energy"]
