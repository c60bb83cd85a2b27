"""Laws of counting, over whatever can befall an agent: conservation, no negative energy, nothing invented."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.agent_days import Days
from simulators.agent_events import DOMAINS, EVENTS, happen
from simulators.powercap import AMD_RANGE_UJ, INTEL_RANGE_UJ, PowercapTree

if TYPE_CHECKING:
    import pytest


@settings(max_examples=60, deadline=None)
@given(
    package_range_uj=st.sampled_from([INTEL_RANGE_UJ, AMD_RANGE_UJ]),
    start=st.floats(0, 1),
    events=EVENTS,
)
def test_what_is_told_is_true_whatever_befalls(
    tmp_path_factory: pytest.TempPathFactory,
    package_range_uj: int,
    start: float,
    events: list[tuple[str, int, object]],
) -> None:
    """Issue 5, D-01, D-02, D-05, D-08, D-10, D-49: power, wraps, resets, refusals, sleeps, steps, restarts, silences.

    `Days` compares each published energy with the truth; here, that told + gaps = truth, and that the totals hold no
    more than the truth: all of it where nothing was ambiguous or reset.
    """
    root = tmp_path_factory.mktemp("days")
    tree = PowercapTree(
        root / "sys",
        packages=2,
        core=False,
        package_range_uj=package_range_uj,
        dram_range_uj=package_range_uj,
        start_uj=int(start * package_range_uj),
    )
    days, lied, refused, failed = Days(tree, root), False, False, False
    for event in events:
        if failed and event[0] == "reset":
            continue  # a zone that is not read meanwhile
        failed = failed or event[0] == "fail"
        lied = happen(days, event) or lied
        # What cannot be read at a start has no zero to count from.
        refused = refused or (event[0] == "restart" and bool(tree.faults))
    tree.faults = {}
    days.run(8, dict.fromkeys(DOMAINS, 50), millis=100)
    days.run(1, dict.fromkeys(DOMAINS, 50))
    totals = days.sampler.totals
    for domain in DOMAINS:
        assert days.told_uj[domain] + days.gap_uj[domain] == tree.truth_uj[domain]
        assert totals.energy_uj[domain] >= 0
        assert totals.unplaced_uj[domain] >= 0
        unsure = {"ambiguous_wrap", "counter_reset"} & set(totals.gaps.get(domain, {}))
        spent_uj = tree.truth_uj[domain] - days.zero_uj[domain]
        assert days.counted(domain) <= spent_uj
        if not (unsure or lied or refused):
            assert days.counted(domain) == spent_uj
