"""The share of spans that say how much CPU time they spent, beside those that do not, and of what others left over.

A span that carries `joulegram.cpu_ns` gets the part of its scope's energy that its CPU time is of the scope's CPU time
while it was open; those that do not say share what remains, equally, as in attribution.py. What nobody gets is kept as
a leftover, so that a span that comes later finds it.

Invariants:
    * Σ of what the spans get = Σ of what was available - Σ of what is left over, per kind, to the microjoule;
    * a span that spent no CPU time gets no CPU or DRAM energy;
    * GPU energy has no CPU key: it is shared equally, from the board a span names where it names one.

Procedure, for one scope:
    1. Weight: a span's CPU time / the scope's in the ticks that the span touches, cut to it, at most 1. Where the ticks
       do not tell, its CPU time / its length.
    2. Slabs: the time any span is open, cut at ticks and at time given before. Each has an energy (the pot's) and what
       of it is available: all of it where nobody had that time, the leftover where somebody had, else nothing.
    3. Between two boundaries of spans, with W the sum of the open weights: each weighted span gets energy x weight, or,
       where that is more than is available, available x weight / W. The rest is divided by the number of the others;
       where there are none it is left.
    4. Round: as in attribution.py, step 6. Per slab, what is left is what was available less what was given, where the
       given is cut by rounding its running sum.
    5. Claim the time, and keep what is left.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from joulegram_processor import native
from joulegram_processor.intervals import Interval, union
from joulegram_processor.rows import Triple, cut

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_processor.claims import Claims, Leftover
    from joulegram_processor.energy_store import EnergyStore

FINE_BITS = 32
"""Binary digits below the microjoule, and of a weight below 1."""

ONE = 1 << FINE_BITS
HALF = ONE >> 1


Part = tuple[int, int, int, int | None]
"""A span for some time in a scope: start, end, index, and weight in units of 2**-32, None where it says no CPU time."""


class Slab(NamedTuple):
    """Time in which energy is uniform: the pot's, and what of it nobody has."""

    start: int
    end: int
    whole: Triple
    available: Triple


Shares = tuple[list[int], list[int]]
"""What one kind of energy came to, in whole microjoules: by span, in the order asked for, and by slab."""


