from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from joulegram_processor.attribution import Columns, attribute
from joulegram_processor.energy_store import HOST, EnergyStore
from joulegram_processor.inclusive import add_up
from simulators.traces import tick, tick_batch

if TYPE_CHECKING:
    from joulegram_pipeline.energy import Tick
    from joulegram_processor.claims import Claims
    from joulegram_processor.energy_store import Triple

Spec = tuple[int, int, int | None, int]
"""Start, length, number of the parent (None: a root; beyond the last: a stranger), pid."""

PIDS = (0, 11, 12, 13)
NAMED = PIDS[1:3]
END = 120

KIND_UJ = st.one_of(st.none(), st.integers(0, 40), st.integers(0, 10**9))


@st.composite
def ticks(draw: st.DrawFn) -> list[Tick]:
    """Ticks with gaps in time, kinds that were not read, idle known or not, processes that come and go."""
    out = []
    at = draw(st.integers(0, 20))
    for seq in range(draw(st.integers(0, 6))):
        at += draw(st.sampled_from((0, 0, 0, 7)))
        width = draw(st.integers(1, 30))
        processes = {pid: draw(st.integers(0, 9)) for pid in NAMED if draw(st.booleans())}
        cpu_uj = draw(KIND_UJ)
        out.append(
            tick(
                seq + 1,
                at,
                at + width,
                cpu_uj=cpu_uj,
                dram_uj=draw(KIND_UJ),
                gpu_uj=draw(KIND_UJ),
                static_uj=draw(st.one_of(st.none(), st.integers(0, 50))) if cpu_uj is not None else None,
                busy_ns=draw(st.one_of(st.none(), st.integers(0, 30))),
                total_ns=draw(st.one_of(st.none(), st.integers(0, 60))),
                processes=processes,
            )
        )
        at += width
    return out


@st.composite
def trees(draw: st.DrawFn) -> list[Spec]:
    """Spans that overlap, nest, outlive their parents, name each other in circles, have no length, or are twins."""
    count = draw(st.integers(1, 9))
    spans: list[Spec] = []
    for number in range(count):
        if number and draw(st.integers(0, 4)) == 0:
            start, length = spans[-1][:2]
        else:
            start, length = draw(st.integers(0, END - 30)), draw(st.integers(0, 60))
        parent = draw(st.one_of(st.none(), st.integers(0, count)))
        spans.append((start, length, parent, draw(st.sampled_from(PIDS))))
    return spans


def key(number: int) -> bytes:
    return b"t" * 16 + (number + 1).to_bytes(8, "big")


def columns(spans: list[Spec], numbers: list[int]) -> Columns:
    """The chosen spans as columns, in the order given."""
    parents = [spans[number][2] for number in numbers]
    return Columns(
        starts=[spans[number][0] for number in numbers],
        ends=[spans[number][0] + spans[number][1] for number in numbers],
        keys=[key(number) for number in numbers],
        parents=[b"" if parent is None else key(parent) for parent in parents],
        pids=[spans[number][3] for number in numbers],
    )


def store_of(made: list[Tick], *, share_idle: bool = False) -> EnergyStore:
    store = EnergyStore(retention_ns=10**9, share_idle=share_idle)
    store.add(tick_batch(*made))
    return store


def by_number(spans: Columns) -> dict[bytes, tuple[int, int, int]]:
    return {name: (spans.own[0][at], spans.own[1][at], spans.own[2][at]) for at, name in enumerate(spans.keys)}


def descendants(spans: list[Spec], members: list[int], number: int) -> set[int]:
    """Those below a span among the members; a circle of parents nests nobody, so its arcs are no arcs."""
    inside = set(members)

    def above(child: int) -> int | None:
        parent = spans[child][2]
        return parent if parent in inside and parent != child else None

    def circular(child: int) -> bool:
        at = above(child)
        for _ in members:
            if at is None or at == child:
                break
            at = above(at)
        return at == child

    found: set[int] = set()
    for child in members:
        at: int | None = child
        for _ in range(len(members) + 1):
            if at is None or circular(at):
                break
            at = above(at)
            if at == number:
                found.add(child)
                break
    return found - {number}


