"""Sets of half-open time intervals, as sorted disjoint lists of (start_ns, end_ns)."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Interval = tuple[int, int]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time, sorted, disjoint, joined where pieces touch; empty ones vanish."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if out and start <= out[-1][1]:
            if end > out[-1][1]:
                out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def subtract(start: int, end: int, taken: list[Interval]) -> list[Interval]:
    """What is left of [start, end) outside a sorted disjoint list."""
    if end <= start:
        return []
    at = bisect_right(taken, (start, start)) - 1
    if at < 0 or taken[at][1] <= start:
        at += 1
    out: list[Interval] = []
    while at < len(taken) and taken[at][0] < end:
        low, high = taken[at]
        if low > start:
            out.append((start, low))
        start = max(start, high)
        if start >= end:
            return out
        at += 1
    out.append((start, end))
    return out


MAX_INTERVALS = 200_000
"""Of one set. Beyond it the oldest quarter is joined in pairs, the time between counted as given: a span that comes
that late shares a little less, and nothing is given twice."""


class IntervalSet:
    """Time already given away; grows, and forgets what is older than anyone can ask for."""

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self.items: list[Interval] = union(intervals)

    @property
    def until(self) -> int:
        """The end of the last interval; 0 where there is none."""
        return self.items[-1][1] if self.items else 0

    def add(self, intervals: list[Interval]) -> None:
        """Take in a sorted disjoint list."""
        if not intervals:
            return
        if len(self.items) > MAX_INTERVALS:
            old = MAX_INTERVALS // 4
            self.items[:old] = [(self.items[at][0], self.items[at + 1][1]) for at in range(0, old, 2)]
        if not self.items or intervals[0][0] > self.items[-1][1]:
            self.items.extend(intervals)
            return
        at = max(0, bisect_right(self.items, (intervals[0][0], intervals[0][0])) - 1)
        self.items[at:] = union([*self.items[at:], *intervals])

    def reaching(self, instant: int) -> list[Interval]:
        """Those that end after `instant`."""
        return self.items[max(0, bisect_right(self.items, (instant, instant)) - 1) :]

    def left(self, start: int, end: int) -> list[Interval]:
        """What of [start, end) is not in the set."""
        if not self.items or self.items[-1][1] <= start:
            return [(start, end)] if start < end else []
        return subtract(start, end, self.items)

    def within(self, start: int, end: int) -> Iterator[Interval]:
        """What of the set lies in [start, end)."""
        at = max(0, bisect_right(self.items, (start, start)) - 1)
        while at < len(self.items) and self.items[at][0] < end:
            low, high = max(self.items[at][0], start), min(self.items[at][1], end)
            if low < high:
                yield low, high
            at += 1

    def touches(self, start: int, end: int) -> bool:
        """Whether anything of the set lies in [start, end)."""
        return any(True for _ in self.within(start, end))

    def forget_before(self, instant: int) -> None:
        """Drop what ended before `instant`."""
        keep = 0
        while keep < len(self.items) and self.items[keep][1] <= instant:
            keep += 1
        del self.items[:keep]
