"""Whose energy it was: the time a span is innermost in its scope, and its part of the pot at that time.

Invariants:
    * Σ of what the spans of a settlement get = the energy of the time they claim, per kind, to the microjoule;
    * energy once given is never given again, so a span that comes late shares what is left;
    * a span's part depends on the set of spans known when it is settled, not on their order, nor on which of them are
      settled with it: those settled later find their part left over (to the microjoule, by rounding).

Procedure, for spans settled together:
    1. Nest: a span's children are those that name it as parent within the same process; a cycle of them nests nobody.
    2. A span is innermost where it is open and no descendant is: its interval less the union of theirs.
    3. Each such piece lies in a scope: the span's process from the moment it was named, before that the host.
    4. Take away the time that was claimed before. Where something of it is left over, or spans are open that are known
       and settled later, it is shared as attribution_cpu.py says; steps 5 and 6 are for the rest.
    5. Sweep each scope over the boundaries of its pieces. Between two boundaries the pot's energy is divided by the
       number of pieces open there; a running level keeps the sum, in units of 2**-32 uJ, the remainder carried on.
       A piece's share is the level at its end less the level at its start.
    6. Round: in the order of start, then end and id, a span gets the whole microjoules by which the running sum of
       shares grows. So the parts add up to the energy swept, and each is within a microjoule of its share.
    7. Claim the time.

The work is done on columns, one entry a span, because a node can send a hundred thousand spans a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, compress, islice
from operator import eq, not_
from typing import TYPE_CHECKING, Any

from joulegram_processor import native
from joulegram_processor.attribution_cpu import FINE_BITS, STAND_BY, Part, ScopeCpu, divide
from joulegram_processor.claims import Claims
from joulegram_processor.innermost import Piece, innermost, unpacked
from joulegram_processor.intervals import IntervalSet, subtract, union
from joulegram_processor.scopes import BY_SPAN, HOST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_processor.energy_store import EnergyStore
    from joulegram_processor.intervals import Interval
    from joulegram_processor.rows import Row


@dataclass(slots=True)
class Columns:
    """Spans settled together.

    Args:
        starts: wall clock, ns.
        ends: wall clock, ns; never before its start.
        keys: trace id + span id.
        parents: trace id + parent span id; empty for a root.
        pids: the scope a span names: its process, container or pod; `HOST` where it names none.
        cpu_ns: CPU time by index, of the spans that say what their threads spent.
        boards: the scope of the GPU board by index, of the spans that name one.
        own: exclusive energy in microjoules, by kind; filled by `attribute`.
        kids: energy of settled descendants, by kind; filled by `add_up`.
        scopes: the scope each span's energy was taken from, HOST as soon as any of it was; filled by `attribute`.
        labels: the number of the text that says so; filled by `attribute`.
        late: those that got nothing because others had all of it before they came; filled by `attribute`.
    """

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    parents: list[bytes] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    cpu_ns: dict[int, int] = field(default_factory=dict)
    boards: dict[int, int] = field(default_factory=dict)
    own: tuple[list[int], list[int], list[int]] = field(default_factory=lambda: ([], [], []))
    kids: tuple[list[int], list[int], list[int]] = field(default_factory=lambda: ([], [], []))
    scopes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    late: set[int] = field(default_factory=set)
    above: list[int | None] = field(default_factory=list)
    """The index of each span's parent, None where it is not among these; filled by `nest`."""
    below: dict[int, list[int]] = field(default_factory=dict)
    """The children of each span that has any; filled by `nest`."""

    def __len__(self) -> int:
        return len(self.starts)

    def nest(self) -> None:
        """Find parents and children among the spans, once."""
        if len(self.above) == len(self.starts):
            return
        at = dict(zip(self.keys, range(len(self.keys)), strict=True))
        self.above = list(map(at.get, self.parents))
        below = self.below
        for index, parent in enumerate(self.above):
            if parent is None:
                continue
            if parent == index:
                self.above[index] = None
            elif parent in below:
                below[parent].append(index)
            else:
                below[parent] = [index]


Parts = dict[int, tuple[list[Part], list[Part]]]
"""By scope, the parts of spans in its CPU and DRAM energy, and in that of its GPUs."""

