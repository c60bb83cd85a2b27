"""Whose energy it was: the time a span is innermost in its scope, and its part of the pot at that time.

Invariants:
    * Σ of what the spans of a settlement get = the energy of the time they claim, per kind, to the microjoule;
    * time once claimed in a scope is never given again, so a span that comes late shares what is left;
    * the result depends on the set of spans settled together, not on their order.

Procedure, for spans settled together:
    1. Nest: a span's children are those that name it as parent within the same process.
    2. A span is innermost where it is open and no descendant is: its interval less the union of theirs.
    3. Each such piece lies in a scope: the span's process from the moment it was named, before that the host.
    4. Take away the time that was claimed before.
    5. Sweep each scope over the boundaries of its pieces. Between two boundaries the pot's energy is divided by the
       number of pieces open there; a running level keeps the sum, in units of 2**-32 uJ, the remainder carried on.
       A piece's share is the level at its end less the level at its start.
    6. Round the shares to whole microjoules by largest remainder, so that they add up to the energy swept.
    7. Claim the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_processor.energy_store import HOST, ZERO
from joulegram_processor.intervals import IntervalSet, subtract, union

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_processor.energy_store import EnergyStore, Triple
    from joulegram_processor.intervals import Interval
    from joulegram_processor.spans import OpenSpan

_FINE = 32
"""Binary digits below the microjoule in a running level."""

Piece = tuple[int, int, int]
"""Start, end, and the index of the span it belongs to."""


def attribute(store: EnergyStore, claimed: dict[int, IntervalSet], spans: list[OpenSpan]) -> None:
    """Set `own`, `scope` and `node_uj` of spans settled together, and extend what is claimed.

    `node_uj` is what the whole node spent while the span was open. `scope` is HOST as soon as any of the span's time
    was shared at the host's level.
    """
    by_scope: dict[int, list[Piece]] = {}
    groups: dict[int, list[int]] = {}
    for index, span in enumerate(spans):
        pid = span.pid if span.pid in store.named_from else HOST
        span.scope = pid
        groups.setdefault(pid, []).append(index)
    for pid, members in groups.items():
        named_from = store.named_from.get(pid, 0)
        for index, pieces in innermost(spans, members):
            for start, end in pieces:
                if pid == HOST or start >= named_from:
                    by_scope.setdefault(pid, []).append((start, end, index))
                    continue
                spans[index].scope = HOST
                by_scope.setdefault(HOST, []).append((start, min(end, named_from), index))
                if end > named_from:
                    by_scope.setdefault(pid, []).append((named_from, end, index))

    shares = [[0, 0, 0] for _ in spans]
    for scope, wanted in by_scope.items():
        taken = claimed.setdefault(scope, IntervalSet())
        left = [(low, high, index) for start, end, index in wanted for low, high in taken.left(start, end)]
        if left:
            _sweep(store, scope, left, shares)
            taken.add(union((low, high) for low, high, _ in left))
    _node_energy(store, spans)
    for span, (cpu, dram, gpu) in zip(spans, shares, strict=True):
        span.own = (cpu, dram, gpu)


def innermost(spans: list[OpenSpan], members: list[int]) -> Iterable[tuple[int, list[Interval]]]:
    """For each member, the time it is open and none of its descendants among the members is."""
    at = {spans[index].key: index for index in members}
    children: dict[int, list[int]] = {}
    for index in members:
        parent = at.get(spans[index].parent_key)
        if parent is not None and parent != index:
            children.setdefault(parent, []).append(index)
    if not children:
        for index in members:
            yield index, [(spans[index].start_ns, spans[index].end_ns)]
        return

    covers: dict[int, list[Interval]] = {}
    for index in _children_first(members, children):
        span = spans[index]
        below = children.get(index)
        if below is None:
            yield index, [(span.start_ns, span.end_ns)]
            continue
        inner: list[Interval] = []
        for child in below:
            inner += covers.pop(child, ((spans[child].start_ns, spans[child].end_ns),))
        inner = union(inner)
        yield index, subtract(span.start_ns, span.end_ns, inner)
        covers[index] = union([*inner, (span.start_ns, span.end_ns)])


def _children_first(members: list[int], children: dict[int, list[int]]) -> list[int]:
    """Members ordered so that a child stands before its parent; a cycle of parents is cut where it is met."""
    below = {child for group in children.values() for child in group}
    order: list[int] = []
    seen: set[int] = set()
    for root in [*(index for index in members if index not in below), *members]:
        if root in seen:
            continue
        stack = [root]
        seen.add(root)
        while stack:
            index = stack.pop()
            order.append(index)
            for child in children.get(index, ()):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
    order.reverse()
    return order


def _sweep(store: EnergyStore, scope: int, pieces: list[Piece], shares: list[list[int]]) -> None:
    steps: dict[int, int] = {}
    for start, end, _ in pieces:
        steps[start] = steps.get(start, 0) + 1
        steps[end] = steps.get(end, 0) - 1
    times = sorted(steps)
    rows = list(store.overlapping(times[0], times[-1]))
    starts = [row.start_ns for row in rows]
    ends = [row.end_ns for row in rows]
    pots = [row.pot(scope) for row in rows]
    for kind in range(3):
        column = [pot[kind] for pot in pots]
        if any(column):
            _share_kind(steps, times, cumulative(times, starts, ends, column), pieces, kind, shares)


def cumulative(times: list[int], starts: list[int], ends: list[int], column: list[int]) -> list[int]:
    """The energy before each of the sorted `times`, counted from the first row's start, floored."""
    out = []
    base = at = 0
    count = len(column)
    start = starts[0] if count else 0
    end = ends[0] if count else 0
    pot = column[0] if count else 0
    for time in times:
        while at < count and end <= time:
            base += pot
            at += 1
            if at < count:
                start, end, pot = starts[at], ends[at], column[at]
        out.append(base + pot * (time - start) // (end - start) if at < count and time > start else base)
    return out


def _share_kind(
    steps: dict[int, int],
    times: list[int],
    energy: list[int],
    pieces: list[Piece],
    kind: int,
    shares: list[list[int]],
) -> None:
    levels: dict[int, int] = {}
    level = carry = open_pieces = swept = 0
    last = energy[0]
    for time, now in zip(times, energy, strict=True):
        if open_pieces and now != last:
            gained = now - last
            swept += gained
            part, carry = divmod((gained << _FINE) + carry, open_pieces)
            level += part
        last = now
        levels[time] = level
        open_pieces += steps[time]
    if not swept:
        return
    fine: dict[int, int] = {}
    for start, end, index in pieces:
        fine[index] = fine.get(index, 0) + levels[end] - levels[start]
    given = 0
    remainders = []
    mask = (1 << _FINE) - 1
    for index, share in fine.items():
        whole = share >> _FINE
        shares[index][kind] += whole
        given += whole
        remainders.append((share & mask, index))
    left = swept - given
    if left:
        # Ties go to the span that stands first in the settlement, whose order is that of the spans' keys.
        remainders.sort(key=lambda item: (-item[0], item[1]))
        for _, index in remainders[:left]:
            shares[index][kind] += 1


def _node_energy(store: EnergyStore, spans: list[OpenSpan]) -> None:
    times = sorted({time for span in spans for time in (span.start_ns, span.end_ns)})
    rows = list(store.overlapping(times[0], times[-1]))
    column = [sum(row.measured) for row in rows]
    if not any(column):
        return
    energy = cumulative(times, [row.start_ns for row in rows], [row.end_ns for row in rows], column)
    at = dict(zip(times, energy, strict=True))
    for span in spans:
        span.node_uj = at[span.end_ns] - at[span.start_ns]


def add_up(spans: list[OpenSpan], carried: dict[bytes, Triple]) -> None:
    """Set `kids`: what settled descendants add to each span; what has no parent here is carried for one to come.

    A cycle of parents adds nothing: no member of it is a descendant of another.
    """
    at = {span.key: span for span in spans}
    for span in spans:
        span.waiting = 0
        span.kids = carried.pop(span.key, ZERO) if carried else ZERO
    parents = 0
    for span in spans:
        parent = at.get(span.parent_key)
        if parent is not None:
            parent.waiting += 1
            parents += 1
    ready = [span for span in spans if not span.waiting] if parents else spans[:]
    while ready:
        span = ready.pop()
        if not span.parent_key:
            continue
        own, kids = span.own, span.kids
        parent = at.get(span.parent_key)
        held = parent.kids if parent is not None else carried.get(span.parent_key, ZERO)
        total = (held[0] + own[0] + kids[0], held[1] + own[1] + kids[1], held[2] + own[2] + kids[2])
        if parent is None:
            carried[span.parent_key] = total
            continue
        parent.kids = total
        parent.waiting -= 1
        if not parent.waiting:
            ready.append(parent)
