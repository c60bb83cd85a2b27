"""The compiled join writes what its Python reference writes, to the byte, and leaks nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_pipeline.span_rows import Row
from joulegram_processor import native
from joulegram_processor.attribution import Columns
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.intensity.table import load_table
from joulegram_processor.join import CarbonModel, Joiner
from joulegram_processor.join_columns import ColumnJoiner, Portion
from joulegram_processor.scopes import LABELS
from joulegram_processor.waiting import Settlement
from processor.compiled import COMPILED, no_growth
from simulators.odd_requests import RUN_IDS, TEXTS
from simulators.traces import S, tick, tick_batch

pytestmark = COMPILED

NOON = 1_685_620_800 * S

MODELS = {
    "a region": CarbonModel(IntensityChain(load_table("epa-egrid-subregion"), "egrid:SPNO"), region="egrid:SPNO"),
    "a declared factor": CarbonModel(StaticFactor("0.394321", 'the "utility" bill \u2028 2025')),
    "a great factor": CarbonModel(StaticFactor("4.999999", "soot"), region="röof\u0007"),
    "nothing": CarbonModel(StaticFactor("0", "the sun")),
}

FIGURES = st.one_of(
    st.sampled_from([0, 1, 3_600_000_000, 2**50, 2**51 - 1, 2**51, 2**53, 2**62, 2**64]),
    st.integers(0, 10**7),
    st.integers(0, 10**13),
)

Chunk = tuple[EnergyStore, Columns, list[Row], list[dict[str, Any]], list[str]]


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Settled spans of one method with whatever figures, in adjoining ticks of whatever width and energy."""
    store = EnergyStore(retention_ns=10**17)
    dram = draw(st.booleans())
    width = draw(st.sampled_from([1, 7, S, 3600 * S]))
    for number in range(3):
        uj = st.one_of(st.integers(0, 9), st.integers(0, 10**9), st.integers(0, 2**54))
        at = NOON + number * width
        made = tick(number + 1, at, at + width, cpu_uj=draw(uj), dram_uj=draw(uj) if dram else None)
        store.add(tick_batch(made))
    rows: list[Row] = []
    extras: list[dict[str, Any]] = []
    spans = Columns()
    for _ in range(draw(st.integers(1, 5))):
        instants = st.one_of(st.integers(0, 3 * width), st.sampled_from([0, width, 2 * width, 3 * width]))
        start, end = sorted((NOON + draw(instants), NOON + draw(instants)))
        name = draw(st.one_of(st.sampled_from(["etl.job", 'etl.node."q"\\', "é\u2028\x07"]), TEXTS))
        rows.append(
            (name, draw(st.binary(min_size=16, max_size=16)), b"\1" * 8, b"", start, end, draw(st.integers(-1, 3)))
        )
        extras.append(draw(st.sampled_from([{}, {}, {"kfm.node": "n"}, {"job.type": 1}])))
        spans.starts.append(start)
        spans.ends.append(end)
        spans.parents.append(draw(st.sampled_from([b"", b"p" * 24])))
        spans.labels.append(draw(st.sampled_from(range(len(LABELS)))))
        for column in (*spans.own[:2], *spans.kids[:2]) if dram else (spans.own[0], spans.kids[0]):
            column.append(draw(FIGURES))
        for column in (*spans.own, *spans.kids):
            if len(column) < len(rows):
                column.append(0)
    runs = [draw(st.sampled_from(RUN_IDS)) for _ in rows]
    return store, spans, rows, extras, runs


def join_case(chunk: Chunk, model: CarbonModel) -> tuple[ColumnJoiner, Portion] | None:
    store, spans, rows, extras, runs = chunk
    joiner = Joiner(store, model)
    columns = ColumnJoiner(store, joiner)
    first, last = min(spans.starts), max(spans.ends)
    uniform = columns.uniform(joiner.window(first, last), first, last, spans.kids)
    if uniform is None:
        return None
    group = Settlement(spans, rows=rows, origins=[2**50] * len(rows), runs=runs, extras=extras)
    return columns, Portion(uniform, group, list(range(len(rows))), 2**51, 7)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@given(chunk=chunks())
@settings(max_examples=150, deadline=None)
def test_join_writes_what_the_reference_writes(model: CarbonModel, chunk: Chunk) -> None:
    """Lines, attributes and figures to the byte and the microgram, or a refusal."""
    case = join_case(chunk, model)
    if case is None:
        return
    columns, portion = case
    made = columns._join_natively(native.LOADED, portion)
    reference = columns.join_in_python(portion)
    assert columns.join(portion) == reference
    if max(map(max, (*chunk[1].own, *chunk[1].kids))) <= 10**9 and model is MODELS["a region"]:
        measured_uj = sum(row.host[0] + row.host[1] for row in chunk[0].rows)
        assert made is not None or measured_uj > 2**52, "only what a double may not hold is refused"
    if made is not None:
        assert made == reference


def test_join_leaks_nothing() -> None:
    """Neither where it answers nor where it refuses in the midst of the spans."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, NOON, NOON + S, cpu_uj=10**7, dram_uj=5)))
    rows: list[Row] = [(f"etl.{at}", b"t" * 16, bytes([at]) * 8, b"", NOON + at, NOON + S, 0) for at in range(9)]
    spans = Columns([row[4] for row in rows], [row[5] for row in rows], [], [b"p" * 24] * 9, [], labels=[0] * 9)
    spans.own, spans.kids = ([10**5] * 9, [3] * 9, [0] * 9), ([0] * 9, [0] * 9, [0] * 9)
    case = join_case((store, spans, rows, [{}, {"kfm.node": "n"}, {}] * 3, ["run-one-0001"] * 9), MODELS["a region"])
    assert case is not None
    columns, portion = case
    assert columns._join_natively(native.LOADED, portion) is not None
    no_growth(lambda: columns._join_natively(native.LOADED, portion))
    spans.own[0][8] = 2**60
    assert columns._join_natively(native.LOADED, portion) is None
    no_growth(lambda: columns._join_natively(native.LOADED, portion))