MAX_CONTESTED = 32
"""Into how many stretches at most the time of a settlement is told apart that others have a part in."""

NOBODY: tuple[list[Part], list[Part]] = ([], [])


def attribute(store: EnergyStore, claimed: dict[int, Claims], spans: Columns, beside: Columns | None = None) -> None:
    """Fill `own`, `scopes`, `labels` and `late` of spans settled together, and extend what is claimed.

    Args:
        store: the node's energy.
        claimed: time given before, by scope.
        spans: those settled.
        beside: spans that are known and settled later; their share is left for them.
    """
    if not len(spans):
        spans.own = ([], [], [])
        return
    before = _given_before(claimed, min(spans.starts))
    others = _parts_beside(store, beside, spans) if beside is not None and len(beside) else {}
    if (
        spans.cpu_ns
        or spans.boards
        or native.LOADED is None
        or not _attribute_natively(native.LOADED, store, claimed, spans, others)
    ):
        attribute_in_python(store, claimed, spans, others)
    labels = {scope: store.label(scope) for scope in set(spans.scopes)}
    spans.labels = list(map(labels.__getitem__, spans.scopes))
    for index in spans.cpu_ns:
        spans.labels[index] = BY_SPAN
    if before:
        spans.late = _late(store, before, spans)


def _attribute_natively(
    module: Any, store: EnergyStore, claimed: dict[int, Claims], spans: Columns, others: Parts
) -> bool:
    """`attribute` by the native module; nothing is changed where it refuses, as at the instant of naming."""
    count, named = len(spans), store.named_from
    alone = named.keys().isdisjoint(spans.pids)
    homes = [HOST] * count if alone else [pid if pid in named else HOST for pid in spans.pids]
    spans.nest()
    packed = module.innermost(spans.starts, spans.ends, spans.above, None if alone else homes)
    if packed is None:
        return False
    first, last = min(spans.starts), max(spans.ends)
    own = ([0] * count, [0] * count, [0] * count)
    swept: dict[int, list[Interval]] = {}
    shared: dict[int, list[Interval]] = {}
    for scope in dict.fromkeys(homes):
        contested = _contested(claimed.get(scope), others.get(scope, NOBODY), first, last)
        taken = claimed[scope].reaching(first) if scope in claimed else []
        if contested:
            shared[scope] = contested
            taken = union((*taken, *contested))
        rows = [(row.start_ns, row.end_ns, *row.pot(scope)) for row in store.overlapping(first, last)]
        since = 0 if scope == HOST else named[scope]
        busy = module.sweep(
            packed, scope, None if alone else homes, since, taken, rows, spans.starts, spans.ends, spans.keys, own
        )
        if busy is None:
            return False
        swept[scope] = busy
    spans.own, spans.scopes = own, homes
    if shared:
        pieces = unpacked(packed)
        for scope, contested in shared.items():
            here = pieces if alone else [piece for piece in pieces if homes[piece[2]] == scope]
            _share_contested(store, claimed, scope, here, spans, contested, others.get(scope, NOBODY))
    for scope, busy in swept.items():
        claimed.setdefault(scope, Claims()).give(busy, store.watermark_ns)
    return True


def attribute_in_python(store: EnergyStore, claimed: dict[int, Claims], spans: Columns, others: Parts) -> None:
    """`attribute` where the native module is not there, or refuses the spans; its labels are filled by the caller."""
    count = len(spans)
    spans.own = ([0] * count, [0] * count, [0] * count)
    homes, by_scope = _pieces(store, spans)
    if spans.cpu_ns or spans.boards:
        mine = _parts(store, spans, homes, by_scope, min(spans.starts), max(spans.ends))
        telling = spans.cpu_ns.keys() | spans.boards.keys()
        for scope in sorted(mine):
            # A scope in which nobody tells anything is swept, as it is without those who do so elsewhere.
            if scope not in by_scope or any(part[2] in telling for parts in mine[scope] for part in parts):
                by_scope.pop(scope, None)
                _divide(store, claimed, scope, spans, mine[scope], others.get(scope, NOBODY))
    first, last = min(spans.starts, default=0), max(spans.ends, default=0)
    for scope, wanted in by_scope.items():
        if not wanted:
            continue
        taken = claimed.setdefault(scope, Claims())
        contested = _contested(taken, others.get(scope, NOBODY), first, last)
        gone = IntervalSet((*taken.reaching(first), *contested)) if contested else taken
        until = gone.until
        left = [piece for piece in wanted if piece[0] >= until and piece[0] < piece[1]]
        if len(left) < len(wanted):
            left += [
                (low, high, index)
                for start, end, index in wanted
                if start < until
                for low, high in gone.left(start, end)
            ]
        swept = _sweep(store, scope, left, spans) if left else []
        if contested:
            _share_contested(store, claimed, scope, wanted, spans, contested, others.get(scope, NOBODY))
        taken.give(swept, store.watermark_ns)


