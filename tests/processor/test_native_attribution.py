"""The compiled sweep gives every microjoule to whom its Python reference gives it, and leaks nothing."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_processor import attribution, native
from joulegram_processor.attribution import Columns, attribute, attribute_in_python
from joulegram_processor.claims import Claims
from joulegram_processor.energy_store import EnergyStore
from processor.compiled import COMPILED, no_growth
from simulators.traces import T0, S, tick, tick_batch

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = COMPILED

SMALL = st.integers(0, 40)
"""Few instants, so that pieces begin and end together, and pots that do not divide."""


@st.composite
def settlements(draw: st.DrawFn) -> tuple[EnergyStore, dict[int, Claims], Columns]:
    """Spans over some ticks: with parents in a tree, a cycle or nowhere, the same id twice, of named processes."""
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
    given = st.lists(st.tuples(SMALL, SMALL), max_size=3)
    claimed = {
        scope: Claims((low * scale, high * scale) for low, high in draw(given))
        for scope in draw(st.lists(st.sampled_from([0, 7, 8]), unique=True))
    }
    return store, claimed, spans


def after(call: Callable[..., None], store: EnergyStore, claimed: dict[int, Claims], spans: Columns) -> Any:
    """What it leaves, of copies."""
    claimed, spans = deepcopy(claimed), deepcopy(spans)
    call(store, claimed, spans)
    return spans.own, spans.scopes, [(scope, times.items) for scope, times in claimed.items()]


@settings(max_examples=500, deadline=None)
@given(settlements())
def test_attribute_gives_every_microjoule_to_whom_the_reference_does(
    case: tuple[EnergyStore, dict[int, Claims], Columns],
) -> None:
    """Own energy, scopes and claimed time, in their order; nothing is changed where it refuses."""
    store, claimed, spans = case
    reference = after(attribute_in_python, store, claimed, spans)
    assert after(attribute, store, claimed, spans) == reference

    before = deepcopy((claimed, spans.own, spans.scopes))
    if attribution._attribute_natively(native.LOADED, store, claimed, spans):
        assert (spans.own, spans.scopes, [(x, y.items) for x, y in claimed.items()]) == reference
    else:
        assert (spans.own, spans.scopes) == before[1:]
        assert {x: y.items for x, y in claimed.items()} == {x: y.items for x, y in before[0].items()}


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
    claimed = {0: Claims([(T0 + S, T0 + S + 1000), (T0 + 2 * S, T0 + 2 * S + 5)])}
    reference = after(attribute_in_python, store, claimed, spans)
    assert attribution._attribute_natively(native.LOADED, store, claimed, spans)
    assert (spans.own, spans.scopes, [(x, y.items) for x, y in claimed.items()]) == reference
    assert sum(map(sum, spans.own)) > 500_000
    no_growth(lambda: attribution._attribute_natively(native.LOADED, store, {}, spans))