class ScopeCpu:
    """The CPU time of a scope over a stretch of time."""

    def __init__(self, store: EnergyStore, scope: int, start: int, end: int) -> None:
        rows = list(store.overlapping(start, end))
        self._ends = [row.end_ns for row in rows]
        self._starts = [row.start_ns for row in rows]
        self._spent = [row.cpu_ns.get(scope, 0) for row in rows]
        self._until = [0, *accumulate(self._spent)]
        self._covered = [0, *accumulate(high - low for low, high in zip(self._starts, self._ends, strict=True))]

    def weight(self, cpu_ns: int, start: int, end: int) -> int:
        """Step 1, for a span that spent `cpu_ns` evenly from `start` to `end`."""
        at = bisect_right(self._ends, start)
        if at < len(self._ends) and self._starts[at] <= start and end <= self._ends[at]:
            low, width = self._starts[at], self._ends[at] - self._starts[at]
            covered = end - start
            spent = self._spent[at]
            whole = spent * (end - low) // width - spent * (start - low) // width
        else:
            covered = self._sum(self._covered, start, end)
            whole = self._sum(self._until, start, end)
        mine = cpu_ns * covered // (end - start)
        whole = whole or covered
        return min(ONE, ((mine << FINE_BITS) + whole // 2) // whole) if whole else 0

    def _sum(self, until: list[int], start: int, end: int) -> int:
        return self._at(until, end) - self._at(until, start)

    def _at(self, until: list[int], instant: int) -> int:
        at = bisect_right(self._ends, instant)
        if at == len(self._ends) or instant <= self._starts[at]:
            return until[at]
        low, high = self._starts[at], self._ends[at]
        return until[at] + (until[at + 1] - until[at]) * (instant - low) // (high - low)


def slabs_of(store: EnergyStore, scope: int, claims: Claims, busy: Iterable[Interval]) -> list[Slab]:
    """Step 2; slabs in which nothing is available are left out."""
    slabs: list[Slab] = []
    for low, high in busy:
        for row in store.overlapping(low, high):
            start, end, pot = max(low, row.start_ns), min(high, row.end_ns), row.pot(scope)
            pieces: list[Leftover] = [(*free, cut(row, pot, *free)) for free in claims.left(start, end)]
            pieces += claims.left_within(start, end)
            pieces.sort()
            slabs += [
                Slab(begin, until, cut(row, pot, begin, until), left) for begin, until, left in pieces if any(left)
            ]
    return slabs


def share(slabs: list[Slab], parts: list[Part], order: list[int], kind: int) -> Shares:
    """Steps 3 and 4 for one kind of energy; `order` has each span of the parts once."""
    if not parts or not any(slab.available[kind] for slab in slabs):
        return [0] * len(order), [0] * len(slabs)
    made = None if native.LOADED is None else native.LOADED.share(slabs, parts, order, kind)
    return share_in_python(slabs, parts, order, kind) if made is None else made


def share_in_python(slabs: list[Slab], parts: list[Part], order: list[int], kind: int) -> Shares:
    """`share` where the native module is not there, or refuses."""
    events: list[tuple[int, int, int | None, bool]] = [
        (start, index, weight, True) for start, _, index, weight in parts
    ]
    events += [(end, index, weight, False) for _, end, index, weight in parts]
    events.sort(key=itemgetter(0))
    fine = dict.fromkeys(order, 0)
    given: list[int] = []
    by_weight = equal = weights = others = 0
    running = whole_given = 0
    at, last = 0, len(events)
    for low, high, wholes, availables in slabs:
        width, now = high - low, low
        whole, available = wholes[kind] << FINE_BITS, availables[kind] << FINE_BITS
        whole_until = available_until = 0
        while now < high:
            while at < last and events[at][0] <= now:
                _, index, weight, begins = events[at]
                at += 1
                level = equal << FINE_BITS if weight is None else by_weight * weight
                fine[index] += -level if begins else level
                if weight is None:
                    others += 1 if begins else -1
                else:
                    weights += weight if begins else -weight
            now = min(events[at][0], high) if at < last else high
            left, available_until = -available_until, available * (now - low) // width
            left += available_until
            spent, whole_until = -whole_until, whole * (now - low) // width
            spent += whole_until
            if weights:
                wanted = spent * weights >> FINE_BITS
                by_weight += spent if wanted < left else (left << FINE_BITS) // weights
                wanted = min(wanted, left)
                running += wanted
                left -= wanted
            if others:
                equal += left // others
                running += left // others * others
        given.append((running + HALF >> FINE_BITS) - whole_given)
        whole_given = running + HALF >> FINE_BITS
    for _, index, weight, begins in events[at:]:
        level = equal << FINE_BITS if weight is None else by_weight * weight
        fine[index] += -level if begins else level
    return _rounded([fine[index] >> FINE_BITS for index in order], whole_given), given


def _rounded(fine: list[int], given: int) -> list[int]:
    """Whole microjoules by which the running sum of shares grows; the last share has what rounding lost on the way."""
    gains = [0] * len(fine)
    running = before = 0
    final = -1
    for at, part in enumerate(fine):
        if part:
            running += part
            gains[at] = (running >> FINE_BITS) - before
            before = running >> FINE_BITS
            final = at
    gains[final] += given - before
    return gains


def divide(
    store: EnergyStore,
    scope: int,
    claims: Claims,
    cpu_parts: list[Part],
    gpu_parts: list[Part],
    order: list[int],
) -> tuple[list[int], ...]:
    """Steps 2 to 5 for one scope.

    Returns:
        Microjoules by kind, in the order of `order`, which has each span of the parts once.
    """
    busy = union([part[:2] for part in (*cpu_parts, *gpu_parts)])
    slabs = slabs_of(store, scope, claims, busy)
    shares = [share(slabs, parts, order, kind) for kind, parts in enumerate((cpu_parts, cpu_parts, gpu_parts))]
    left: list[Leftover] = []
    for slab, cpu, dram, gpu in zip(slabs, *(given for _, given in shares), strict=True):
        available = slab.available
        left.append((slab.start, slab.end, (available[0] - cpu, available[1] - dram, available[2] - gpu)))
    claims.keep(busy, left)
    claims.give(busy, store.watermark_ns)
    return tuple(gains for gains, _ in shares)