def _pieces(store: EnergyStore, spans: Columns) -> tuple[list[int], dict[int, list[Piece]]]:
    """Steps 1 to 3: the home each span is nested in, and the pieces by scope; fills `scopes`."""
    named = store.named_from
    if set(spans.pids).isdisjoint(named):
        spans.scopes = [HOST] * len(spans)
        groups: dict[int, list[int] | range] = {HOST: range(len(spans))}
    else:
        spans.scopes = [pid if pid in named else HOST for pid in spans.pids]
        groups = {}
        for index, pid in enumerate(spans.scopes):
            groups.setdefault(pid, []).append(index)  # type: ignore[union-attr]
    homes = list(spans.scopes)  # what is nested by; the scopes themselves change at the instant of naming
    spans.nest()
    by_scope: dict[int, list[Piece]] = {}
    for pid, members in groups.items():
        pieces = innermost(spans, members, homes, whole=len(groups) == 1)
        if pid == HOST:
            by_scope.setdefault(HOST, []).extend(pieces)
        else:
            _split_at_naming(pieces, pid, named[pid], spans.scopes, by_scope)
    return homes, by_scope


def _parts(
    store: EnergyStore, spans: Columns, homes: list[int], by_scope: dict[int, list[Piece]], first: int, last: int
) -> Parts:
    """Steps 1 to 3 where spans say what they spent, as attribution_cpu.py has them, for energy from `first` to `last`.

    A span that does is open from its start to its end, whatever is below it: its CPU time is its own already.
    """
    at_home: dict[int, list[Piece]] = {}
    for index in spans.cpu_ns:
        at_home.setdefault(homes[index], []).append((spans.starts[index], spans.ends[index], index))
    whole: dict[int, list[Piece]] = {HOST: at_home.pop(HOST, [])}
    for scope, pieces in at_home.items():
        _split_at_naming(pieces, scope, store.named_from[scope], spans.scopes, whole)
    parts: Parts = {}
    for scope, pieces in whole.items():
        if pieces:
            cpu = ScopeCpu(store, scope, min(piece[0] for piece in pieces), max(piece[1] for piece in pieces))
            parts[scope] = (cpu.parts(pieces, spans), [])
    rows = list(store.overlapping(first, last))
    with_gpu = any(row.kinds[2] for row in rows)
    with_descendants = {scope for row in rows for scope in row.below_ns}
    for scope, pieces in by_scope.items():
        equal = [(*piece, None) for piece in pieces if piece[0] < piece[1]]
        by_cpu = parts.setdefault(scope, ([], []))[0]
        by_cpu += [part for part in equal if part[2] not in spans.cpu_ns]
        if scope in with_descendants:
            by_cpu += [(*part[:3], STAND_BY) for part in equal if part[2] in spans.cpu_ns]
        if with_gpu:  # else there is nothing to share, and what is open for it is open for CPU energy
            for part in equal:
                parts.setdefault(spans.boards.get(part[2], scope), ([], []))[1].append(part)
    return parts


def _parts_beside(store: EnergyStore, beside: Columns, spans: Columns) -> Parts:
    """What spans that are settled later have of the time of those settled now."""
    first, last = min(spans.starts), max(spans.ends)
    homes, by_scope = _pieces(store, beside)
    found: Parts = {}
    for scope, both in _parts(store, beside, homes, by_scope, first, last).items():
        by_cpu, by_board = ([part for part in parts if part[0] < last and part[1] > first] for parts in both)
        if by_cpu or by_board:
            found[scope] = by_cpu, by_board
    return found


