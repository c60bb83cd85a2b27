"""Spans that say what CPU time they spent: their part of the pot, beside those that do not, late or in time."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_processor.attribution import Columns, attribute
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.rows import cut
from joulegram_processor.scopes import BY_HOST, BY_PROCESS, BY_SPAN, HOST
from simulators.traces import tick, tick_batch

if TYPE_CHECKING:
    from random import Random

    from joulegram_pipeline.energy import Tick
    from joulegram_processor.claims import Claims
    from joulegram_processor.rows import Triple

PID = 11
W = 1000
"""Width of the ticks below, ns."""

MS = 1_000_000


def store_of(*ticks: Tick) -> EnergyStore:
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(*ticks))
    return store


def columns(*spans: tuple[int, int, int | None], pid: int = PID, first: int = 0) -> Columns:
    """Root spans as (start, end, CPU time)."""
    return Columns(
        starts=[span[0] for span in spans],
        ends=[span[1] for span in spans],
        keys=[(first + at).to_bytes(24, "big") for at in range(len(spans))],
        parents=[b""] * len(spans),
        pids=[pid] * len(spans),
        cpu_ns={at: span[2] for at, span in enumerate(spans) if span[2] is not None},
    )


def one_tick(seq: int, uj: int, *, process_ns: int, busy_ns: int | None = None, gpu_uj: int | None = None) -> Tick:
    """Two CPUs, of which a process spent some."""
    return tick(
        seq,
        (seq - 1) * W,
        seq * W,
        cpu_uj=uj,
        gpu_uj=gpu_uj,
        static_uj=0,
        busy_ns=process_ns if busy_ns is None else busy_ns,
        total_ns=2 * W,
        processes={PID: process_ns},
    )


def given_to(store: EnergyStore, spans: Columns, claimed: dict[int, Claims] | None = None) -> list[int]:
    attribute(store, {} if claimed is None else claimed, spans)
    return spans.own[0]


def test_two_threads_at_one_to_three() -> None:
    """Whole spans of a second beside each other share as their threads ran."""
    store = store_of(one_tick(1, 800, process_ns=1000))
    assert given_to(store, columns((0, W, 250), (0, W, 750))) == [200, 600]


def test_a_span_that_slept_gets_nothing_though_it_is_alone() -> None:
    """What another thread without a span spent is nobody's."""
    store = store_of(one_tick(1, 800, process_ns=1000))
    spans, claimed = columns((0, W, 0)), dict[int, "Claims"]()
    assert given_to(store, spans, claimed) == [0]
    assert claimed[PID].leftovers == [(0, W, (800, 0, 0))]


def test_what_a_span_did_not_spend_is_not_its() -> None:
    """A quarter of the process's CPU time gets a quarter, and no more for being alone."""
    assert given_to(store_of(one_tick(1, 800, process_ns=1000)), columns((0, W, 250))) == [200]


def test_a_span_that_does_not_say_gets_what_remains() -> None:
    """A quarter is known; the other two share the rest."""
    store = store_of(one_tick(1, 800, process_ns=1000))
    spans = columns((0, W, 250), (0, W, None), (0, W, None))
    assert given_to(store, spans) == [200, 300, 300]
    assert spans.labels == [BY_SPAN, BY_PROCESS, BY_PROCESS]


def test_more_than_the_process_spent_is_shared_in_proportion() -> None:
    """The kernel counts in jiffies and the spans in nanoseconds; nothing is given twice."""
    store = store_of(one_tick(1, 800, process_ns=500))
    assert given_to(store, columns((0, W, 500), (0, W, 250), (0, W, None))) == [533, 267, 0]


def test_energy_follows_the_process_and_not_the_clock() -> None:
    """A span over two ticks, in one of which its process slept: its energy is from the other."""
    store = store_of(one_tick(1, 900, process_ns=1000), one_tick(2, 100, process_ns=0, busy_ns=500))
    spans = columns((0, 2 * W, 1000))
    assert given_to(store, spans) == [900]


