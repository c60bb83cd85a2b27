"""How raw counter readings become the energy of windows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.counters import Accumulator, reason_code
from joulegram_pipeline.energy import Domain, DomainKind, Gap

J = 1_000_000
S = 1_000_000_000
RANGE_UJ = 262_143_328_850


def counting(start_uj: int, max_range_uj: int | None = RANGE_UJ) -> Accumulator:
    accumulator = Accumulator(Domain("package-0", DomainKind.CPU, max_range_uj))
    accumulator.offer(start_uj, 0)
    accumulator.open()
    return accumulator


def test_wrap_is_counted_to_the_microjoule() -> None:
    """D-01: a counter that passes its end goes on from 0; its last value and 0 are 1 uJ apart."""
    accumulator = counting(RANGE_UJ)
    accumulator.offer(0, S)
    assert accumulator.close() == 1


def test_no_mask_of_32_bits() -> None:
    """D-45: an interval that passes 2**32 uJ loses nothing."""
    accumulator = counting(2**32 - 5)
    accumulator.offer(2**32 + 7, S // 10)
    assert accumulator.close() == 12


def test_reset_is_a_gap_not_energy() -> None:
    """D-01, D-08: a counter that falls without a wrap would mean 262 kJ in 0.1 s: a gap, then counting goes on."""
    accumulator = counting(5_000 * J)
    accumulator.offer(0, S // 10)
    assert accumulator.close() == Gap("package-0", "counter_reset")
    accumulator.offer(3 * J, S)
    assert accumulator.close() == 3 * J
    assert (accumulator.placed_uj, accumulator.unplaced_uj, accumulator.gaps["counter_reset"]) == (3 * J, 0, 1)


def test_long_silence_is_ambiguous_even_when_the_counter_rose() -> None:
    """D-49: when half a range could have been spent, a whole wrap may hide behind a rise: counted as a gap."""
    accumulator = counting(0)
    accumulator.offer(10 * J, 65 * S)
    assert accumulator.close() == 10 * J
    accumulator.offer(20 * J, 65 * S + 66 * S)
    assert accumulator.close() == Gap("package-0", "ambiguous_wrap")
    assert accumulator.gaps["ambiguous_wrap"] == 1


def test_more_than_half_a_range_is_kept_where_it_is_sure() -> None:
    """D-49: a rise above half the range is no reason to drop it, if the power says it is the only reading."""
    accumulator = Accumulator(Domain("d", DomainKind.CPU, 1_000 * J), max_power_w=1_000)
    accumulator.offer(0, 0)
    accumulator.open()
    accumulator.offer(501 * J, S // 2)
    assert accumulator.close() == 501 * J


def test_failed_read_inside_a_window_loses_nothing() -> None:
    """S0-23: the counter kept counting, so the next good read in the window makes it whole."""
    accumulator = counting(0)
    accumulator.offer(1 * J, S // 10)
    accumulator.miss("read_failed: EINVAL")
    accumulator.offer(5 * J, 3 * S // 10)
    assert accumulator.close() == 5 * J


def test_failed_read_at_a_window_end_is_unplaced() -> None:
    """S0-23, D-05: the energy across the edge belongs to neither window for certain: both are gaps, none is lost."""
    accumulator = counting(0)
    accumulator.offer(1 * J, S // 2)
    accumulator.miss("read_failed: EINVAL")
    assert accumulator.close() == Gap("package-0", "read_failed: EINVAL")
    accumulator.offer(7 * J, 3 * S // 2)
    assert accumulator.close() == Gap("package-0", "unplaced: read_failed: EINVAL")
    accumulator.offer(9 * J, 2 * S)
    assert accumulator.close() == 2 * J
    assert (accumulator.placed_uj, accumulator.unplaced_uj) == (2 * J, 7 * J)
    assert dict(accumulator.gaps) == {"read_failed": 1, "unplaced": 1}


def test_what_is_not_known_is_said_before_what_has_no_place() -> None:
    """D-49: a window with energy that straddles its edge, and then a silence too long: the gap is the ambiguous one."""
    accumulator = counting(0)
    accumulator.miss("read_failed: EINVAL")
    accumulator.close()
    accumulator.offer(7 * J, S)
    accumulator.offer(9 * J, 70 * S)
    assert accumulator.close() == Gap("package-0", "ambiguous_wrap")
    assert accumulator.unplaced_uj == 7 * J


def test_domain_never_read_is_a_gap_and_begins_clean() -> None:
    """D-10: no first reading, no energy: not 0; what the counter showed before is never counted."""
    accumulator = Accumulator(Domain("package-0", DomainKind.CPU, RANGE_UJ))
    accumulator.miss("permission_denied")
    accumulator.open()
    assert accumulator.close() == Gap("package-0", "permission_denied")
    accumulator.offer(500 * J, 2 * S)
    assert accumulator.close() == Gap("package-0", "unplaced: permission_denied")
    accumulator.offer(501 * J, 3 * S)
    assert accumulator.close() == 1 * J
    assert accumulator.unplaced_uj == 0


def test_counter_that_does_not_wrap_may_not_fall() -> None:
    """D-08: without a range a fall is a reset, never negative energy."""
    accumulator = counting(10, max_range_uj=None)
    accumulator.offer(4, S)
    assert accumulator.close() == Gap("package-0", "counter_reset")
    accumulator.offer(9, 2 * S)
    assert accumulator.close() == 5


def test_jump_of_a_counter_without_a_range_is_no_energy() -> None:
    """D-13: 10^15 uJ in a second is no board: a gap that says the limit, counted nowhere, also when it falls back."""
    accumulator = counting(0, max_range_uj=None)
    accumulator.offer(2_000 * J, S)
    assert accumulator.close() == 2_000 * J
    accumulator.offer(10**15, 2 * S)
    assert accumulator.close() == Gap("package-0", "implausible_power: above 2000 W")
    accumulator.offer(2_001 * J, 3 * S)
    assert accumulator.close() == Gap("package-0", "counter_reset")
    accumulator.offer(2_005 * J, 4 * S)
    assert accumulator.close() == 4 * J
    assert (accumulator.placed_uj, accumulator.unplaced_uj) == (2_004 * J, 0)
    assert dict(accumulator.gaps) == {"implausible_power": 1, "counter_reset": 1}


def test_limit_is_the_one_given() -> None:
    """D-13: what is implausible at 100 W is energy at 3000 W."""
    for limit_w, window in ((100, Gap("gpu-0", "implausible_power: above 100 W")), (3_000, 2_500 * J)):
        accumulator = Accumulator(Domain("gpu-0", DomainKind.GPU), limit_w)
        accumulator.offer(0, 0)
        accumulator.open()
        accumulator.offer(2_500 * J, S)
        assert accumulator.close() == window


def test_counter_that_stood_still_in_a_window_catches_up() -> None:
    """D-13, energy.md 3.7: it moved 0.9 s ago, so 700 J in the last 0.1 s are 700 W and not 7 kW."""
    accumulator = counting(0, max_range_uj=None)
    for tenth in range(1, 10):
        accumulator.offer(0, tenth * S // 10)
    accumulator.offer(700 * J, S)
    assert accumulator.close() == 700 * J


def test_counter_that_stood_still_for_an_hour_has_no_place_for_it() -> None:
    """D-13: 700 W for an hour are counted, and are no 2.5 MW of the second in which the counter moved again."""
    accumulator = counting(0, max_range_uj=None)
    for second in range(1, 3_600):
        accumulator.offer(0, second * S)
        assert accumulator.close() == 0
    accumulator.offer(700 * 3_600 * J, 3_600 * S)
    assert accumulator.close() == Gap("package-0", "unplaced: implausible_power: above 2000 W")
    accumulator.offer(700 * 3_601 * J, 3_601 * S)
    assert accumulator.close() == 700 * J
    assert accumulator.unplaced_uj == 700 * 3_600 * J


def test_model_has_no_limit() -> None:
    """D-13: 8 sockets of 128 logical CPUs may be modelled above any domain's limit; no counter can jump there."""
    accumulator = Accumulator(Domain("model/cpu", DomainKind.CPU))
    accumulator.offer(0, 0)
    accumulator.open()
    accumulator.offer(3_584 * J, S)
    assert accumulator.close() == 3_584 * J


