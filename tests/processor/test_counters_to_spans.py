"""From raw counters to spans: what a simulated machine spent, through sampler, ticks and the join."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_pipeline.records import RecordKind
from processor.any_log import ledger_lines, machine
from processor.test_machine_conservation import left_in_pots
from simulators.agent_days import Days
from simulators.agent_events import DOMAINS, EVENTS, happen
from simulators.powercap import AMD_RANGE_UJ, PowercapTree
from simulators.traces import Log, S, span, trace_id

if TYPE_CHECKING:
    import pytest

    from joulegram_processor.machine_types import Outputs

Wanted = tuple[int, int, int, int | None, bool]
"""When it comes, by event; its start by seconds from then; its length in tenths; its CPU time; whether it is a root."""

SPANS = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(-20, 20), st.integers(0, 40), st.sampled_from([None, 0, S // 10]), st.booleans()
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(events=EVENTS, spans=SPANS, start=st.floats(0, 1))
def test_what_spans_get_was_spent(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, object]], spans: list[Wanted], start: float
) -> None:
    """Law: Σ exclusive + idle + what is left = Σ published <= truth, over wraps, resets, gaps, sleeps and restarts."""
    root = tmp_path_factory.mktemp("days")
    tree = PowercapTree(
        root / "sys",
        packages=2,
        core=False,
        package_range_uj=AMD_RANGE_UJ,
        dram_range_uj=AMD_RANGE_UJ,
        start_uj=int(start * AMD_RANGE_UJ),
    )
    days, log = Days(tree, root), Log()
    subject = machine(log)
    made: list[tuple[int, list[Outputs]]] = []
    backwards = False
    for number, event in enumerate([*events, ("silence", 1_100, 100), ("spend", 1_100, 100)]):
        happen(days, event)
        backwards = backwards or (event[0] == "step" and event[1] < 0)
        log.append(RecordKind.TICKS, days.sampler.batch(0).to_bytes())
        for place, (when, begin_s, tenths, cpu_ns, is_root) in enumerate(spans):
            if when == number:
                begin = max(1, days.clock.wall_ns() + begin_s * S)
                one = span(
                    place + 1,
                    begin,
                    begin + tenths * S // 10,
                    name="etl.job",
                    parent=None if is_root else 99,
                    trace=trace_id(place),
                    attributes={} if cpu_ns is None else {"joulegram.cpu_ns": cpu_ns},
                )
                log.traces(one)
        while len(made) < len(log.records):
            made.append((0, list(subject.feed(log.records[len(made)]))))
    lines = [line for line in ledger_lines(made) if line["kind"] == "span"]
    assert all(line["energy"].get("exclusive_uj", 0) >= 0 for line in lines)
    rows = subject.store.rows
    measured = sum(sum(row.measured) for row in rows)
    idle = sum(sum(row.idle) for row in rows)
    spent = sum(line["energy"].get("exclusive_uj", 0) for line in lines)
    assert spent + idle + left_in_pots(subject) == measured
    told = sum(days.told_uj[domain] for domain in DOMAINS)
    assert measured <= told <= sum(tree.truth_uj.values())
    if not backwards:  # of a second that the clock repeats only what comes after is taken
        assert measured == told