def test_a_late_span_finds_what_was_left() -> None:
    """One settled before with its quarter, one after with the other three: the same as together."""
    store, claimed = store_of(one_tick(1, 800, process_ns=1000)), dict[int, "Claims"]()
    assert given_to(store, columns((0, W, 250)), claimed) == [200]
    assert given_to(store, columns((0, W, 750), first=9), claimed) == [600]
    assert claimed[PID].leftovers == []


def test_a_late_span_that_does_not_say_shares_what_was_left() -> None:
    """The time is given, the energy is not all."""
    store, claimed = store_of(one_tick(1, 800, process_ns=1000)), dict[int, "Claims"]()
    given_to(store, columns((0, W, 250)), claimed)
    assert given_to(store, columns((0, W // 2, None), first=9), claimed) == [300]
    assert claimed[PID].leftovers == [(500, 1000, (300, 0, 0))]


def waited_for(uj: int, *, process_ns: int, descendants_ns: int) -> EnergyStore:
    """A tick in which children of the process spent a part."""
    return store_of(
        tick(
            1,
            0,
            W,
            cpu_uj=uj,
            static_uj=0,
            busy_ns=process_ns,
            total_ns=2 * W,
            processes={PID: process_ns},
            descendants={PID: descendants_ns},
        )
    )


def test_a_span_that_waits_for_a_command_has_what_the_command_spent() -> None:
    """It ran on no thread of the process: the span that is open has it, though its own threads slept."""
    store, claimed = waited_for(1000, process_ns=1000, descendants_ns=800), dict[int, "Claims"]()
    assert given_to(store, columns((0, W, 0)), claimed) == [800]
    assert claimed[PID].leftovers == [(0, W, (200, 0, 0))]


def test_spans_that_are_innermost_share_what_descendants_spent() -> None:
    """Beside what they spent themselves, equally; a span around another has no part in it."""
    store = waited_for(1000, process_ns=1000, descendants_ns=400)
    spans = columns((0, W, 100), (0, W, 300), (0, W, 200))
    spans.parents[0] = spans.keys[1]  # the second is around the first
    assert given_to(store, spans) == [100 + 200, 300, 200 + 200]


def test_a_span_that_does_not_say_has_what_descendants_spent() -> None:
    """It is the one that may have spent anything."""
    store = waited_for(1000, process_ns=1000, descendants_ns=400)
    assert given_to(store, columns((0, W, 100), (0, W, None))) == [100, 900]


def test_without_a_named_process_the_whole_host_is_the_measure() -> None:
    """On the host's pot a span gets the part its CPU time is of all that was spent there."""
    store = store_of(tick(1, 0, W, cpu_uj=900, static_uj=0, busy_ns=900, total_ns=2 * W))
    spans = columns((0, W, 300), pid=HOST)
    assert given_to(store, spans) == [300]
    assert (spans.scopes, spans.labels) == ([HOST], [BY_SPAN])


def test_ticks_that_count_no_cpu_time_leave_the_length_of_the_span() -> None:
    """A source that knows energy alone: half a CPU gets half of it."""
    store = store_of(tick(1, 0, W, cpu_uj=900))
    assert given_to(store, columns((0, W, 500), pid=HOST)) == [450]


def test_gpu_energy_has_no_cpu_key() -> None:
    """A span that slept on the CPU shares the boards all the same; the one that names its board has it alone."""
    store = store_of(tick(1, 0, W, cpu_uj=0, gpu_uj=600, static_uj=0, busy_ns=10, total_ns=2 * W, processes={PID: 10}))
    shared = columns((0, W, 0), (0, W, None), pid=HOST)
    attribute(store, {}, shared)
    assert shared.own[2] == [300, 300]
    named = columns((0, W, 0), (0, W, None))
    board = store.resolve("board/0", lambda scope, start_ns, end_ns: False)
    named.boards = {0: board}
    attribute(store, {}, named)
    assert (named.own[2], named.labels) == ([600, 0], [BY_SPAN, BY_PROCESS])


def test_a_host_label_where_nothing_is_known() -> None:
    """No key and no CPU time: the host."""
    spans = columns((0, W, None), pid=77)
    attribute(store_of(one_tick(1, 800, process_ns=0)), {}, spans)
    assert spans.labels == [BY_HOST]


Spec = tuple[int, int, int | None]
"""Start, length and CPU time."""

SPANS = st.lists(
    st.tuples(
        st.integers(0, 3 * W).map(MS.__mul__),
        st.integers(0, 2 * W).map(MS.__mul__),
        st.none() | st.integers(0, 2 * W).map(MS.__mul__),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def stores(draw: st.DrawFn) -> EnergyStore:
    """Four ticks, some with a gap before them, some without CPU time."""
    ticks = []
    at = draw(st.integers(0, 300))
    for seq in range(1, 5):
        width = draw(st.sampled_from((W, W, 900, 1234)))
        spent = draw(st.none() | st.integers(0, 2 * W))
        ticks.append(
            tick(
                seq,
                MS * at,
                MS * (at + width),
                cpu_uj=draw(st.none() | st.integers(0, 10**7)),
                dram_uj=draw(st.none() | st.integers(0, 50)),
                gpu_uj=draw(st.none() | st.integers(0, 10**6)),
                busy_ns=None if spent is None else MS * (spent + draw(st.integers(0, W))),
                total_ns=None if spent is None else 4 * MS * W,
                processes={} if spent is None else {PID: MS * spent},
                descendants={} if spent is None else {PID: draw(st.sampled_from((0, 0, MS * spent // 3)))},
            )
        )
        at += width + draw(st.sampled_from((0, 0, 77)))
    return store_of(*ticks)


def unclaimed(store: EnergyStore, claimed: dict[int, Claims], scope: int) -> list[int]:
    """Energy of a scope outside the time that was given, and what is left inside it."""
    out = [0, 0, 0]
    for row in store.rows:
        pots: list[Triple] = [row.pot(scope)]
        if scope in claimed:
            free = claimed[scope].left(row.start_ns, row.end_ns)
            pots = [cut(row, row.pot(scope), *window) for window in free]
        for pot in pots:
            out = [have + more for have, more in zip(out, pot, strict=True)]
    for _, _, left in claimed[scope].leftovers if scope in claimed else ():
        out = [have + more for have, more in zip(out, left, strict=True)]
    return out


@given(stores(), st.lists(SPANS, min_size=1, max_size=4), st.lists(st.sampled_from((PID, HOST)), min_size=4))
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_and_nothing_given_twice(store: EnergyStore, groups: list[list[Spec]], pids: list[int]) -> None:
    """Law, after every settlement and for every kind: given + what is left = the pots, to the microjoule."""
    claimed: dict[int, Claims] = {}
    scopes = store.scopes()
    whole = [sum(unclaimed(store, {}, scope)[kind] for scope in scopes) for kind in range(3)]
    spent = [0, 0, 0]
    for number, (group, pid) in enumerate(zip(groups, pids, strict=False)):
        spans = columns(*((start, start + length, cpu) for start, length, cpu in group), pid=pid, first=10 * number)
        attribute(store, claimed, spans)
        assert all(uj >= 0 for column in spans.own for uj in column)
        spent = [have + sum(column) for have, column in zip(spent, spans.own, strict=True)]
        left = [sum(unclaimed(store, claimed, scope)[kind] for scope in scopes) for kind in range(3)]
        assert [have + more for have, more in zip(spent, left, strict=True)] == whole
        assert all(have >= 0 for have in left)


@given(stores(), SPANS, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_spans_changes_nothing(store: EnergyStore, group: list[Spec], rng: Random) -> None:
    """Law: spans settled together get the same in whatever order they stand."""
    spans = [(start, start + length, cpu) for start, length, cpu in group]
    order = list(range(len(spans)))
    rng.shuffle(order)
    one, other = columns(*spans), columns(*(spans[at] for at in order))
    other.keys = [one.keys[at] for at in order]
    attribute(store, {}, one)
    attribute(store, {}, other)
    assert [[column[at] for at in order] for column in one.own] == list(map(list, other.own))


@given(stores(), SPANS, SPANS, st.sampled_from((PID, HOST)))
@settings(max_examples=150, deadline=None)
def test_another_span_takes_from_others_no_more_than_it_gets(
    store: EnergyStore, group: list[Spec], more: list[Spec], pid: int
) -> None:
    """Law: with one span more in the process nobody gains, and all lose together what it gets."""
    mine = [(start, start + length, cpu) for start, length, cpu in group]
    start, length, cpu = more[0]
    alone, both = columns(*mine), columns(*mine, (start, start + length, cpu))
    both.pids = [*alone.pids, pid]
    attribute(store, {}, alone)
    attribute(store, {}, both)
    for kind in range(3):
        lost = [before - after for before, after in zip(alone.own[kind], both.own[kind][:-1], strict=True)]
        if pid == HOST and HOST not in alone.scopes:
            assert not any(lost)
        assert all(uj >= -1 for uj in lost)
        assert -len(mine) <= sum(lost) <= both.own[kind][-1] + len(mine)


@pytest.mark.parametrize("board", [False, True])
def test_what_is_told_in_one_scope_changes_no_rounding_in_another(board: bool) -> None:
    """Law: a span of the host's that says its CPU time, or its board, moves no microjoule between a process's spans."""
    spans = ((0, 112, None), (1, 2, None))
    store = store_of(one_tick(1, 10, process_ns=1000, gpu_uj=7))
    alone, both = columns(*spans), columns(*spans, (0, 0, None if board else 0))
    both.pids = [PID, PID, HOST]
    both.boards = {2: -1} if board else {}
    attribute(store, {}, alone)
    attribute(store, {}, both)
    assert [own[:2] for own in both.own] == list(alone.own)
    assert sum(alone.own[0]) == 1


def oracle(store: EnergyStore, spans: list[Spec]) -> list[Fraction]:
    """CPU energy in fractions, elementary interval by elementary interval, all in one scope and none before."""
    edges = sorted(
        {edge for start, end, _ in spans for edge in (start, end)}
        | {edge for row in store.rows for edge in (row.start_ns, row.end_ns)}
    )
    weights: list[Fraction | None] = []
    for start, end, cpu in spans:
        if cpu is None or start == end:
            weights.append(None if cpu is None else Fraction(0))
            continue
        overlaps = [(row, max(0, min(end, row.end_ns) - max(start, row.start_ns))) for row in store.rows]
        covered = sum(overlap for _, overlap in overlaps)
        parts = [Fraction(row.cpu_ns.get(HOST, 0) * ns, row.end_ns - row.start_ns) for row, ns in overlaps]
        whole = sum(parts, Fraction(0))
        mine = Fraction(cpu * covered, end - start)
        weights.append(min(Fraction(1), mine / (whole or covered)) if covered else Fraction(0))
    shares = [Fraction(0)] * len(spans)
    for low, high in pairwise(edges):
        row = next((row for row in store.rows if row.start_ns <= low and high <= row.end_ns), None)
        if row is None:
            continue
        energy = Fraction(row.host[0] * (high - low), row.end_ns - row.start_ns)
        open_now = [at for at, (start, end, _) in enumerate(spans) if start <= low and high <= end]
        known = {at: weight for at in open_now if (weight := weights[at]) is not None}
        others = [at for at in open_now if weights[at] is None]
        scale = max(Fraction(1), sum(known.values(), Fraction(0)))
        for at, weight in known.items():
            shares[at] += energy * weight / scale
        for at in others:
            shares[at] += energy * (1 - sum(known.values(), Fraction(0)) / scale) / len(others)
    return shares


@given(stores(), SPANS)
@settings(max_examples=200, deadline=None)
def test_the_parts_are_those_of_exact_arithmetic(store: EnergyStore, group: list[Spec]) -> None:
    """Against fractions: within the microjoules that rounding moves between spans."""
    spans = [(start, start + length, cpu) for start, length, cpu in group]
    made = columns(*spans, pid=HOST)
    attribute(store, {}, made)
    for got, wanted in zip(made.own[0], oracle(store, spans), strict=True):
        assert abs(got - wanted) <= len(spans) + 2, (got, float(wanted))


@pytest.mark.parametrize("cpu", [-1, 2**62, True, 1.5, "7"])
def test_a_cpu_time_that_cannot_be_one_is_none(cpu: object) -> None:
    """What a span says is checked before it is believed."""
    from joulegram_processor.spans import spent_ns

    assert spent_ns({"joulegram.cpu_ns": cpu}) is None