def oracle(store: EnergyStore, spans: list[Spec]) -> list[list[Fraction]]:
    """What each span should get of each kind: elementary interval by elementary interval, as fractions.

    Energy inside a tick follows the floored cumulative count, the store's own rule, so that the parts are whole.
    """
    shares = [[Fraction(0)] * 3 for _ in spans]
    named = store.named_from
    home = [pid if pid in named else HOST for *_, pid in spans]
    below = [
        descendants(spans, [other for other in range(len(spans)) if home[other] == home[number]], number)
        for number in range(len(spans))
    ]
    edges = {edge for start, length, *_ in spans for edge in (start, start + length)}
    edges |= {edge for row in store.rows for edge in (row.start_ns, row.end_ns)} | set(named.values())
    for low, high in pairwise(sorted(edges)):
        is_open = [start <= low and high <= start + length for start, length, *_ in spans]
        inner: dict[int, list[int]] = {}
        for number, opened in enumerate(is_open):
            if opened and not any(is_open[child] for child in below[number]):
                scope = home[number] if home[number] == HOST or low >= named[home[number]] else HOST
                inner.setdefault(scope, []).append(number)
        for scope, numbers in inner.items():
            for kind, uj in enumerate(store.energy(low, high, scope)):
                for number in numbers:
                    shares[number][kind] += Fraction(uj, len(numbers))
    return shares


def total_of(store: EnergyStore) -> tuple[int, int, int]:
    """What the domains counted, kind by kind."""
    rows = [row.measured for row in store.rows]
    return sum(row[0] for row in rows), sum(row[1] for row in rows), sum(row[2] for row in rows)


def unclaimed(store: EnergyStore, claimed: dict[int, Claims], scope: int) -> Triple:
    """What is left in a pot outside the time that was claimed."""
    left = list(store.energy(0, 10**6, scope))
    for low, high in claimed[scope].items if scope in claimed else ():
        for kind, uj in enumerate(store.energy(low, high, scope)):
            left[kind] -= uj
    return left[0], left[1], left[2]