def _contested(claims: Claims | None, beside: tuple[list[Part], list[Part]], first: int, last: int) -> list[Interval]:
    """Time from `first` to `last` that is not shared equally among the spans settled: others have a part in it.

    In few pieces, with what lies between them: shared either way it comes to the same, and equally is only cheaper.
    """
    left = [] if claims is None else [item[:2] for item in claims.left_within(first, last)]
    near = (last - first) // MAX_CONTESTED
    times = [(start, end + near) for parts in beside for start, end, *_ in parts]
    times += [(low, high + near) for low, high in left]
    return [(max(first, low), min(last, high - near)) for low, high in union(times)]


def _share_contested(
    store: EnergyStore,
    claimed: dict[int, Claims],
    scope: int,
    pieces: list[Piece],
    spans: Columns,
    contested: list[Interval],
    others: tuple[list[Part], list[Part]],
) -> None:
    """Steps 4 to 7 for the time in which others have a part, as attribution_cpu.py has them."""
    parts: list[Part] = [
        (max(start, low), min(end, high), index, None)
        for low, high in contested
        for start, end, index in pieces
        if start < high and end > low and start < end
    ]
    if parts:
        _divide(store, claimed, scope, spans, (parts, parts), others)


def _divide(
    store: EnergyStore,
    claimed: dict[int, Claims],
    scope: int,
    spans: Columns,
    mine: tuple[list[Part], list[Part]],
    others: tuple[list[Part], list[Part]],
) -> None:
    order = _by_start(spans, {part[2] for parts in mine for part in parts})
    shares = divide(store, scope, claimed.setdefault(scope, Claims()), mine, order, others)
    for own, gains in zip(spans.own, shares, strict=True):
        if any(gains):
            for index, gain in zip(order, gains, strict=True):
                own[index] += gain


def _given_before(claimed: dict[int, Claims], first: int) -> dict[int, tuple[IntervalSet, list[Interval]]]:
    """By scope, the time after `first` that is given by now, and where something is left of it."""
    found = {}
    for scope, claims in claimed.items():
        if claims.until > first:
            given = IntervalSet()
            given.items = claims.reaching(first)
            found[scope] = given, [item[:2] for item in claims.left_within(first, claims.until)]
    return found


def _late(store: EnergyStore, before: dict[int, tuple[IntervalSet, list[Interval]]], spans: Columns) -> set[int]:
    """The spans that have nothing though there was energy in time of their own: others had been given it before."""
    late: set[int] = set()
    gone: dict[int, IntervalSet] = {}
    nothing = [at for at, (cpu, dram, gpu) in enumerate(zip(*spans.own, strict=True)) if not (cpu or dram or gpu)]
    for index in nothing:
        scope = spans.scopes[index]
        if scope not in before or spans.cpu_ns.get(index) == 0:
            continue
        if scope not in gone:
            gone[scope] = _gone(store, scope, *before[scope])
        below = union((spans.starts[child], spans.ends[child]) for child in spans.below.get(index, ()))
        own = subtract(spans.starts[index], spans.ends[index], below)
        if any(gone[scope].touches(low, high) for low, high in own):
            late.add(index)
    return late


def _gone(store: EnergyStore, scope: int, given: IntervalSet, left: list[Interval]) -> IntervalSet:
    """Time of a pot with energy that was given, and nothing is left of it; found once, however many spans ask."""
    if not given.items:
        return IntervalSet()
    rows = store.overlapping(given.items[0][0], given.until)
    filled = union((row.start_ns, row.end_ns) for row in rows if any(row.pot(scope)))
    return IntervalSet(
        piece for low, high in filled for taken in given.within(low, high) for piece in subtract(*taken, left)
    )


def _by_start(spans: Columns, indices: Iterable[int]) -> list[int]:
    """By start; where any two are the same, all by start, end and id."""
    order = sorted(indices, key=spans.starts.__getitem__)
    starts = [spans.starts[index] for index in order]
    if any(map(eq, starts, islice(starts, 1, None))):
        order.sort(key=lambda index: (spans.starts[index], spans.ends[index], spans.keys[index]))
    return order


