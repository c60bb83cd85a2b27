"""Time that was given and what is left of it: cut, put back, joined, and never more or less than it was."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from joulegram_processor import claims as claims_module
from joulegram_processor.claims import Claims, Leftover, part_of

if TYPE_CHECKING:
    import pytest

UJ = st.integers(0, 1000)


@st.composite
def leftovers(draw: st.DrawFn) -> list[Leftover]:
    """Sorted and disjoint, some of them touching."""
    out: list[Leftover] = []
    at = 0
    for _ in range(draw(st.integers(0, 8))):
        start = at + draw(st.sampled_from((0, 0, 3)))
        at = start + draw(st.integers(1, 20))
        out.append((start, at, (draw(UJ), draw(UJ), draw(UJ))))
    return out


def held(items: list[Leftover]) -> Claims:
    return Claims([(start, end) for start, end, _ in items], items)


def total(items: list[Leftover]) -> list[int]:
    return [sum(item[2][kind] for item in items) for kind in range(3)]


@given(leftovers(), st.lists(st.integers(0, 200), max_size=6))
def test_windows_that_adjoin_hold_all_that_is_left(items: list[Leftover], edges: list[int]) -> None:
    """Cut anywhere, the parts add up to the whole, and each lies in its window."""
    kept = held(items)
    bounds = [0, *sorted(set(edges) - {0}), 1000]
    parts: list[Leftover] = []
    for low, high in pairwise(bounds):
        found = list(kept.left_within(low, high))
        assert all(low <= start < end <= high for start, end, _ in found)
        parts += found
    assert total(parts) == total(items)
    assert parts == sorted(parts)


@given(leftovers(), st.integers(0, 120), st.integers(1, 60), UJ)
def test_what_is_kept_replaces_what_was_there(items: list[Leftover], start: int, width: int, uj: int) -> None:
    """Outside the window nothing changes; inside there is what was put."""
    kept, end = held(items), start + width
    outside = total([*kept.left_within(0, start), *kept.left_within(end, 1000)])
    kept.keep([(start, end)], [(start, end, (uj, 0, 0))])
    assert list(kept.left_within(start, end)) == [(start, end, (uj, 0, 0))]
    assert total([*kept.left_within(0, start), *kept.left_within(end, 1000)]) == outside
    assert kept.leftovers == sorted(kept.leftovers)
    assert all(low[1] <= high[0] for low, high in pairwise(kept.leftovers))


@given(leftovers())
def test_a_snapshot_gives_them_back(items: list[Leftover]) -> None:
    """Through JSON and back: the same time and the same leftovers."""
    kept = held(items)
    again = Claims.load(json.loads(json.dumps(kept.dump())))
    assert (again.items, again.leftovers) == (kept.items, kept.leftovers)


@given(leftovers(), st.integers(0, 200))
def test_what_is_older_than_anyone_can_ask_for_goes(items: list[Leftover], instant: int) -> None:
    """Leftovers that ended go with the time; those that reach further stay."""
    kept = held(items)
    kept.forget_before(instant)
    assert kept.leftovers == [item for item in items if item[1] > instant]


def test_too_many_are_joined_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older half; nothing of their energy goes, and the time between two counts as given."""
    monkeypatch.setattr(claims_module, "MAX_LEFTOVERS", 8)
    items: list[Leftover] = [(10 * at, 10 * at + 5, (at, 1, 0)) for at in range(8)]
    kept = held(items)
    kept.keep([(100, 105)], [(100, 105, (8, 1, 0))])
    kept.add([(100, 105)])
    assert kept.leftovers[:3] == [(0, 15, (1, 2, 0)), (20, 35, (5, 2, 0)), (40, 45, (4, 1, 0))]
    assert total(kept.leftovers) == [36, 9, 0]
    assert all(kept.left(start, end) == [] for start, end, _ in kept.leftovers)


def test_a_part_is_a_difference_of_floors() -> None:
    """By hand: 10 uJ over 4 ns, its third ns: floor(7.5) - floor(5)."""
    assert part_of((0, 4, (10, 3, 0)), 2, 3) == (2, 3, (2, 1, 0))
