from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from joulegram_processor.intervals import Interval, IntervalSet, subtract, union

POINT = st.integers(0, 30)
ANY = st.lists(st.tuples(POINT, POINT), max_size=8)


def instants(intervals: list[Interval]) -> set[int]:
    """The whole nanoseconds of some intervals: a set is its own oracle."""
    return {at for low, high in intervals for at in range(low, high)}


def is_normal(intervals: list[Interval]) -> bool:
    """Sorted, disjoint, not touching, none empty."""
    edges = [edge for interval in intervals for edge in interval]
    return edges == sorted(set(edges))


@given(ANY)
def test_a_union_is_the_same_time(intervals: list[Interval]) -> None:
    """Law: as a set of instants it is what went in, and it is normal."""
    assert instants(union(intervals)) == instants(intervals)
    assert is_normal(union(intervals))


@given(POINT, POINT, ANY)
def test_what_is_left_is_the_difference(start: int, end: int, taken: list[Interval]) -> None:
    """Law: [start, end) without what was taken, normal."""
    left = subtract(start, end, union(taken))
    assert instants(left) == set(range(start, end)) - instants(taken)
    assert is_normal(left)


@given(st.lists(ANY, max_size=5), POINT, POINT, POINT)
def test_a_set_grows_by_what_is_added(added: list[list[Interval]], start: int, end: int, forgotten: int) -> None:
    """Law: however it is added, the set is the union; what is left is outside it; forgetting drops whole pieces."""
    whole = IntervalSet()
    for intervals in added:
        whole.add(union(intervals))
    everything = [interval for intervals in added for interval in intervals]
    assert whole.items == IntervalSet(everything).items == union(everything)
    assert whole.until == max((high for low, high in everything if low < high), default=0)
    assert instants(whole.left(start, end)) == set(range(start, end)) - instants(everything)
    inside = list(whole.within(start, end))
    assert instants(inside) == set(range(start, end)) & instants(everything)
    assert is_normal(inside)
    assert whole.touches(start, end) == bool(inside)
    kept = [interval for interval in whole.items if interval[1] > forgotten]
    whole.forget_before(forgotten)
    assert whole.items == kept
