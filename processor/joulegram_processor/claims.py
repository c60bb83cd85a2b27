"""The time of a scope that was given to spans, and what was left over of it.

Invariants:
    * leftovers lie inside the time given, sorted and disjoint; time given without one has nothing left; one of nothing
      says that a span which waits is known to have been open there;
    * a leftover is cut by flooring a cumulative count, so that its parts add up to it, to the microjoule.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from joulegram_processor.intervals import IntervalSet, subtract
from joulegram_processor.rows import Triple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from joulegram_pipeline.records import Json
    from joulegram_processor.intervals import Interval

Leftover = tuple[int, int, Triple]
"""Start, end, and the microjoules of that time nobody got, by kind."""

MAX_LEFTOVERS = 20_000
"""Of one scope. Beyond it the older half is joined in pairs, as if what is left were spread evenly over both."""


class Claims(IntervalSet):
    """Time given, with what is left of it."""

    def __init__(self, intervals: Iterable[Interval] = (), leftovers: Iterable[Leftover] = ()) -> None:
        super().__init__(intervals)
        self.leftovers: list[Leftover] = list(leftovers)

    def give(self, intervals: list[Interval], known_ns: int) -> None:
        """Take in a sorted disjoint list up to `known_ns`: energy that is not known yet is nobody's."""
        self.add([(low, min(high, known_ns)) for low, high in intervals if low < known_ns])

    def left_within(self, start: int, end: int) -> Iterator[Leftover]:
        """The leftovers that share time with a window, cut to it."""
        for at in range(self._first(start), len(self.leftovers)):
            item = self.leftovers[at]
            if item[0] >= end:
                return
            yield part_of(item, max(start, item[0]), min(end, item[1]))

    def keep(self, windows: list[Interval], leftovers: Iterable[Leftover]) -> None:
        """Put these in the place of all leftovers in sorted disjoint windows, which are given time."""
        if not windows:
            return
        first = last = self._first(windows[0][0])
        while last < len(self.leftovers) and self.leftovers[last][0] < windows[-1][1]:
            last += 1
        outside = [
            part_of(item, *window)
            for item in self.leftovers[first:last]
            for window in subtract(item[0], item[1], windows)
        ]
        self.leftovers[first:last] = sorted((*outside, *leftovers))
        if len(self.leftovers) > MAX_LEFTOVERS:
            self._join_old()

    def forget_before(self, instant: int) -> None:
        super().forget_before(instant)
        keep = 0
        while keep < len(self.leftovers) and self.leftovers[keep][1] <= instant:
            keep += 1
        del self.leftovers[:keep]

    def dump(self) -> Json:
        """As JSON."""
        return {
            "given": [[str(low), str(high)] for low, high in self.items],
            "left": [[str(low), str(high), *left] for low, high, left in self.leftovers],
        }

    @classmethod
    def load(cls, raw: Json) -> Claims:
        """From what `dump` gave."""
        return cls(
            ((int(low), int(high)) for low, high in raw["given"]),
            ((int(low), int(high), (left[0], left[1], left[2])) for low, high, *left in raw["left"]),
        )

    def _first(self, instant: int) -> int:
        """Index of the first leftover that ends after an instant."""
        at = max(0, bisect_right(self.leftovers, (instant, instant)) - 1)
        return at + 1 if at < len(self.leftovers) and self.leftovers[at][1] <= instant else at

    def _join_old(self) -> None:
        old = MAX_LEFTOVERS // 2
        pairs = list(zip(self.leftovers[:old:2], self.leftovers[1:old:2], strict=True))
        self.leftovers[:old] = [
            (low[0], high[1], (low[2][0] + high[2][0], low[2][1] + high[2][1], low[2][2] + high[2][2]))
            for low, high in pairs
        ]
        for low, high in pairs:
            if low[1] < high[0]:
                self.add([(low[1], high[0])])


def part_of(item: Leftover, start: int, end: int) -> Leftover:
    """The part of a leftover from an instant in it to another."""
    low, high, (cpu, dram, gpu) = item
    width, since, until = high - low, start - low, end - low
    left = (
        cpu * until // width - cpu * since // width,
        dram * until // width - dram * since // width,
        gpu * until // width - gpu * since // width,
    )
    return start, end, left
