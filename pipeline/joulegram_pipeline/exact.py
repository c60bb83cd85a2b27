"""Exact arithmetic: one rounding rule, and splits that lose nothing.

Invariants:
    * ``sum(apportion(total, weights)) == total`` for every total and every weight vector that is not all zero;
    * a result depends on the multiset of (weight, position), never on time or hash order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def div_half_even(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` to the nearest integer, halves to even; the one rounding of design section 3."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient & 1):
        quotient += 1
    return quotient


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `weights`, in whole units, so that the parts add up to it (largest remainder).

    The units left after flooring go to the largest remainders; ties go to the earlier position.

    Args:
        total: a non-negative count of units (microjoules).
        weights: non-negative integers, not all zero unless `total` is 0.

    Raises:
        ValueError: on a programming error only: a negative total, or weights that do not add up to more than 0 with
            something to split.
    """
    whole = sum(weights)
    if whole <= 0 or total < 0:
        if total == 0:
            return [0] * len(weights)
        msg = f"cannot split {total} by weights that sum to {whole}"
        raise ValueError(msg)
    parts = []
    remainders = []
    given = 0
    for index, weight in enumerate(weights):
        part, remainder = divmod(total * weight, whole)
        parts.append(part)
        given += part
        remainders.append((-remainder, index))
    left = total - given
    if left:
        remainders.sort()
        for _, index in remainders[:left]:
            parts[index] += 1
    return parts
