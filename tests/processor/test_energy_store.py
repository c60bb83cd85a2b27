from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_pipeline.energy import KINDS, Domain, DomainKind, Method, Tick
from joulegram_processor.energy_store import HOST, ZERO, EnergyStore, Row, cut, split_tick
from simulators.traces import CPU, DOMAINS, tick, tick_batch

SOCKETS = (*DOMAINS, Domain("package-1", DomainKind.CPU))
BY_ID = {domain.id: domain for domain in SOCKETS}
UJ = st.one_of(st.integers(0, 9), st.integers(0, 10**12))
CPU_NS = st.one_of(st.none(), st.integers(0, 40), st.integers(0, 10**11))


@st.composite
def any_ticks(draw: st.DrawFn) -> Tick:
    """A tick of which any part may be missing."""
    start = draw(st.integers(0, 100))
    return Tick(
        seq=1,
        start_ns=start,
        end_ns=start + draw(st.integers(1, 10**9)),
        energy_uj={name: draw(UJ) for name in [*BY_ID, "unheard-of"] if draw(st.booleans())},
        static_uj={name: draw(UJ) for name in BY_ID if draw(st.booleans())},
        cpu_busy_ns=draw(CPU_NS),
        cpu_total_ns=draw(CPU_NS),
        process_cpu_ns={pid: draw(st.integers(0, 50)) for pid in (5, 6, 7) if draw(st.booleans())},
    )


def split(one: Tick, *, share_idle: bool = False) -> Row:
    return split_tick(one, BY_ID, Method.MEASURED, None, share_idle=share_idle)


def store_of(*ticks: Tick, **options: Any) -> EnergyStore:
    store = EnergyStore(retention_ns=options.pop("retention_ns", 10**15))
    store.add(tick_batch(*ticks, **options))
    return store


@given(any_ticks(), st.booleans())
@settings(max_examples=300)
def test_a_tick_is_split_without_rest(one: Tick, share_idle: bool) -> None:
    """Law (S0-66, D-11): per kind, Σ pots + idle = Σ domains, to the microjoule, and no pot is negative."""
    row = split(one, share_idle=share_idle)
    for kind, name in enumerate(KINDS):
        domains = [uj for id_, uj in one.energy_uj.items() if id_ in BY_ID and BY_ID[id_].kind is name]
        pots = [row.idle[kind], row.host[kind], *(pot[kind] for pot in row.processes.values())]
        assert sum(pots) == sum(domains) == row.measured[kind]
        assert min(pots) >= 0
        assert row.kinds[kind] == bool(domains)
    assert set(row.processes) == set(one.process_cpu_ns)
    assert row.has_energy == (row.method is Method.MEASURED)
    assert row.has_energy or row.reason is not None


SPLITS: dict[str, tuple[Tick, dict[str, Any]]] = {
    "half of the CPU time is nobody's": (
        tick(1, 0, 9, cpu_uj=100, busy_ns=10, total_ns=20, processes={5: 4}),
        {"idle": 50, "host": 30, "pots": {5: 20}},
    ),
    "the source knows the static part": (
        tick(1, 0, 9, cpu_uj=100, static_uj=40, busy_ns=10, total_ns=20, processes={5: 4}),
        {"idle": 40, "host": 36, "pots": {5: 24}},
    ),
    "more static than there is": (
        tick(1, 0, 9, cpu_uj=100, static_uj=400, busy_ns=10, total_ns=10),
        {"idle": 100, "host": 0, "pots": {}},
    ),
    "nothing ran": (tick(1, 0, 9, cpu_uj=100, busy_ns=0, total_ns=20), {"idle": 100, "host": 0, "pots": {}}),
    "no CPU time is known": (tick(1, 0, 9, cpu_uj=100), {"idle": 0, "host": 100, "pots": {}}),
    "the processes were busier than the machine": (
        tick(1, 0, 9, cpu_uj=100, busy_ns=1, total_ns=10, processes={5: 6, 6: 4}),
        {"idle": 0, "host": 0, "pots": {5: 60, 6: 40}},
    ),
}


@pytest.mark.parametrize(("one", "wanted"), SPLITS.values(), ids=SPLITS.keys())
def test_how_a_tick_is_split(one: Tick, wanted: dict[str, Any]) -> None:
    """Design 4: idle first, then named processes by CPU time, the host has the rest; by hand."""
    row = split(one)
    assert (row.idle[0], row.host[0]) == (wanted["idle"], wanted["host"])
    assert {pid: pot[0] for pid, pot in row.processes.items()} == wanted["pots"]


