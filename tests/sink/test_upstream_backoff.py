"""The waits between tries: they grow to a bound, and chance is in each: a thousand nodes do not come at once."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from joulegram_sink.upstream_destination import Retry
from joulegram_sink.upstream_forwarder import Backoff

INTERVALS_S = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def waits_s(seed: int, factor: float) -> list[float]:
    """The first waits of a destination whose chance is known."""
    random.seed(seed)
    retry = Retry(initial_interval_s=1.0, multiplier=2.0, max_interval_s=8.0, randomization_factor=factor)
    backoff = Backoff(retry)
    return [backoff.next_s() for _ in INTERVALS_S]


@pytest.mark.parametrize("seed", range(20))
def test_each_wait_is_drawn_around_its_interval(seed: int) -> None:
    """From the interval times 1 - f to 1 + f, as `retry_on_failure.randomization_factor` says."""
    ratios = [wait / interval for wait, interval in zip(waits_s(seed, 0.5), INTERVALS_S, strict=True)]
    assert all(0.5 <= ratio <= 1.5 for ratio in ratios)
    assert len(set(ratios)) == len(ratios), "none is drawn once for all"


def test_two_that_failed_together_come_back_apart() -> None:
    """The same failures, another chance: another time, and over many both halves of the interval are used."""
    firsts = sorted(waits_s(seed, 0.5)[0] for seed in range(50))
    assert all(one < other for one, other in pairwise(firsts))
    assert firsts[0] < 0.7
    assert firsts[-1] > 1.3


def test_without_chance_the_intervals_are_bare() -> None:
    """They double up to the bound and stay there."""
    assert waits_s(1, 0.0) == INTERVALS_S