@given(ticks(), trees(), st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_energy_is_conserved_in_any_grouping(
    made: list[Tick], spans: list[Spec], share_idle: bool, data: st.DataObject
) -> None:
    """Law (D-11, S0-66): Σ own + idle + other + unattributed = measured per kind, 0 uJ off; nothing is negative.

    Where one tick alone has energy, that is the law of this tick.
    """
    if data.draw(st.booleans()) and made:
        alone = data.draw(st.sampled_from(made))
        made = [one if one is alone else replace(one, energy_uj=dict.fromkeys(one.energy_uj, 0)) for one in made]
    store = store_of(made, share_idle=share_idle)
    claimed: dict[int, Claims] = {}
    order = data.draw(st.permutations(range(len(spans))))
    cut = sorted({0, len(spans), *data.draw(st.lists(st.integers(0, len(spans)), max_size=3))})
    given_uj = [0, 0, 0]
    for low, high in pairwise(cut):
        group = columns(spans, order[low:high])
        before = {scope: unclaimed(store, claimed, scope) for scope in store.scopes()}
        attribute(store, claimed, group)
        after = {scope: unclaimed(store, claimed, scope) for scope in store.scopes()}
        for kind in range(3):
            assert min(group.own[kind], default=0) >= 0
            spent = sum(before[scope][kind] - after[scope][kind] for scope in before)
            assert sum(group.own[kind]) == spent  # each settlement is paid by the time it claims, and by no other
            given_uj[kind] += spent
    for kind in range(3):
        idle = sum(row.idle[kind] for row in store.rows)
        other = unclaimed(store, claimed, HOST)[kind]
        unattributed = sum(unclaimed(store, claimed, pid)[kind] for pid in store.named_from)
        assert min(idle, other, unattributed) >= 0
        assert given_uj[kind] + idle + other + unattributed == total_of(store)[kind]


LATE = [
    tick(1, 0, 10, cpu_uj=1000, busy_ns=10, total_ns=10),
    tick(2, 10, 20, cpu_uj=1000, busy_ns=10, total_ns=10, processes={11: 5}),
]


@given(ticks(), trees())
@example(LATE, [(0, 20, None, 11), (5, 10, 0, 0)])
@example(LATE, [(0, 10, 1, 0), (0, 10, 0, 0)])
@settings(max_examples=400, deadline=None)
def test_each_share_is_the_oracles_within_a_microjoule(made: list[Tick], spans: list[Spec]) -> None:
    """Law (D-11, C-49): an equal part of the pot among the innermost of a scope, to within 1 uJ a scope."""
    store = store_of(made)
    group = columns(spans, list(range(len(spans))))
    attribute(store, {}, group)
    wanted = oracle(store, spans)
    for number in range(len(spans)):
        for kind in range(3):
            # A span whose time lies in two scopes is rounded in both.
            limit = 2 if spans[number][3] in store.named_from else 1
            off = abs(group.own[kind][number] - wanted[number][kind])
            assert off <= limit, (number, kind, group.own[kind][number], wanted[number][kind])


@given(ticks(), trees(), st.data())
@example(LATE, [(0, 10, 1, 0), (3, 10, 0, 0)], None)
@example(LATE, [(0, 20, None, 11), (5, 10, 0, 0)], None)
@settings(max_examples=300, deadline=None)
def test_the_order_of_spans_is_nothing(made: list[Tick], spans: list[Spec], data: st.DataObject | None) -> None:
    """Law: spans settled together get the same, however the log had them ordered."""
    forward = list(range(len(spans)))
    order = forward[::-1] if data is None else data.draw(st.permutations(forward))
    one, other = columns(spans, forward), columns(spans, list(order))
    claims: tuple[dict[int, Claims], dict[int, Claims]] = ({}, {})
    for group, claimed in zip((one, other), claims, strict=True):
        attribute(store_of(made), claimed, group)
        add_up(group, {})
    assert by_number(one) == by_number(other)
    assert dict(zip(one.keys, one.scopes, strict=True)) == dict(zip(other.keys, other.scopes, strict=True))
    assert {scope: times.items for scope, times in claims[0].items()} == {
        scope: times.items for scope, times in claims[1].items()
    }
    for kind in range(3):
        assert dict(zip(one.keys, one.kids[kind], strict=True)) == dict(zip(other.keys, other.kids[kind], strict=True))


@given(ticks(), trees(), trees())
@settings(max_examples=200, deadline=None)
def test_time_claimed_is_never_given_again(made: list[Tick], first: list[Spec], second: list[Spec]) -> None:
    """Law: the same spans settled again get nothing, and late ones at most what was left (C-49)."""
    store = store_of(made)
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, columns(first, list(range(len(first)))))
    again = columns(first, list(range(len(first))))
    attribute(store, claimed, again)
    assert not any(map(any, again.own))
    left = [sum(unclaimed(store, claimed, scope)[kind] for scope in store.scopes()) for kind in range(3)]
    late = columns(second, list(range(len(second))))
    attribute(store, claimed, late)
    assert all(sum(late.own[kind]) <= left[kind] for kind in range(3))


def test_a_late_span_shares_what_is_left() -> None:
    """By hand: 10 uJ in 10 ns; 4 ns were claimed, so a span over all of it gets 6 uJ."""
    store = store_of([tick(1, 0, 10, cpu_uj=10)])
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, columns([(3, 4, None, 0)], [0]))
    late = columns([(0, 10, None, 0)], [0])
    attribute(store, claimed, late)
    assert late.own == ([6], [0], [0])
    assert claimed[HOST].items == [(0, 10)]


def test_a_process_named_late_is_of_the_host_before() -> None:
    """S0-06: before its process was named a span shares the host's pot, and says host; its child there nests in it."""
    store = store_of(LATE)
    group = columns([(5, 10, None, 11), (12, 4, None, 11), (0, 20, None, 12)], [0, 1, 2])
    attribute(store, {}, group)
    assert store.named_from == {11: 10}
    # 5..10 of the host's 1000, shared with the unnamed 12; then 10..15 of the 500 of process 11, in part shared.
    assert group.own[0] == [250 + 100 + 75, 75 + 50, 250 + 500 + 500]
    assert group.scopes == [HOST, 11, HOST]


