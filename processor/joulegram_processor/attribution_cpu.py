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
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

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


class Part(NamedTuple):
    """A span, by index, for some time in a scope; `weight` in units of 2**-32, None where its CPU time is not known."""

    start: int
    end: int
    span: int
    weight: int | None


class Slab(NamedTuple):
    """Time in which energy is uniform: the pot's, and what of it nobody has."""

    start: int
    end: int
    whole: Triple
    available: Triple


@dataclass(slots=True)
class Shares:
    """What one kind of energy came to: each span's in units of 2**-32 uJ, and whole microjoules by slab."""

    fine: dict[int, int]
    given: list[int]


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
        covered = self._sum(self._covered, start, end)
        mine = cpu_ns * covered // (end - start)
        whole = self._sum(self._until, start, end) or covered
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


def share(slabs: list[Slab], parts: list[Part], kind: int) -> Shares:
    """Steps 3 and 4 for one kind of energy."""
    events: dict[int, list[tuple[Part, bool]]] = {}
    for part in parts:
        events.setdefault(part.start, []).append((part, True))
        events.setdefault(part.end, []).append((part, False))
    instants = sorted(events.keys() | {edge for slab in slabs for edge in slab[:2]})
    fine: dict[int, int] = {}
    given: list[int] = []
    by_weight = equal = 0
    weights = others = 0
    running = whole_given = 0
    at = 0
    before = instants[0] if instants else 0
    for instant in instants:
        if at < len(slabs) and before >= slabs[at].start and instant > before:
            slab = slabs[at]
            spent = _between(slab, slab.whole[kind], before, instant)
            left = _between(slab, slab.available[kind], before, instant)
            if weights:
                wanted = spent * weights >> FINE_BITS
                by_weight += spent if wanted < left else (left << FINE_BITS) // weights
                wanted = min(wanted, left)
                running += wanted
                left -= wanted
            if others:
                equal += left // others
                running += left // others * others
            if instant == slab.end:
                given.append((running + HALF >> FINE_BITS) - whole_given)
                whole_given = running + HALF >> FINE_BITS
                at += 1
        before = instant
        for part, begins in events.get(instant, ()):
            weight = part.weight
            level = equal << FINE_BITS if weight is None else by_weight * weight
            fine[part.span] = fine.get(part.span, 0) + (-level if begins else level)
            if weight is None:
                others += 1 if begins else -1
            else:
                weights += weight if begins else -weight
    return Shares({index: gain >> FINE_BITS for index, gain in fine.items()}, given)


def _between(slab: Slab, uj: int, start: int, end: int) -> int:
    """Energy of a part of a slab, in units of 2**-32 uJ, as a difference of floored cumulative counts."""
    width = slab.end - slab.start
    fine = uj << FINE_BITS
    return fine * (end - slab.start) // width - fine * (start - slab.start) // width


def divide(
    store: EnergyStore, scope: int, claims: Claims, cpu_parts: list[Part], gpu_parts: list[Part]
) -> list[tuple[Shares, int]]:
    """Steps 2 to 5 for one scope: what CPU, DRAM and GPU energy came to, each with the whole microjoules given."""
    busy = union((part.start, part.end) for part in (*cpu_parts, *gpu_parts))
    slabs = slabs_of(store, scope, claims, busy)
    shares = [share(slabs, cpu_parts, 0), share(slabs, cpu_parts, 1), share(slabs, gpu_parts, 2)]
    left: list[Leftover] = []
    for slab, cpu, dram, gpu in zip(slabs, *(found.given for found in shares), strict=True):
        available = slab.available
        left.append((slab.start, slab.end, (available[0] - cpu, available[1] - dram, available[2] - gpu)))
    claims.keep(busy, left)
    claims.give(busy, store.watermark_ns)
    return [(found, sum(found.given)) for found in shares]
