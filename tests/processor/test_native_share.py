"""The compiled shares against the reference: the same microjoules, or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from joulegram_processor import native
from joulegram_processor.attribution_cpu import ONE, STAND_BY, Part, Slab, share_in_python
from processor.compiled import COMPILED, no_growth

pytestmark = COMPILED

UJ = st.one_of(st.integers(0, 9), st.integers(0, 10**9), st.sampled_from([2**44 - 1, 2**44, 2**60, -1]))
WEIGHTS = st.one_of(
    st.none(),
    st.sampled_from([0, 1, ONE - 1, ONE]),
    st.integers(0, ONE),
    st.sampled_from([ONE + 1, STAND_BY, STAND_BY, -2]),
)


Case = tuple[list[Slab], list[Part], list[int], int, list[Part]]


@st.composite
def slabs(draw: st.DrawFn) -> list[Slab]:
    """Disjoint, with holes between them, narrow or wide, with more, less or as much available as there was."""
    out: list[Slab] = []
    at = draw(st.sampled_from([0, -50, 10**18]))
    for _ in range(draw(st.integers(0, 5))):
        start = at + draw(st.sampled_from([0, 0, 7]))
        at = start + draw(st.sampled_from([1, 5, 30, 10**9, 2**40]))
        whole = (draw(UJ), draw(UJ), draw(UJ))
        below = draw(st.sampled_from([(0, 0, 0), (0, 0, 0), (2, 9, 10**8)]))
        out.append(Slab(start, at, whole, draw(st.sampled_from([whole, (3, 0, 10**6)])), below))
    return out


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Spans that lie in slabs, over their edges and beside them; some of them are settled later."""
    made = draw(slabs())
    edges = sorted({edge for slab in made for edge in (slab.start, slab.end)} | {0, 12})
    parts: list[Part] = []
    beside: list[Part] = []
    for index in range(draw(st.integers(0, 7))):
        chosen = draw(st.sampled_from([parts, parts, beside]))
        for _ in range(draw(st.sampled_from([1, 1, 2]))):
            instants = [draw(st.sampled_from(edges)) + draw(st.integers(-3, 9)) for _ in range(2)]
            if instants[0] != instants[1]:
                chosen.append((min(instants), max(instants), 3 * index, draw(WEIGHTS)))
    assume(parts)  # without any the compiled part is not asked
    order = draw(st.permutations(sorted({part[2] for part in parts})))
    return made, parts, order, draw(st.integers(0, 2)), beside


@settings(max_examples=600, deadline=None)
@given(cases())
def test_share_gives_what_the_reference_gives(case: Case) -> None:
    """By span and by slab, to the microjoule, or nothing at all."""
    assert native.LOADED is not None
    made = native.LOADED.share(*case)
    if made is not None:
        assert made == share_in_python(*case)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_share_answers_for_an_ordinary_second(kind: int) -> None:
    """Some hundred spans over three ticks, of which one was given before: no case for Python."""
    module = native.LOADED
    assert module is not None
    second = 10**9
    whole = (50_000_001, 7, 300)
    made = [Slab(at * second, (at + 1) * second, whole, whole if at else (9_000, 1, 0), (500, 0, 0)) for at in range(3)]
    weights = [None if at % 5 == 0 else STAND_BY if at % 7 == 0 else at * ONE // 400 for at in range(300)]
    parts: list[Part] = [(at * 7_000_003, at * 7_000_003 + second, at, weights[at]) for at in range(300)]
    order = list(range(300))
    alone = module.share(made, parts, order, kind, [])
    assert alone == share_in_python(made, parts, order, kind, [])
    found = module.share(made, parts, order, kind, parts[::9])
    assert found == share_in_python(made, parts, order, kind, parts[::9])
    assert sum(alone[1]) > sum(found[0]) == sum(found[1]) > 0
    no_growth(lambda: module.share(made, parts, order, kind, parts[::9]))


REFUSED: dict[str, tuple[list[Slab], list[Part], list[int]]] = {
    "more energy than fits": ([Slab(0, 1, (2**44, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 1, 0, ONE)], [0]),
    "less than nothing": ([Slab(0, 1, (1, 0, 0), (-1, 0, 0), (0, 0, 0))], [(0, 1, 0, ONE)], [0]),
    "a slab too wide": ([Slab(0, 2**40, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 1, 0, ONE)], [0]),
    "a slab without width": ([Slab(5, 5, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 1, 0, ONE)], [0]),
    "a weight above one": ([Slab(0, 1, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 1, 0, ONE + 1)], [0]),
    "a weight below any": ([Slab(0, 1, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 1, 0, -2)], [0]),
    "descendants below nothing": ([Slab(0, 1, (1, 0, 0), (1, 0, 0), (-1, 0, 0))], [(0, 1, 0, ONE)], [0]),
    "a span that is not asked for": ([Slab(0, 1, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 1, 1, ONE)], [0]),
    "a span without width": ([Slab(0, 1, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(1, 1, 0, ONE)], [0]),
    "an instant beyond": ([Slab(0, 1, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 2**62, 0, ONE)], [0]),
    "an index below 0": ([Slab(0, 1, (1, 0, 0), (1, 0, 0), (0, 0, 0))], [(0, 1, -1, ONE)], [-1]),
}


@pytest.mark.parametrize(("made", "parts", "order"), REFUSED.values(), ids=REFUSED.keys())
def test_share_refuses_what_it_does_not_know(made: list[Slab], parts: list[Part], order: list[int]) -> None:
    """The reference is asked instead."""
    assert native.LOADED is not None
    assert native.LOADED.share(made, parts, order, 0, []) is None


@pytest.mark.parametrize("value", [None, (1, 2), [(1, 2, 3)], ["x"]])
def test_share_raises_for_what_is_no_case(value: object) -> None:
    """A defect of the caller is an error, and no crash."""
    assert native.LOADED is not None
    with pytest.raises((TypeError, IndexError, SystemError)):
        native.LOADED.share(value, [(0, 1, 0, ONE)], [0], 0, [])
