"""Whatever can befall an agent and its machine: power, wraps, resets, refusals, sleeps, steps, restarts, silences."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from simulators.agent_days import MS

if TYPE_CHECKING:
    from simulators.agent_days import Days

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


EVENTS = st.lists(st.one_of(SPENT, SPENT, SPENT, FAILED, RESET, ASLEEP, STEPPED, RESTARTED, SILENT), max_size=30)