def _order(spans: Columns, events: list[int], shift: int) -> Iterable[int]:
    """The spans swept, by the start of their first piece; an order that does not depend on the input's.

    Where starts are the same, all are ordered by start, end and id instead.
    """
    begins = 1 << (shift - 1)
    starts = [event for event in events if event & begins]
    instants = [event >> shift for event in starts]
    order = dict.fromkeys([event & begins - 1 for event in starts])
    if any(map(eq, instants, islice(instants, 1, None))):
        return sorted(order, key=lambda index: (spans.starts[index], spans.ends[index], spans.keys[index]))
    return order


def _split_at_naming(
    pieces: list[Piece], pid: int, named_from: int, scopes: list[int], by_scope: dict[int, list[Piece]]
) -> None:
    """Step 3: time before the process was named is shared at the host's level."""
    own = by_scope.setdefault(pid, [])
    if named_from <= min(pieces, default=(named_from,))[0]:
        own += pieces
        return
    for start, end, index in pieces:
        if start >= named_from:
            own.append((start, end, index))
            continue
        scopes[index] = HOST
        by_scope.setdefault(HOST, []).append((start, min(end, named_from), index))
        if end > named_from:
            own.append((named_from, end, index))


def _sweep(store: EnergyStore, scope: int, pieces: list[Piece], spans: Columns) -> list[Interval]:
    """Steps 5 and 6 for one scope; returns the time swept, sorted and disjoint."""
    # One integer an event: instant, then whether it is a start, then the span. One sort orders them, ends first.
    shift = len(spans).bit_length() + 1
    begins = 1 << (shift - 1)
    events = [(start << shift | begins) + index for start, _, index in pieces]
    events += [(end << shift) + index for _, end, index in pieces]
    events.sort()
    order = _order(spans, events, shift)
    rows = list(store.overlapping(events[0] >> shift, events[-1] >> shift))
    for kind in range(3):
        pots = [row.pot(scope)[kind] for row in rows]
        if any(pots):
            gains, swept = _gains(events, shift, len(spans), rows, pots)
            if swept:
                _round(gains, order, swept, spans.own[kind])
    return _busy(events, shift)


def _gains(events: list[int], shift: int, count: int, rows: list[Row], pots: list[int]) -> tuple[list[int], int]:
    """What each span gets, in units of 2**-32 uJ, and the whole microjoules swept while any piece was open."""
    gains = [0] * count
    begins = 1 << (shift - 1)
    level = carry = open_pieces = swept = last = base = at = 0
    last_row = len(rows)
    begin, finish, pot = rows[0].start_ns, rows[0].end_ns, pots[0]
    width = finish - begin
    before = -1
    for event in events:
        instant = event >> shift
        if instant != before:
            before = instant
            while finish <= instant and at < last_row:
                base += pot
                at += 1
                if at < last_row:
                    begin, finish, pot = rows[at].start_ns, rows[at].end_ns, pots[at]
                    width = finish - begin
            now = base + pot * (instant - begin) // width if at < last_row and instant > begin else base
            if open_pieces and now != last:
                swept += now - last
                part, carry = divmod((now - last << FINE_BITS) + carry, open_pieces)
                level += part
            last = now
        if event & begins:
            open_pieces += 1
            gains[event & begins - 1] -= level
        else:
            open_pieces -= 1
            gains[event & begins - 1] += level
    return gains, swept


def _busy(events: list[int], shift: int) -> list[Interval]:
    """The time in which any piece is open, sorted and disjoint."""
    begins = 1 << (shift - 1)
    open_after = accumulate([1 if event & begins else -1 for event in events])
    busy: list[Interval] = []
    first = 0
    for last, event in compress(enumerate(events), map(not_, open_after)):
        low, high = events[first] >> shift, event >> shift
        if busy and busy[-1][1] == low:
            low = busy.pop()[0]
        busy.append((low, high))
        first = last + 1
    return busy


def _round(fine: list[int], order: Iterable[int], swept: int, own: list[int]) -> None:
    """Step 6. What the levels lost to their own rounding, less than a microjoule in all, is in the last part."""
    running = given = 0
    final = -1
    for index in order:
        part = fine[index]
        if part:
            running += part
            whole = running >> FINE_BITS
            own[index] += whole - given
            given = whole
            final = index
    own[final] += swept - given
