"""Counting a column of spans at once is counting each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_processor.attribution import Columns, attribute
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.inclusive import add_up
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.join import CarbonModel, Joiner, Settled
from joulegram_processor.join_columns import ColumnJoiner, Portion
from joulegram_processor.runs import MAX_NODES, MAX_TRACES, Run
from joulegram_processor.tally import Tally
from joulegram_processor.waiting import Settlement
from simulators.traces import T0, S, span_id, tick, tick_batch, trace_id

if TYPE_CHECKING:
    from joulegram_pipeline.span_rows import Row

MODEL = CarbonModel(StaticFactor("0.4", "a bill"))
RUNS = [trace_id(1).hex(), "run-one-0001", "run-two-0002"]
EXTRAS = [{}, {}, {"kfm.node": "n"}, {"job.type": "nightly"}, {"kfm.stac_item": "a.json"}]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([0, MAX_NODES - 1, MAX_NODES]), st.sampled_from([0, MAX_TRACES - 1, MAX_TRACES]))
def test_columns_count_as_each_span_alone(data: st.DataObject, nodes: int, traces: int) -> None:
    """Law: a run is the same, whatever of it was full, whether its spans follow each other or those of others."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, T0, T0 + S, cpu_uj=10**6, busy_ns=S, total_ns=2 * S, processes={7: S // 3})))
    rows: list[Row] = []
    for number in range(data.draw(st.integers(1, 8))):
        name = data.draw(st.sampled_from(["etl.job", "etl.node.a", "etl.step", "etl.jobs"]))
        parent = span_id(data.draw(st.integers(0, 3)) + 1) if data.draw(st.booleans()) else b""
        start = T0 + data.draw(st.integers(0, S // 2))
        rows.append((name, trace_id(data.draw(st.integers(1, 3))), span_id(number + 1), parent, start, T0 + S, 1))
    extras: list[dict[str, Any]] = [dict(data.draw(st.sampled_from(EXTRAS))) for _ in rows]
    runs = sorted(data.draw(st.sampled_from(RUNS)) for _ in rows) if data.draw(st.booleans()) else []
    runs = runs or [data.draw(st.sampled_from(RUNS)) for _ in rows]
    spans = Columns(
        [row[4] for row in rows],
        [row[5] for row in rows],
        [row[1] + row[2] for row in rows],
        [row[3] and row[1] + row[3] for row in rows],
        [data.draw(st.sampled_from([0, 7])) for _ in rows],
    )
    attribute(store, {}, spans)
    add_up(spans, {})
    joiner = Joiner(store, MODEL)
    columns = ColumnJoiner(store, joiner)
    window = joiner.window(T0, T0 + S)
    uniform = columns.uniform(window, T0, T0 + S, spans.kids)
    assert uniform is not None
    first = data.draw(st.integers(0, len(rows) - 1))
    chosen = list(range(first, len(rows)))

    at_once: dict[str, Run] = {}
    one_by_one: dict[str, Run] = {}
    for known in (at_once, one_by_one):
        for run in RUNS:
            known[run] = Run(run, 1, started_ns=T0 + 5, ended_ns=T0 + 5, nodes=[["x"]] * nodes)
            known[run].traces = {str(number) for number in range(traces)}
    group = Settlement(spans, rows=rows, origins=[3] * len(rows), runs=runs, extras=extras)
    portion = Portion(uniform, group, chosen, 9, 0)
    _, _, carbons, aligns = columns.join(portion)
    changed = Tally(at_once).add_columns(portion, carbons, aligns, 77)
    for index in chosen:
        joined = joiner.join(
            Settled(
                row=rows[index],
                key=spans.keys[index],
                parent=spans.parents[index],
                origin=3,
                run_id=runs[index],
                own=(spans.own[0][index], spans.own[1][index], spans.own[2][index]),
                kids=(spans.kids[0][index], spans.kids[1][index], spans.kids[2][index]),
                scope=spans.scopes[index],
                label=spans.labels[index],
                extras=extras[index],
            ),
            window,
            [9, index],
        )
        Tally(one_by_one).add(spans, index, rows[index], runs[index], extras[index], joined, 77)
    assert changed == {runs[index] for index in chosen}
    assert {run: at_once[run].dump() for run in RUNS} == {run: one_by_one[run].dump() for run in RUNS}
