"""Whose energy it was: the time a span is innermost in its scope, and its part of the pot at that time.

Invariants:
    * Σ of what the spans of a settlement get = the energy of the time they claim, per kind, to the microjoule;
    * time once claimed in a scope is never given again, so a span that comes late shares what is left;
    * the result depends on the set of spans settled together, not on their order.

Procedure, for spans settled together:
    1. Nest: a span's children are those that name it as parent within the same process; a cycle of them nests nobody.
    2. A span is innermost where it is open and no descendant is: its interval less the union of theirs.
    3. Each such piece lies in a scope: the span's process from the moment it was named, before that the host.
    4. Take away the time that was claimed before.
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
from joulegram_processor.attribution_cpu import FINE_BITS, Part, ScopeCpu, divide
from joulegram_processor.claims import Claims
from joulegram_processor.intervals import subtract, union
from joulegram_processor.scopes import BY_SPAN, HOST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_processor.energy_store import EnergyStore
    from joulegram_processor.intervals import Interval
    from joulegram_processor.rows import Row, Triple

Piece = tuple[int, int, int]
"""Start, end, and the index of the span it belongs to."""


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


def attribute(store: EnergyStore, claimed: dict[int, Claims], spans: Columns) -> None:
    """Fill `own`, `scopes` and `labels` of spans settled together, and extend what is claimed."""
    equally = not spans.cpu_ns and not spans.boards and not _anything_left(claimed, spans)
    if not equally or native.LOADED is None or not _attribute_natively(native.LOADED, store, claimed, spans):
        attribute_in_python(store, claimed, spans, equally=equally)
    labels = {scope: store.label(scope) for scope in set(spans.scopes)}
    spans.labels = list(map(labels.__getitem__, spans.scopes))
    for index in spans.cpu_ns:
        spans.labels[index] = BY_SPAN


def _anything_left(claimed: dict[int, Claims], spans: Columns) -> bool:
    """Whether time these spans may want was given with something left over."""
    left = [times.leftovers[-1][1] for times in claimed.values() if times.leftovers]
    return bool(left) and bool(spans.starts) and max(left) > min(spans.starts)


def _attribute_natively(module: Any, store: EnergyStore, claimed: dict[int, Claims], spans: Columns) -> bool:
    """`attribute` by the native module; nothing is changed where it refuses, as at the instant of naming."""
    count, named = len(spans), store.named_from
    if not count:
        return False
    alone = named.keys().isdisjoint(spans.pids)
    homes = [HOST] * count if alone else [pid if pid in named else HOST for pid in spans.pids]
    spans.nest()
    pieces = module.innermost(spans.starts, spans.ends, spans.above, None if alone else homes)
    if pieces is None:
        return False
    first, last = min(spans.starts), max(spans.ends)
    own = ([0] * count, [0] * count, [0] * count)
    swept: dict[int, list[Interval]] = {}
    for scope in dict.fromkeys(homes):
        taken = claimed[scope].reaching(first) if scope in claimed else []
        rows = [(row.start_ns, row.end_ns, *row.pot(scope)) for row in store.overlapping(first, last)]
        since = 0 if scope == HOST else named[scope]
        busy = module.sweep(
            pieces, scope, None if alone else homes, since, taken, rows, spans.starts, spans.ends, spans.keys, own
        )
        if busy is None:
            return False
        swept[scope] = busy
    spans.own, spans.scopes = own, homes
    for scope, busy in swept.items():
        claimed.setdefault(scope, Claims()).give(busy, store.watermark_ns)
    return True


def attribute_in_python(
    store: EnergyStore, claimed: dict[int, Claims], spans: Columns, *, equally: bool = True
) -> None:
    """`attribute` where the native module is not there, or refuses the spans; its labels are filled by the caller.

    Args:
        store: the node's energy.
        claimed: time given before, by scope.
        spans: those settled together.
        equally: whether no span says what it spent or names a board, and nothing is left of what they may want.
    """
    count = len(spans)
    spans.own = ([0] * count, [0] * count, [0] * count)
    named = store.named_from
    pids = set(spans.pids)
    if pids.isdisjoint(named):
        spans.scopes = [HOST] * count
        groups: dict[int, list[int] | range] = {HOST: range(count)}
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

    if not equally:
        _attribute_by_cpu(store, claimed, spans, homes, by_scope)
        return
    for scope, wanted in by_scope.items():
        taken = claimed.setdefault(scope, Claims())
        until = taken.until
        left = [piece for piece in wanted if piece[0] >= until and piece[0] < piece[1]]
        if len(left) < len(wanted):
            left += [
                (low, high, index)
                for start, end, index in wanted
                if start < until
                for low, high in taken.left(start, end)
            ]
        if left:
            taken.give(_sweep(store, scope, left, spans), store.watermark_ns)


def _attribute_by_cpu(
    store: EnergyStore,
    claimed: dict[int, Claims],
    spans: Columns,
    homes: list[int],
    by_scope: dict[int, list[Piece]],
) -> None:
    """Steps 4 to 7 where spans say what they spent, as attribution_cpu.py has them.

    A span that does is open from its start to its end, whatever is below it: its CPU time is its own already.
    """
    at_home: dict[int, list[Piece]] = {}
    for index in spans.cpu_ns:
        at_home.setdefault(homes[index], []).append((spans.starts[index], spans.ends[index], index))
    whole: dict[int, list[Piece]] = {HOST: at_home.pop(HOST, [])}
    for scope, pieces in at_home.items():
        _split_at_naming(pieces, scope, store.named_from[scope], spans.scopes, whole)
    cpu_parts: dict[int, list[Part]] = {}
    gpu_parts: dict[int, list[Part]] = {}
    for scope, pieces in whole.items():
        if pieces:
            cpu = ScopeCpu(store, scope, min(piece[0] for piece in pieces), max(piece[1] for piece in pieces))
            parts = cpu_parts.setdefault(scope, [])
            for start, end, index in pieces:
                if start < end:
                    length = spans.ends[index] - spans.starts[index]
                    weight = cpu.weight(spans.cpu_ns[index] * (end - start) // length, start, end)
                    parts.append((start, end, index, weight))
    with_gpu = any(row.kinds[2] for row in store.overlapping(min(spans.starts), max(spans.ends)))
    for scope, pieces in by_scope.items():
        equal = [(*piece, None) for piece in pieces if piece[0] < piece[1]]
        cpu_parts.setdefault(scope, []).extend([part for part in equal if part[2] not in spans.cpu_ns])
        if with_gpu:  # else there is nothing to share, and what is open for it is open for CPU energy
            for part in equal:
                gpu_parts.setdefault(spans.boards.get(part[2], scope), []).append(part)
    for scope in sorted(cpu_parts.keys() | gpu_parts.keys()):
        by_cpu, by_board = cpu_parts.get(scope, []), gpu_parts.get(scope, [])
        indices = {part[2] for part in (*by_cpu, *by_board)}
        order = [at[3] for at in sorted([(spans.starts[at], spans.ends[at], spans.keys[at], at) for at in indices])]
        shares = divide(store, scope, claimed.setdefault(scope, Claims()), by_cpu, by_board, order)
        for own, gains in zip(spans.own, shares, strict=True):
            if any(gains):
                for index, gain in zip(order, gains, strict=True):
                    own[index] += gain


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
    for start, end, index in pieces:
        if start >= named_from:
            own.append((start, end, index))
            continue
        scopes[index] = HOST
        by_scope.setdefault(HOST, []).append((start, min(end, named_from), index))
        if end > named_from:
            own.append((named_from, end, index))


def innermost(spans: Columns, members: Iterable[int], homes: list[int], *, whole: bool) -> list[Piece]:
    """The pieces of time in which a member is open and none of its descendants among the members is.

    Args:
        spans: the columns, nested.
        members: indices of the spans of one process.
        homes: the process each span is nested in, by index.
        whole: whether the members are all there are.
    """
    starts, ends = spans.starts, spans.ends
    children: dict[int, list[int]] = {}
    if whole:
        children = dict(spans.below)
    else:
        for index in members:
            same = [child for child in spans.below.get(index, ()) if homes[child] == homes[index]]
            if same:
                children[index] = same
    pieces = [(starts[index], ends[index], index) for index in members if index not in children]
    if not children:
        return pieces

    covers: dict[int, list[Interval]] = {}
    for index in _children_first(children):
        inner: list[Interval] = []
        for child in children[index]:
            if child in covers:
                inner += covers.pop(child)
            else:
                inner.append((starts[child], ends[child]))
        inner = union(inner)
        start, end = starts[index], ends[index]
        pieces += [(low, high, index) for low, high in subtract(start, end, inner)]
        if spans.above[index] is not None:  # else nobody will ask what it covers
            covers[index] = union((*inner, (start, end)))
    return pieces


def _children_first(children: dict[int, list[int]]) -> list[int]:
    """The spans that have children, each after those below it; the arcs of a cycle of parents are cut."""
    above = {child: index for index, group in children.items() for child in group if child in children}
    order = _downwards(children, [index for index in children if index not in above])
    if len(order) < len(children):  # the rest is cycles and what hangs below them
        reached = set(order)
        looping = _cycles(above, [index for index in children if index not in reached])
        for index in looping:
            children[index] = [child for child in children[index] if child not in looping]
        order += _downwards(children, list(looping))
    order.reverse()
    return order


def _downwards(children: dict[int, list[int]], roots: list[int]) -> list[int]:
    """The spans that have children, each after the one above it."""
    order: list[int] = []
    stack = roots
    while stack:
        index = stack.pop()
        order.append(index)
        stack += [child for child in children[index] if child in children]
    return order


def _cycles(above: dict[int, int], suspects: list[int]) -> set[int]:
    """Those of the suspects that are their own ancestors."""
    looping: set[int] = set()
    done: set[int] = set()
    for index in suspects:
        path: list[int] = []
        at = index
        while at not in done:
            done.add(at)
            path.append(at)
            at = above[at]
        if at in path:
            looping.update(path[path.index(at) :])
    return looping


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


def add_up(spans: Columns, carried: dict[bytes, Triple]) -> None:
    """Fill `kids`: what settled descendants add to each span; what has no parent here is carried for one to come.

    A cycle of parents adds nothing: no member of it is a descendant of another.
    """
    count = len(spans)
    keys, parents = spans.keys, spans.parents
    kids = spans.kids = ([0] * count, [0] * count, [0] * count)
    if carried:
        for index, key in enumerate(keys):
            if key in carried:
                for kind, uj in enumerate(carried.pop(key)):
                    kids[kind][index] = uj
    spans.nest()
    above, below = spans.above, spans.below
    for index, parent in enumerate(above):
        if parent is None and parents[index] and index not in below:
            _carry(spans, index, carried)
    active = [kind for kind in range(3) if any(spans.own[kind]) or any(kids[kind])]
    for kind in active:
        own, more = spans.own[kind], kids[kind]
        for parent, children in below.items():
            more[parent] += sum(own[child] + more[child] for child in children if child not in below)
    waiting = {parent: sum(child in below for child in children) for parent, children in below.items()}
    ready = [parent for parent, left in waiting.items() if not left]
    while ready:
        index = ready.pop()
        parent = above[index]
        if parent is None:
            if parents[index]:
                _carry(spans, index, carried)
            continue
        for kind in active:
            kids[kind][parent] += spans.own[kind][index] + kids[kind][index]
        waiting[parent] -= 1
        if not waiting[parent]:
            ready.append(parent)


def _carry(spans: Columns, index: int, carried: dict[bytes, Triple]) -> None:
    key = spans.parents[index]
    held = carried.get(key, (0, 0, 0))
    cpu, dram, gpu = (held[kind] + spans.own[kind][index] + spans.kids[kind][index] for kind in range(3))
    carried[key] = (cpu, dram, gpu)
