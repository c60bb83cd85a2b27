"""The compiled sweep gives every microjoule to whom its Python reference gives it, and leaks nothing."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_processor import attribution, native
from joulegram_processor.attribution import Columns, _parts_beside, attribute, attribute_in_python
from joulegram_processor.claims import Claims
from joulegram_processor.energy_store import EnergyStore
from processor.compiled import COMPILED, no_growth
from simulators.traces import T0, S, tick, tick_batch

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = COMPILED

SMALL = st.integers(0, 40)
"""Few instants, so that pieces begin and end together, and pots that do not divide."""


Case = tuple[EnergyStore, dict[int, Claims], Columns, Columns]


@st.composite
def some_spans(draw: st.DrawFn, scale: int) -> Columns:
    """With parents in a tree, a cycle or nowhere, the same id twice, of named processes."""
    spans = Columns()
    count = draw(st.integers(0, 12))
    keys = [bytes([draw(st.integers(0, count)) if draw(st.booleans()) else index]) * 24 for index in range(count)]
    far = draw(st.sampled_from([0] * 9 + [2**61, 2**62, 2**63, -5]))
    for key in keys:
        start = draw(SMALL) * scale + draw(st.integers(0, scale - 1)) + draw(st.sampled_from([0, far]))
        spans.starts.append(start)
        spans.ends.append(start + draw(st.one_of(st.just(0), SMALL.map(lambda wide: wide * scale))))
        spans.keys.append(key)
        spans.parents.append(draw(st.sampled_from([b"", b"x" * 24, *keys])))
        spans.pids.append(draw(st.sampled_from([0, 0, 7, 8, 9])))
    return spans


@st.composite
def settlements(draw: st.DrawFn) -> Case:
    """Spans over some ticks, beside others or alone, where time was given before with or without something left."""
    store = EnergyStore(retention_ns=10**15)
    scale = draw(st.sampled_from([1, 7, 10**9]))
    at = draw(SMALL)
    for _ in range(draw(st.integers(0, 4))):
        end = at + draw(st.integers(1, 20))
        processes = draw(st.dictionaries(st.sampled_from([7, 8]), st.integers(0, scale), max_size=2))
        uj = st.one_of(st.integers(0, 9), st.integers(0, 10**9), st.integers(0, 2**61))
        made = tick(
            1,
            at * scale,
            end * scale,
            cpu_uj=draw(uj),
            dram_uj=draw(st.one_of(st.none(), uj)),
            busy_ns=draw(st.integers(0, 4 * scale)),
            total_ns=4 * scale,
            processes=processes,
        )
        store.add(tick_batch(made))
        at = end + draw(st.sampled_from([0, 0, 1]))
    windows = st.lists(st.tuples(SMALL, SMALL), max_size=3)
    claimed = {
        scope: Claims((low * scale, high * scale) for low, high in draw(windows))
        for scope in draw(st.lists(st.sampled_from([0, 7, 8]), unique=True))
    }
    for times in claimed.values():
        times.leftovers = [(low, high, (high - low, 3, 0)) for low, high in times.items if draw(st.booleans())]
    beside = draw(some_spans(scale)) if draw(st.booleans()) else Columns()
    return store, claimed, draw(some_spans(scale)), beside


def in_python(store: EnergyStore, claimed: dict[int, Claims], spans: Columns, beside: Columns) -> None:
    attribute_in_python(store, claimed, spans, _parts_beside(store, beside, spans) if len(spans) else {})


def after(
    call: Callable[..., None], store: EnergyStore, claimed: dict[int, Claims], spans: Columns, beside: Columns
) -> Any:
    """What it leaves, of copies."""
    claimed, spans, beside = deepcopy(claimed), deepcopy(spans), deepcopy(beside)
    call(store, claimed, spans, beside)
    return spans.own, spans.scopes, kept(claimed)


def kept(claimed: dict[int, Claims]) -> dict[int, Any]:
    return {scope: (times.items, times.leftovers) for scope, times in claimed.items() if times.items}


@settings(max_examples=500, deadline=None)
@given(settlements())
def test_attribute_gives_every_microjoule_to_whom_the_reference_does(case: Case) -> None:
    """Own energy, scopes, and what is claimed and left; nothing is changed where it refuses."""
    store, claimed, spans, beside = case
    reference = after(in_python, store, claimed, spans, beside)
    assert after(attribute, store, claimed, spans, beside) == reference

    before = deepcopy((kept(claimed), spans.own, spans.scopes))
    others = _parts_beside(store, beside, spans) if len(spans) else {}
    if len(spans) and attribution._attribute_natively(native.LOADED, store, claimed, spans, others):
        assert (spans.own, spans.scopes, kept(claimed)) == reference
    else:
        assert (kept(claimed), spans.own, spans.scopes) == before


@pytest.mark.parametrize("pids", [[0], [7], [0, 7, 8, 9]], ids=str)
def test_attribute_answers_for_an_ordinary_second(pids: list[int]) -> None:
    """A tree of spans, named processes and time that was claimed before: no case for Python."""
    store = EnergyStore(retention_ns=10**15)
    for second in range(4):
        store.add(
            tick_batch(
                tick(
                    second + 1,
                    T0 + second * S,
                    T0 + second * S + S,
                    cpu_uj=5_000_003,
                    busy_ns=2 * S,
                    total_ns=4 * S,
                    processes={7: S // 3, 8: 1},
                )
            )
        )
    spans = Columns()
    for index in range(400):
        spans.starts.append(T0 + S + index * 1_000_003)
        spans.ends.append(spans.starts[-1] + (400 - index) * 5_000_000)
        spans.keys.append(index.to_bytes(24))
        spans.parents.append((index // 3).to_bytes(24) if index else b"")
        spans.pids.append(pids[index % len(pids)])
    beside = Columns([T0 + 2 * S], [T0 + 5 * S], [b"b" * 24], [b""], [pids[0]])
    claimed = {0: Claims([(T0 + S, T0 + S + 1000), (T0 + 2 * S, T0 + 2 * S + 5)])}
    others = _parts_beside(store, beside, spans)
    reference = after(in_python, store, claimed, spans, beside)
    assert attribution._attribute_natively(native.LOADED, store, claimed, spans, others)
    assert (spans.own, spans.scopes, kept(claimed)) == reference
    assert sum(map(sum, spans.own)) > 500_000
    no_growth(lambda: attribution._attribute_natively(native.LOADED, store, {}, spans, others))