def test_a_host_child_does_not_count_its_parents_process_twice() -> None:
    """A child of another process nests only in spans of its own (design section 4): the parent has one piece."""
    store = store_of(LATE)
    for numbers in ([0, 1], [1, 0]):
        group = columns([(0, 20, None, 11), (0, 10, 0, 0)], numbers)
        attribute(store, {}, group)
        # In 0..10 both are the host's and innermost; in 10..20 the process has its own 500.
        assert by_number(group) == {key(0): (1000, 0, 0), key(1): (500, 0, 0)}


def test_a_circle_of_parents_nests_nobody() -> None:
    """Spans that name each other as parents are neighbours: they share, and none is lost for it."""
    store = store_of([tick(1, 0, 10, cpu_uj=100)])
    for numbers in ([0, 1, 2], [2, 1, 0]):
        group = columns([(0, 10, 1, 0), (0, 10, 0, 0), (0, 5, 0, 0)], numbers)
        attribute(store, {}, group)
        # The third hangs below the circle and takes the first one's place while it is open.
        assert by_number(group) == {key(0): (25, 0, 0), key(1): (50, 0, 0), key(2): (25, 0, 0)}


def test_a_child_that_outlives_its_parent_keeps_its_own_time() -> None:
    """The parent is innermost only where no child is open; the child's tail is the child's."""
    store = store_of([tick(1, 0, 10, cpu_uj=1000)])
    group = columns([(0, 6, None, 0), (4, 6, 0, 0)], [0, 1])
    attribute(store, {}, group)
    assert group.own[0] == [400, 600]
    add_up(group, {})
    assert group.kids[0] == [600, 0]


@given(ticks(), trees())
@settings(max_examples=200, deadline=None)
def test_what_is_added_up_is_the_descendants_own(made: list[Tick], spans: list[Spec]) -> None:
    """Law: kids = Σ own of all below, over processes; a circle of parents adds nothing (D-24)."""
    group = columns(spans, list(range(len(spans))))
    attribute(store_of(made), {}, group)
    add_up(group, {})
    everyone = list(range(len(spans)))
    for number in everyone:
        below = descendants(spans, everyone, number)
        for kind in range(3):
            assert group.kids[kind][number] == sum(group.own[kind][child] for child in below)


@given(ticks(), trees(), st.data())
@settings(max_examples=200, deadline=None)
def test_children_settled_before_their_parent_are_carried(
    made: list[Tick], shaped: list[Spec], data: st.DataObject
) -> None:
    """Law: settled children first, in any cut, a parent still has all of its descendants' energy."""
    # A tree in which each names an earlier one, settled from the leaves up.
    spans = [
        (start, length, None if parent is None or number == 0 else parent % number, pid)
        for number, (start, length, parent, pid) in enumerate(shaped)
    ]
    order = list(range(len(spans)))[::-1]
    cut = sorted({0, len(spans), *data.draw(st.lists(st.integers(0, len(spans)), max_size=3))})
    carried: dict[bytes, Triple] = {}
    claimed: dict[int, Claims] = {}
    store = store_of(made)
    own: dict[bytes, tuple[int, int, int]] = {}
    kids: dict[bytes, tuple[int, int, int]] = {}
    for low, high in pairwise(cut):
        group = columns(spans, order[low:high])
        attribute(store, claimed, group)
        add_up(group, carried)
        own |= by_number(group)
        kids |= {name: (group.kids[0][at], group.kids[1][at], group.kids[2][at]) for at, name in enumerate(group.keys)}
    assert carried == {}
    for number in range(len(spans)):
        below = descendants(spans, list(range(len(spans))), number)
        assert kids[key(number)] == tuple(sum(own[key(child)][kind] for child in below) for kind in range(3))
