"""Energy from readings of power: exact to what is below a microjoule, and never over a hole."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.integral import MAX_STEP_NS, PowerIntegral
from joulegram_pipeline.energy import PUBLISH_S
from joulegram_pipeline.units import NS_PER_S

W = 1_000_000
MS = 1_000_000


def test_steady_and_rising_power() -> None:
    """60 W for 100 ms is 6 J; a rise from 60 W to 100 W over 100 ms is 8 J more."""
    integral = PowerIntegral()
    readings = [(60 * W, 0), (60 * W, 100 * MS), (100 * W, 200 * MS)]
    assert [integral.add(*reading) for reading in readings] == [0, 6_000_000, 14_000_000]


def test_what_is_below_a_microjoule_is_carried() -> None:
    """1 mW read each 300 us is 0.3 uJ a step: three steps are nothing, four are 1 uJ, ten are 3 uJ."""
    integral = PowerIntegral()
    assert [integral.add(1_000, step * 300_000) for step in range(11)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


@given(
    trace=st.lists(st.tuples(st.integers(0, 2_000 * W), st.integers(0, MAX_STEP_NS)), min_size=1, max_size=60),
    start_ns=st.integers(0, 2**62),
)
def test_the_counter_is_the_floor_of_the_exact_trapezoids(trace: list[tuple[int, int]], start_ns: int) -> None:
    """Whatever the trace: never above the exact sum, less than 1 uJ below it, and never falling."""
    integral, at_ns, exact_uj = PowerIntegral(), start_ns, Fraction(0)
    last_uw, last_uj = trace[0][0], 0
    assert integral.add(last_uw, at_ns) == 0
    for power_uw, step_ns in trace:
        at_ns += step_ns
        exact_uj += Fraction(last_uw + power_uw, 2) * step_ns / 1_000_000_000
        counted_uj = integral.add(power_uw, at_ns)
        assert isinstance(counted_uj, int)
        assert last_uj <= counted_uj <= exact_uj < counted_uj + 1
        last_uw, last_uj = power_uw, counted_uj


def test_a_hole_is_a_reason_and_not_a_trapezoid() -> None:
    """A process stopped for 10 min: 600 s at the power of the two ends would be invented. Then counting goes on."""
    integral = PowerIntegral()
    integral.add(60 * W, 0)
    assert integral.add(60 * W, MAX_STEP_NS) == 120_000_000
    hole = integral.add(60 * W, MAX_STEP_NS + 600 * NS_PER_S)
    assert hole == "unsampled: got 600000000000 ns between two readings of power, expected at most 2000000000"
    assert integral.add(60 * W, MAX_STEP_NS + 601 * NS_PER_S) == 180_000_000


def test_a_hole_is_longer_than_a_window() -> None:
    """A hole must hold an edge of a window: only there does the accumulator make a failed read a gap."""
    assert MAX_STEP_NS > PUBLISH_S * NS_PER_S