def test_shared_idle_has_no_idle_pot() -> None:
    """Policy ``share``: who ran has all of it."""
    row = split(tick(1, 0, 9, cpu_uj=100, busy_ns=10, total_ns=40, processes={5: 5}), share_idle=True)
    assert (row.idle, row.host[0], row.processes[5][0]) == (ZERO, 50, 50)


def test_gpu_energy_is_the_host_s() -> None:
    """S0-06: no CPU key says whose it was."""
    row = split(tick(1, 0, 9, gpu_uj=70, busy_ns=10, total_ns=10, processes={5: 10}))
    assert (row.host, row.processes[5], row.kinds) == ((0, 0, 70), ZERO, (False, False, True))


ROWS = st.builds(
    lambda start, width, cpu, dram, gpu: Row(
        start, start + width, Method.MEASURED, None, (True, True, True), ZERO, (cpu, dram, gpu)
    ),
    st.integers(0, 50),
    st.integers(1, 10**9),
    UJ,
    UJ,
    UJ,
)


@given(ROWS, st.lists(st.integers(0, 10**9), max_size=6))
def test_pieces_of_a_row_add_up(row: Row, cuts: list[int]) -> None:
    """Law: adjoining cuts of a pot give the pot, to the microjoule."""
    width = row.end_ns - row.start_ns
    edges = sorted({row.start_ns, row.end_ns, *(row.start_ns + at % width for at in cuts)})
    for kind in range(3):
        parts = [cut(row, row.host, low, high)[kind] for low, high in pairwise(edges)]
        assert sum(parts) == row.host[kind]
        assert min(parts) >= 0


@st.composite
def stores(draw: st.DrawFn) -> EnergyStore:
    at, made = 0, []
    for seq in range(draw(st.integers(1, 5))):
        at += draw(st.sampled_from([0, 0, 5]))
        end = at + draw(st.integers(1, 40))
        made.append(
            tick(
                seq,
                at,
                end,
                cpu_uj=draw(UJ),
                gpu_uj=draw(st.one_of(st.none(), UJ)),
                busy_ns=draw(st.integers(0, 9)),
                total_ns=9,
                processes={5: draw(st.integers(0, 4))} if draw(st.booleans()) else {},
            )
        )
        at = end
    return store_of(*made)


@given(stores(), st.lists(st.integers(0, 250), max_size=6))
def test_adjoining_windows_add_up(store: EnergyStore, cuts: list[int]) -> None:
    """Law (D-14): windows, holes among them, add up to the whole, in each scope, in all, and in idle."""
    edges = sorted({0, 300, *cuts})
    for scope in (HOST, 5, None):
        for kind in range(3):
            parts = [store.energy(low, high, scope)[kind] for low, high in pairwise(edges)]
            assert sum(parts) == store.energy(0, 300, scope)[kind]
    assert sum(store.idle(low, high) for low, high in pairwise(edges)) == store.idle(0, 300)
    assert sum(store.measured(low, high) for low, high in pairwise(edges)) == store.measured(0, 300)
    assert sum(store.covered_ns(low, high) for low, high in pairwise(edges)) == store.covered_ns(0, 300)
    assert store.measured(0, 300) == sum(store.energy(0, 300)) == sum(sum(row.measured) for row in store.rows)
    pots = [sum(store.energy(0, 300, scope)) for scope in store.scopes()]
    assert sum(pots) + store.idle(0, 300) == store.measured(0, 300)


