"""CPU time of spans nobody joins: to the nearest span above that is joined, whichever comes first."""

from __future__ import annotations

import json

import pytest

from joulegram_processor import inner_spans
from joulegram_processor.inner_spans import InnerSpans
from simulators.machine_node import OF_RUN, Node
from simulators.traces import T0, Log, S, span, span_id, trace_id

TRACE = trace_id(1)


def key(number: int) -> bytes:
    return TRACE + span_id(number)


def test_a_tree_in_one_request_goes_to_who_is_above_it() -> None:
    """Children of children, in any order, to the one parent that is not among them."""
    inner = InnerSpans()
    inner.add({key(3): (key(2), 5), key(2): (key(1), 0), key(4): (key(2), 7)})
    assert [inner.take(key(at)) for at in (1, 1, 2, 3)] == [12, 0, 0, 0]


def test_children_that_came_before_climb_on() -> None:
    """A request later the parent comes, which is not joined either."""
    inner = InnerSpans()
    inner.add({key(3): (key(2), 5)})
    inner.add({key(2): (key(1), 1)})
    again = InnerSpans()
    again.load(json.loads(json.dumps(inner.dump())))
    assert again.take(key(1)) == inner.take(key(1)) == 6


@pytest.mark.parametrize("parents", [{3: 3}, {3: 2, 2: 3}, {3: None}], ids=["its own parent", "a circle", "a root"])
def test_what_has_no_span_above_is_nobodys(parents: dict[int, int | None]) -> None:
    """Dropped, not kept for ever."""
    inner = InnerSpans()
    inner.add({key(at): (b"" if parent is None else key(parent), 5) for at, parent in parents.items()})
    assert inner.dump() == {}


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents that never come do not fill the memory."""
    monkeypatch.setattr(inner_spans, "MAX_KEPT", 2)
    inner = InnerSpans()
    for at in range(4):
        inner.add({key(10 + at): (key(at + 1), 1)})
    assert [inner.take(key(at + 1)) for at in range(4)] == [0, 0, 1, 1]


def sent(log: Log, requests: str) -> None:
    """A node of 10 ms CPU time with a request inside of 20 ms and a query inside that of 30 ms."""
    spans = {
        "n": span(1, T0, T0 + S, name="etl.job", attributes={"joulegram.cpu_ns": S // 100}),
        "r": span(2, T0, T0 + S, name="GET", parent=1, attributes={"joulegram.cpu_ns": S // 50}),
        "q": span(3, T0, T0 + S, name="query", parent=2, attributes={"joulegram.cpu_ns": 3 * S // 100}),
        "-": span(2, T0, T0 + S, name="GET", parent=1),
    }
    for letters in requests.split():
        log.traces(*(spans[letter] for letter in letters), resource=OF_RUN | {"process.pid": 11})


@pytest.mark.parametrize(
    ("requests", "uj"),
    [
        ("nrq", 60),
        ("qrn", 60),
        ("q r n", 60),
        ("qr n", 60),
        ("n rq", 60),
        ("n", 10),
        ("nr", 30),
        ("nq-", 40),
        ("q - n", 10),
    ],
)
def test_a_node_has_what_was_spent_inside_it(requests: str, uj: int) -> None:
    """100 uJ were 100 ms of CPU time; a span that says nothing is a way up in its own request only."""
    node = Node()
    sent(node.log, requests)
    node.tick(1, cpu_uj=100, static_uj=0, busy_ns=S // 10, total_ns=2 * S, processes={11: S // 10})
    (line,) = node.lines
    assert (line["energy"]["scope"], line["energy"]["cpu_uj"]) == ("span", uj)


def test_what_comes_too_late_is_left() -> None:
    """The node is settled: its child's part stays in the process's pot."""
    node = Node()
    sent(node.log, "n")
    node.tick(1, cpu_uj=100, static_uj=0, busy_ns=S // 10, total_ns=2 * S, processes={11: S // 10})
    sent(node.log, "rq")
    node.feed()
    assert [line["energy"]["cpu_uj"] for line in node.lines] == [10]
    assert node.machine.claimed[11].leftovers[0][2] == (90, 0, 0)
