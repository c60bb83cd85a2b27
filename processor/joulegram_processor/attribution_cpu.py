"""The share of spans that say how much CPU time they spent, beside those that do not, and of what others left over.

Spans that are known and not settled yet stand beside: they have their part when shares are worked out, and what it
comes to is left over, for them to find. So what a span gets does not depend on which of the two is settled first.

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
       where that is more than is available, available x weight / W. The rest is divided by the number of the others.
       Where there are none, the part of it that the process's descendants spent is divided by the number of weighted
       spans that are innermost: a command that a span waits for runs on no thread of its own. What remains is left.
    4. Round: as in attribution.py, step 6. Per slab, what is left is what was available less what was given, where the
       given is cut by rounding its running sum.
    5. Claim the time, and keep what is left; where a span beside is open nothing is kept too, so that it is seen later
       that it had been there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from joulegram_processor import native
from joulegram_processor.claims import part_of
from joulegram_processor.intervals import Interval, IntervalSet, union
from joulegram_processor.rows import ZERO, Triple, cut

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_processor.attribution import Columns
    from joulegram_processor.claims import Claims, Leftover
    from joulegram_processor.energy_store import EnergyStore

FINE_BITS = 32
"""Binary digits below the microjoule, and of a weight below 1."""

ONE = 1 << FINE_BITS
HALF = ONE >> 1

MAX_CUTS = 500
"""Of one scope in one settlement; where more boundaries are, so many evenly over the time of the spans beside."""

MAX_STRETCHES = 2_000
"""Beside those, how many stretches in which any span beside is open are told from what lies between them."""

Part = tuple[int, int, int, int | None]
"""A span for some time in a scope: start, end, index, and weight in units of 2**-32; None where it says no CPU time,
`STAND_BY` where it does and is innermost."""

STAND_BY = -1
"""Has a part in what descendants spent, where no span is open that says no CPU time."""


class Slab(NamedTuple):
    """Time in which energy is uniform: the pot's, what of it nobody has, and what descendants spent of that."""

    start: int
    end: int
    whole: Triple
    available: Triple
    below: Triple


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

    def parts(self, pieces: list[tuple[int, int, int]], spans: Columns) -> list[Part]:
        """Step 1: pieces of spans that say what they spent, with their weights; those without width are left out."""
        starts, ends, cpu = spans.starts, spans.ends, spans.cpu_ns
        parts: list[Part] = []
        low = high = spent = 0  # the row of the piece before, which is mostly the next one's too
        for start, end, index in pieces:
            if start >= end:
                continue
            if not (low <= start and end <= high):
                at = bisect_right(self._ends, start)
                if at < len(self._ends):
                    low, high, spent = self._starts[at], self._ends[at], self._spent[at]
            length = ends[index] - starts[index]
            if low <= start and end <= high:
                covered = end - start
                whole = spent * (end - low) // (high - low) - spent * (start - low) // (high - low)
            else:
                covered = self._sum(self._covered, start, end)
                whole = self._sum(self._until, start, end)
            mine = cpu[index] if covered == length else cpu[index] * covered // length
            whole = whole or covered
            weight = ((mine << FINE_BITS) + whole // 2) // whole if whole else 0
            parts.append((start, end, index, min(weight, ONE)))
        return parts

    def _sum(self, until: list[int], start: int, end: int) -> int:
        return self._at(until, end) - self._at(until, start)

    def _at(self, until: list[int], instant: int) -> int:
        at = bisect_right(self._ends, instant)
        if at == len(self._ends) or instant <= self._starts[at]:
            return until[at]
        low, high = self._starts[at], self._ends[at]
        return until[at] + (until[at + 1] - until[at]) * (instant - low) // (high - low)


def slabs_of(store: EnergyStore, scope: int, claims: Claims, busy: Iterable[Interval]) -> list[Slab]:
    """Step 2; ticks without energy are left out."""
    found: list[Slab] = []
    for low, high in busy:
        for row in store.overlapping(low, high):
            start, end, pot = max(low, row.start_ns), min(high, row.end_ns), row.pot(scope)
            if not any(pot):
                continue
            below, spent = row.below_ns.get(scope, 0), row.cpu_ns.get(scope, 0)
            for free in claims.left(start, end):
                whole = cut(row, pot, *free)
                part = (whole[0] * below // spent, whole[1] * below // spent, 0) if below else ZERO
                found.append(Slab(*free, whole, whole, part))
            # Of what was left over nobody knows any more who spent it.
            found += [
                Slab(begin, until, cut(row, pot, begin, until), left, ZERO)
                for begin, until, left in claims.left_within(start, end)
            ]
    found.sort()
    return found


def share(
    slabs: list[Slab], parts: list[Part], order: list[int], kind: int, beside: list[Part] | None = None
) -> Shares:
    """Steps 3 and 4 for one kind of energy; `order` has each span of the parts once, `beside` those of others."""
    if not parts or not any(slab.available[kind] for slab in slabs):
        return [0] * len(order), [0] * len(slabs)
    others = beside or []
    made = None if native.LOADED is None else native.LOADED.share(slabs, parts, order, kind, others)
    return share_in_python(slabs, parts, order, kind, others) if made is None else made


def share_in_python(slabs: list[Slab], parts: list[Part], order: list[int], kind: int, beside: list[Part]) -> Shares:
    """`share` where the native module is not there, or refuses."""
    events: list[Event] = [(start, index, weight, 1) for start, _, index, weight in parts]
    events += [(end, index, weight, -1) for _, end, index, weight in parts]
    events += [(start, None, weight, 1) for start, _, _, weight in beside]
    events += [(end, None, weight, -1) for _, end, _, weight in beside]
    events.sort(key=itemgetter(0))
    fine = dict.fromkeys(order, 0)
    given: list[int] = []
    open_now = _Open()
    running = whole_given = 0
    at, last = 0, len(events)
    for slab in slabs:
        now, until = slab.start, (0, 0, 0)
        while now < slab.end:
            while at < last and events[at][0] <= now:
                open_now.turn(events[at], fine)
                at += 1
            now = min(events[at][0], slab.end) if at < last else slab.end
            before, until = until, _until(slab, kind, now)
            running += open_now.give(until[0] - before[0], until[1] - before[1], until[2] - before[2])
        given.append((running + HALF >> FINE_BITS) - whole_given)
        whole_given = running + HALF >> FINE_BITS
    for event in events[at:]:
        open_now.turn(event, fine)
    return _rounded([fine[index] >> FINE_BITS for index in order], whole_given), given


Event = tuple[int, int | None, int | None, int]
"""Instant, index of the span or None for one beside, its weight, and 1 where it begins, -1 where it ends."""


@dataclass(slots=True)
class _Sum:
    """Of one kind of part: what is open, what of that was asked for, and what each unit has had since the beginning."""

    open: int = 0
    mine: int = 0
    level: int = 0

    def each_gets(self, more: int) -> int:
        """Each of those open has this much more; gives what those who asked have of it."""
        self.level += more
        return more * self.mine


@dataclass(slots=True)
class _Open:
    """The spans open at an instant, by kind of part."""

    weights: _Sum = field(default_factory=_Sum)
    others: _Sum = field(default_factory=_Sum)
    waiting: _Sum = field(default_factory=_Sum)

    def turn(self, event: Event, fine: dict[int, int]) -> None:
        """Let a span begin or end; what it had meanwhile comes to `fine`, in units of 2**-64 uJ."""
        _, index, weight, sign = event
        if weight is None or weight == STAND_BY:
            part, units, scale = self.others if weight is None else self.waiting, 1, ONE
        else:
            part, units, scale = self.weights, weight, weight
        part.open += sign * units
        if index is not None:
            part.mine += sign * units
            fine[index] -= sign * part.level * scale

    def give(self, spent: int, left: int, below: int) -> int:
        """Step 3, in units of 2**-32 uJ: of `left` that is available, what is given to those who asked."""
        given = 0
        weights = self.weights
        if weights.open:
            wanted = spent * weights.open >> FINE_BITS
            if wanted < left:
                given = weights.each_gets(spent) >> FINE_BITS
                left -= wanted
            else:
                weights.level += (left << FINE_BITS) // weights.open
                given = left * weights.mine // weights.open
                left = 0
        if self.others.open:
            given += self.others.each_gets(left // self.others.open)
        elif self.waiting.open:
            given += self.waiting.each_gets(min(left, below) // self.waiting.open)
        return given


def _until(slab: Slab, kind: int, instant: int) -> Triple:
    """What the slab had until an instant: the pot's, available, and of descendants, in units of 2**-32 uJ."""
    width, past = slab.end - slab.start, instant - slab.start
    return (
        (slab.whole[kind] << FINE_BITS) * past // width,
        (slab.available[kind] << FINE_BITS) * past // width,
        (slab.below[kind] << FINE_BITS) * past // width,
    )


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


def cut_at(slabs: list[Slab], instants: Iterable[int]) -> list[Slab]:
    """The slabs, cut at each of these instants that lies inside one; the parts add up to the whole."""
    edges = sorted(set(instants))
    made: list[Slab] = []
    for slab in slabs:
        inside = edges[bisect_right(edges, slab.start) : bisect_left(edges, slab.end)]
        whole, available, below = ((slab.start, slab.end, uj) for uj in slab[2:])
        for start, end in pairwise((slab.start, *inside, slab.end)):
            triples = (part_of(item, start, end)[2] for item in (whole, available, below))
            made.append(Slab(start, end, *triples) if inside else slab)
    return made


def divide(
    store: EnergyStore,
    scope: int,
    claims: Claims,
    mine: tuple[list[Part], list[Part]],
    order: list[int],
    beside: tuple[list[Part], list[Part]],
) -> tuple[list[int], ...]:
    """Steps 2 to 5 for one scope.

    Args:
        store: the node's energy.
        scope: in which it is divided.
        claims: of the scope; extended.
        mine: parts of the spans that are settled, for CPU and DRAM energy and for that of GPUs.
        order: has each span of these parts once.
        beside: parts of spans that are settled later.

    Returns:
        Microjoules by kind, in the order of `order`.
    """
    busy = union([part[:2] for part in (*mine[0], *mine[1])])
    waiting = union([part[:2] for part in (*beside[0], *beside[1])])
    # Where nothing is left of what one of these asks for, it was too little to be counted.
    awaited = IntervalSet(part[:2] for parts in beside for part in parts if part[3] not in (0, STAND_BY))
    slabs = [
        slab
        for slab in slabs_of(store, scope, claims, busy)
        if slab.available != ZERO or awaited.touches(slab.start, slab.end)
    ]
    if slabs and waiting:
        slabs = cut_at(slabs, _instants(mine, beside, busy, waiting))
    shares = [share(slabs, mine[at], order, kind, beside[at]) for kind, at in enumerate((0, 0, 1))]
    left: list[Leftover] = []
    for slab, cpu, dram, gpu in zip(slabs, *(given for _, given in shares), strict=True):
        available = slab.available
        rest = (available[0] - cpu, available[1] - dram, available[2] - gpu)
        if rest != ZERO or awaited.touches(slab.start, slab.end):
            left.append((slab.start, slab.end, rest))
    claims.keep(busy, left)
    claims.give(busy, store.watermark_ns)
    return tuple(gains for gains, _ in shares)


def _instants(
    mine: tuple[list[Part], list[Part]],
    beside: tuple[list[Part], list[Part]],
    busy: list[Interval],
    waiting: list[Interval],
) -> set[int]:
    """Where slabs are cut: what is left is kept by slab, as if spread evenly, so what is open in one stays the same.

    Where that is too often, it changes among the spans beside. But a slab still ends where they do: what is left for
    them in time in which none of them is open, none of them would find.
    """
    first, last = waiting[0][0], waiting[-1][1]
    parts = (*mine[0], *mine[1], *beside[0], *beside[1])
    instants = {edge for part in parts for edge in part[:2] if first <= edge <= last}
    if len(instants) <= MAX_CUTS:
        return instants
    first, last = max(first, busy[0][0]), min(last, busy[-1][1])
    instants = {first + (last - first) * at // MAX_CUTS for at in range(MAX_CUTS)}
    ends = [end for _, end in waiting[:-1]]
    starts = [start for start, _ in waiting[1:]]
    between = sorted(zip(ends, starts, strict=True), key=lambda gap: gap[0] - gap[1])  # the widest first
    return instants.union((first, last), *between[: MAX_STRETCHES - 1])
