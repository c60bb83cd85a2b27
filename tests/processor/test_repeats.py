"""The window in which a client's retry is recognised: where it ends, and that it outlives a snapshot."""

from __future__ import annotations

import pytest

from joulegram_processor.repeats import Repeats
from joulegram_processor.spans import Batch
from simulators.machine_node import Node
from simulators.traces import T0, S, span

WINDOW = 8


def mark(repeats: Repeats, *numbers: int) -> int:
    """A request of these spans; how many of them came before."""
    batch = Batch(0, 0)
    batch.keys = [number.to_bytes(24, "big") for number in numbers]
    batch.waiting = len(numbers)
    assert repeats.mark(batch) == len(batch.repeated)
    assert batch.waiting == len(numbers) - len(batch.repeated)
    return len(batch.repeated)


def known_behind(others: int, *, restarted: bool = False) -> list[bool]:
    """Whether a span is known when `others` have followed it, wherever it stands in the window."""
    found = []
    for before in range(WINDOW):
        repeats = Repeats(WINDOW)
        for number in range(1, before + 1):
            mark(repeats, number)
        mark(repeats, 0)
        for number in range(100, 100 + others):
            mark(repeats, number)
        if restarted:
            state, repeats = repeats.dump(), Repeats(WINDOW)
            repeats.load(state)
        found.append(bool(mark(repeats, 0)))
    return found


@pytest.mark.parametrize("restarted", [False, True])
def test_a_span_is_known_within_the_window_and_forgotten_behind_twice_of_it(restarted: bool) -> None:
    """At least the last `window` spans are known, up to twice as many, and none beyond: memory is bounded (issue 4)."""
    assert all(known_behind(0, restarted=restarted))
    assert all(known_behind(WINDOW - 1, restarted=restarted))
    assert known_behind(2 * WINDOW - 2, restarted=restarted) == [True] + [False] * (WINDOW - 1)
    assert not any(known_behind(2 * WINDOW - 1, restarted=restarted))
    assert not any(known_behind(3 * WINDOW, restarted=restarted))


def test_what_is_kept_is_bounded() -> None:
    """However many spans come, one by one or in requests larger than the window."""
    repeats = Repeats(WINDOW)
    for number in range(0, 1000, 5):
        assert mark(repeats, *range(number, number + 5)) == 0
        assert len(repeats._seen) + len(repeats._seen_before) < 2 * WINDOW + 5
    assert mark(repeats, *range(5000, 5000 + 3 * WINDOW), 5000) == 1
    assert mark(repeats, 5000) == 1


def test_the_window_is_the_one_the_documents_state() -> None:
    """The default of docs/configuration.md: known behind 65 535 others, joined anew behind twice as many and one."""
    node = Node()
    one = span(1, T0, T0 + S, name="etl.job")
    node.log.traces(one)
    node.feed()
    mark(node.machine._repeats, *range(1, 65_536))
    node.log.traces(one)
    assert node.feed().count("processor_duplicate_spans_total") == 1
    for first in (65_536, 131_072):
        mark(node.machine._repeats, *range(first, first + 65_536))
    node.log.traces(one)
    assert node.feed().count("processor_duplicate_spans_total") == 1