def test_a_repeated_tick_is_dropped_and_an_overlapping_one_is_cut() -> None:
    """The watermark never goes back; of a tick that began before it, the rest has its part of the energy."""
    store = store_of(tick(1, 0, 10, cpu_uj=100), tick(1, 0, 10, cpu_uj=100), tick(2, 5, 9, cpu_uj=7))
    assert (len(store.rows), store.watermark_ns) == (1, 10)
    (row,) = store.add(tick_batch(tick(3, 6, 14, cpu_uj=7, processes={5: 1}, busy_ns=2, total_ns=2)))
    assert (row.start_ns, row.end_ns) == (10, 14)
    assert row.host[0] + row.processes[5][0] == 4  # 4 and 3 of 7: halves of them, floored cumulatively
    assert store.named_from == {5: 10}
    assert store.watermark_ns == 14


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=8))
def test_rows_never_overlap(spans: list[tuple[int, int]]) -> None:
    """Law: whatever ticks come in, rows are in order and disjoint, and the watermark is the end of the last."""
    store = EnergyStore(retention_ns=10**9)
    for start, width in spans:
        before = store.watermark_ns
        store.add(tick_batch(tick(1, start, start + width, cpu_uj=50)))
        assert store.watermark_ns == max(before, start + width)
    assert all(one.end_ns <= other.start_ns for one, other in pairwise(store.rows))
    assert all(0 <= row.host[0] <= 50 for row in store.rows)


def test_what_is_older_than_the_retention_is_forgotten() -> None:
    """In portions; a process that no row kept knows is forgotten with it."""
    store = EnergyStore(retention_ns=100)
    store.add(tick_batch(tick(1, 0, 1, cpu_uj=1, processes={5: 1})))
    for at in range(1, 400):
        store.add(tick_batch(tick(1, at, at + 1, cpu_uj=1, processes={6: 1})))
    assert 100 <= len(store.rows) <= 100 + 65
    assert store.horizon_ns == store.rows[0].start_ns >= 235
    assert store.energy(0, 10**9)[0] == len(store.rows)
    assert store.named_from == {6: 1}
    assert store.index(store.watermark_ns - 1) == len(store.rows) - 1


REASONS = {
    "no tick ever came": ([], (5, 9), "before_first_tick"),
    "before the first": ([tick(1, 10, 20, cpu_uj=1)], (5, 9), "before_first_tick"),
    "in part before the first": ([tick(1, 10, 20, cpu_uj=1)], (5, 15), "before_first_tick"),
    "after the last": ([tick(1, 10, 20, cpu_uj=1)], (15, 25), "after_last_tick"),
    "between two": ([tick(1, 10, 20, cpu_uj=1), tick(2, 30, 40, cpu_uj=1)], (15, 35), "gap_between_ticks"),
    "a gap with its reason": (
        [tick(1, 10, 20, cpu_uj=1, gaps=[("package-1", "read_refused"), ("gpu-0", "gone")])],
        (12, 15),
        "package-1: read_refused; gpu-0: gone",
    ),
    "a tick without energy": ([tick(1, 10, 20)], (12, 15), "no_energy_in_tick"),
}


@pytest.mark.parametrize(("ticks", "window", "reason"), REASONS.values(), ids=REASONS.keys())
def test_why_energy_is_missing(ticks: list[Tick], window: tuple[int, int], reason: str) -> None:
    """A missing measurement has a reason, and each its own (design 3)."""
    store = EnergyStore(retention_ns=10**9)
    store.add(tick_batch(*ticks))
    assert store.missing_reason(*window) == reason


def test_what_is_older_than_what_is_kept_is_said_to_be() -> None:
    """Issue 5: a span later than the retention is marked, as that and not as one from before the first tick."""
    store = EnergyStore(retention_ns=100)
    for at in range(400):
        store.add(tick_batch(tick(1, at, at + 1, cpu_uj=1)))
    assert store.horizon_ns > 200
    assert store.missing_reason(100, 150) == "older_than_retention"
    assert store.missing_reason(store.horizon_ns - 1, store.horizon_ns + 5) == "older_than_retention"
    assert store.missing_reason(399, 401) == "after_last_tick"


def test_a_source_that_has_none_says_why() -> None:
    """The batch's reason stands where a tick has no energy, and not where it has."""
    store = store_of(tick(1, 0, 5), tick(2, 5, 9, cpu_uj=3), reason="no_powercap")
    assert [(row.reason, row.method) for row in store.rows] == [
        ("no_powercap", Method.UNAVAILABLE),
        (None, Method.MEASURED),
    ]
    assert (store.covered_ns(0, 9), store.missing_reason(0, 9)) == (4, "no_powercap")


def test_energy_of_a_domain_nobody_declared_is_not_taken() -> None:
    """Only the measured set counts: an undeclared id may overlap a package."""
    store = store_of(tick(1, 0, 5, cpu_uj=3, gpu_uj=9), domains=(CPU,))
    assert store.energy(0, 5) == (3, 0, 0)
