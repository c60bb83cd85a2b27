"""One rounding rule, and splits that lose nothing (design 3, 4; S0-07, S0-54)."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.exact import apportion, div_half_even

BIG = st.integers(min_value=-(2**200), max_value=2**200)
DENOMINATORS = st.integers(min_value=1, max_value=2**100)
TOTALS = st.integers(min_value=0, max_value=2**80)
WEIGHTS = st.lists(st.integers(min_value=0, max_value=2**64), min_size=1, max_size=20)


@given(BIG, DENOMINATORS)
def test_division_rounds_as_fractions_do(numerator: int, denominator: int) -> None:
    """To the nearest, halves to even, for any size and sign."""
    assert div_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(st.integers(min_value=-(10**30), max_value=10**30), st.integers(min_value=1, max_value=10**9))
def test_division_rounds_as_decimals_do(half_steps: int, denominator: int) -> None:
    """Halves above all: k/2 as decimal arithmetic rounds it half-even."""
    with localcontext() as context:
        context.prec = 60
        expected = int((Decimal(half_steps) / 2).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
    assert div_half_even(half_steps * denominator, 2 * denominator) == expected


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(1, 2, 0), (3, 2, 2), (5, 2, 2), (-1, 2, 0), (-3, 2, -2), (7, 3, 2), (8, 3, 3), (0, 7, 0)],
)
def test_halves_go_to_even(numerator: int, denominator: int, expected: int) -> None:
    """The cases a reader checks by hand."""
    assert div_half_even(numerator, denominator) == expected


@given(TOTALS, WEIGHTS.filter(any))
def test_the_parts_add_up_and_none_is_off_by_one(total: int, weights: list[int]) -> None:
    """Σ parts = total; each part is its exact share rounded down or up, so none is off by a whole unit (D-11)."""
    parts = apportion(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        share = Fraction(total * weight, whole)
        assert math.floor(share) <= part <= math.ceil(share)
        assert weight or part == 0


@given(TOTALS, WEIGHTS.filter(any))
def test_whoever_is_rounded_up_had_the_larger_remainder(total: int, weights: list[int]) -> None:
    """Largest remainder: no part rounded down had more left over than one rounded up."""
    whole = sum(weights)
    rests = [Fraction(total * weight, whole) % 1 for weight in weights]
    parts = apportion(total, weights)
    up = [rest for rest, part, weight in zip(rests, parts, weights, strict=True) if part > total * weight // whole]
    down = [rest for rest, part, weight in zip(rests, parts, weights, strict=True) if part == total * weight // whole]
    assert not up or min(up) >= max(down, default=Fraction(0))
    assert all(up)


def test_equal_remainders_go_to_the_earlier() -> None:
    """Ties are settled by position, so the same input always gives the same parts."""
    assert apportion(2, [1, 1, 1]) == [1, 1, 0]
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]


@given(WEIGHTS)
def test_nothing_is_split_into_nothing(weights: list[int]) -> None:
    """A total of 0 gives as many zeros, whatever the weights."""
    assert apportion(0, weights) == [0] * len(weights)


@pytest.mark.parametrize(("total", "weights"), [(1, []), (1, [0, 0]), (-1, [1]), (5, [-3])])
def test_a_split_that_cannot_be_is_a_programming_error(total: int, weights: list[int]) -> None:
    """ValueError that quotes total and weights: it never comes from input."""
    with pytest.raises(ValueError, match=f"cannot split {total} by weights that sum to {sum(weights)}"):
        apportion(total, weights)