def test_reason_code_drops_details() -> None:
    """D-49: gaps are counted by few codes."""
    assert [reason_code(reason) for reason in ("read_failed: EINVAL", "counter_reset")] == [
        "read_failed",
        "counter_reset",
    ]


@given(
    start_uj=st.integers(0, 400 * J),
    steps=st.lists(st.tuples(st.integers(0, 20 * J), st.booleans(), st.booleans()), max_size=60),
)
def test_placed_and_unplaced_are_the_truth(start_uj: int, steps: list[tuple[int, bool, bool]]) -> None:
    """D-01, S0-23: whatever fails and whenever windows close, placed + unplaced = spent, 0 uJ off."""
    modulus = 400 * J + 1
    accumulator = Accumulator(Domain("d", DomainKind.CPU, modulus - 1), max_power_w=200)
    accumulator.offer(start_uj, 0)
    accumulator.open()
    truth = published = quiet = now_ns = 0
    for energy_uj, fails, closes in [*steps, (0, False, True)]:
        truth += energy_uj
        now_ns += S // 10
        quiet = quiet + 1 if fails and quiet < 8 else 0
        if quiet:
            accumulator.miss("read_failed")
        else:
            accumulator.offer((start_uj + truth) % modulus, now_ns)
        if closes:
            window = accumulator.close()
            published += window if isinstance(window, int) else 0
    assert published == accumulator.placed_uj
    assert accumulator.placed_uj + accumulator.unplaced_uj == truth
    assert accumulator.gaps["ambiguous_wrap"] == accumulator.gaps["counter_reset"] == 0
