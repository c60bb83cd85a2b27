"""Laws of counting, over whatever can befall an agent: conservation, no negative energy, nothing invented."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.agent_days import MS, Days
from simulators.powercap import AMD_RANGE_UJ, INTEL_RANGE_UJ, PowercapTree

if TYPE_CHECKING:
    import pytest

J = 1_000_000
DOMAINS = ("package-0", "package-1", "package-0/dram", "package-1/dram")

SPENT = st.tuples(st.just("spend"), st.integers(1, 12_000), st.integers(0, 1_500))
FAILED = st.tuples(
    st.just("fail"), st.sampled_from([errno.EINVAL, errno.EACCES, errno.ENODEV, 0]), st.sampled_from(DOMAINS)
)
RESET = st.tuples(st.just("reset"), st.integers(0, 3), st.sampled_from(DOMAINS))
ASLEEP = st.tuples(st.just("suspend"), st.integers(1, 7_200), st.integers(0, 15))
STEPPED = st.tuples(st.just("step"), st.integers(-4_000, 4_000), st.none())
RESTARTED = st.tuples(st.just("restart"), st.integers(0, 30_000), st.booleans())
SILENT = st.tuples(st.just("silence"), st.integers(1, 600_000), st.integers(0, 1_500))


def happen(days: Days, event: tuple[str, int, object]) -> bool:
    """Let one thing happen; whether it made the counters lie."""
    kind, number, detail = event
    tree = days.tree
    if kind in {"spend", "silence"}:
        assert isinstance(detail, int)
        days.spend(dict.fromkeys(DOMAINS, detail), number)
        days.sample()
    elif kind == "fail":
        tree.faults = {str(detail): number} if number else {}
    elif kind == "reset":
        # A fall from near the end of the range, or one that was made up for before the next read, is what counting
        # looks like: no reader can tell.
        lies = number * J < tree.counter_uj(str(detail)) < tree.package_range_uj // 4
        if lies:
            tree.reset(str(detail), number * J)
            days.spend({}, 100)
            days.sample()
        return lies
    elif kind == "suspend":
        assert isinstance(detail, int)
        days.suspend(number, dict.fromkeys(DOMAINS, detail))
    elif kind == "step":
        days.clock.step_wall(number * MS)
    elif kind == "restart":
        if detail:
            days.stop()
        days.spend(dict.fromkeys(DOMAINS, 300), number)
        days.start()
    return False


@settings(max_examples=60, deadline=None)
@given(
    package_range_uj=st.sampled_from([INTEL_RANGE_UJ, AMD_RANGE_UJ]),
    start=st.floats(0, 1),
    events=st.lists(st.one_of(SPENT, SPENT, SPENT, FAILED, RESET, ASLEEP, STEPPED, RESTARTED, SILENT), max_size=30),
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
