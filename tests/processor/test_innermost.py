"""The pieces in which spans are innermost, in Python and compiled, against sets of instants."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_processor import native
from joulegram_processor.attribution import Columns
from joulegram_processor.innermost import Piece, innermost, unpacked
from processor.compiled import COMPILED

if TYPE_CHECKING:
    from collections.abc import Callable


def columns(spans: list[tuple[int, int, int | None]]) -> Columns:
    """Spans as (start, width, index of the parent)."""
    made = Columns()
    for index, (start, width, parent) in enumerate(spans):
        made.starts.append(start)
        made.ends.append(start + width)
        made.keys.append(bytes([1]) + index.to_bytes(23, "big"))
        made.parents.append(b"" if parent is None else bytes([1]) + parent.to_bytes(23, "big"))
        made.pids.append(0)
    made.nest()
    return made


def in_python(spans: Columns, homes: list[int]) -> list[Piece]:
    if len(set(homes)) == 1:
        return innermost(spans, range(len(spans)), homes, whole=True)
    groups = [[index for index, home in enumerate(homes) if home == each] for each in dict.fromkeys(homes)]
    return [piece for group in groups for piece in innermost(spans, group, homes, whole=False)]


def compiled(spans: Columns, homes: list[int]) -> list[Piece] | None:
    module: Any = native.LOADED
    packed = module.innermost(spans.starts, spans.ends, spans.above, homes if len(set(homes)) > 1 else None)
    return None if packed is None else unpacked(packed)


def truth(spans: Columns, homes: list[int]) -> dict[int, set[int]]:
    """The whole nanoseconds in which each is open and nobody is who has it above within its home."""
    open_at = [set(range(start, end)) for start, end in zip(spans.starts, spans.ends, strict=True)]
    own = {index: set(instants) for index, instants in enumerate(open_at)}
    for index, instants in enumerate(open_at):
        at, met = index, {index}
        while True:
            parent = spans.above[at]
            if parent is None or homes[parent] != homes[at] or parent in met:
                break
            own[parent] -= instants
            met.add(parent)
            at = parent
    return own


@st.composite
def forests(draw: st.DrawFn) -> tuple[Columns, list[int]]:
    """Up to twelve spans below earlier ones, in one home or two, in any order of time."""
    spans: list[tuple[int, int, int | None]] = []
    for index in range(draw(st.integers(1, 12))):
        parent = draw(st.one_of(st.integers(0, index - 1), st.none())) if index else None
        spans.append((draw(st.integers(0, 9)), draw(st.integers(0, 9)), parent))
    order = draw(st.permutations(range(len(spans))))
    place = {old: new for new, old in enumerate(order)}
    shuffled = [(spans[old][0], spans[old][1], None if (up := spans[old][2]) is None else place[up]) for old in order]
    homes = [draw(st.sampled_from([0, 7])) for _ in spans] if draw(st.booleans()) else [0] * len(spans)
    return columns(shuffled), homes


WAYS = [pytest.param(in_python, id="python"), pytest.param(compiled, id="native", marks=COMPILED)]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=1000)
@given(forest=forests())
def test_a_piece_is_where_no_descendant_is_open(
    way: Callable[[Columns, list[int]], list[Piece]], forest: tuple[Columns, list[int]]
) -> None:
    """Law: by instants it is the difference of sets; a piece ends where the next of its span does not begin."""
    spans, homes = forest
    pieces = sorted(way(spans, homes), key=lambda piece: (piece[2], piece[0]))
    found: dict[int, set[int]] = {index: set() for index in range(len(spans))}
    for low, high, index in pieces:
        assert spans.starts[index] <= low <= high <= spans.ends[index]
        assert not found[index] & set(range(low, high))
        found[index] |= set(range(low, high))
    assert found == truth(spans, homes)
    assert not any(one[2] == two[2] and one[1] == two[0] for one, two in pairwise(pieces))
    without = {index for index in range(len(spans)) if spans.starts[index] == spans.ends[index]}
    assert {index for low, high, index in pieces if low == high} == without, "one that says where it would have been"


@pytest.mark.parametrize("way", WAYS)
def test_a_long_chain_costs_what_its_length_is(way: Callable[[Columns, list[int]], list[Piece]]) -> None:
    """Each below the one before, one after the other: with the square of its length nobody would await the answer."""
    count = 60_000
    spans = columns([(at * 20, 10, at - 1 if at else None) for at in range(count)])
    assert sorted(way(spans, [0] * count)) == [(at * 20, at * 20 + 10, at) for at in range(count)]


@pytest.mark.parametrize("way", WAYS)
def test_a_deep_nest_costs_what_its_length_is(way: Callable[[Columns, list[int]], list[Piece]]) -> None:
    """Each within the one before: all but the last have a nanosecond before it and one after it."""
    count = 60_000
    spans = columns([(at, 2 * (count - at), at - 1 if at else None) for at in range(count)])
    pieces = way(spans, [0] * count)
    assert len(pieces) == 2 * count - 1
    assert sum(high - low for low, high, _ in pieces) == 2 * count


def test_a_cycle_of_parents_is_nobodys_descendant() -> None:
    """Python cuts it, with what hangs below left there; the compiled part leaves it to Python."""
    spans = columns([(0, 10, 1), (2, 10, 0), (4, 2, 1)])
    assert sorted(in_python(spans, [0] * 3)) == [(0, 10, 0), (2, 4, 1), (4, 6, 2), (6, 12, 1)]
    if native.LOADED is not None:
        assert compiled(spans, [0] * 3) is None
