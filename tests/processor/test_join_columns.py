from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from joulegram_processor.attribution import Columns, attribute
from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.inclusive import add_up
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.intensity.table import load_table
from joulegram_processor.join import CarbonModel, Joiner, Settled
from joulegram_processor.join_columns import ColumnJoiner, Portion
from joulegram_processor.waiting import Settlement
from joulegram_schemas import validate
from joulegram_sink.ledger import Ledger
from joulegram_sink.ledger_format import FIRST_SEGMENT
from simulators.decoded import attributes
from simulators.traces import TRACE, S, span_id, tick, tick_batch

if TYPE_CHECKING:
    from joulegram_pipeline.span_rows import Row

EGRID = IntensityChain(load_table("epa-egrid-subregion"), "egrid:SPNO")
NOON = int(datetime(2023, 6, 1, 12, tzinfo=UTC).timestamp()) * S
TICKS = 4
NO_KIDS = ([0], [0], [0])
END = NOON + TICKS * S

MODELS = {
    "a region": CarbonModel(EGRID, region="egrid:SPNO"),
    "a declared factor": CarbonModel(StaticFactor("0.394321", 'the "utility" bill \u2028 2025')),
    "a factor of nothing": CarbonModel(StaticFactor("0", "the sun"), region="röof\u0007"),
}

NAMES = st.one_of(
    st.sampled_from(
        ["etl.job", "etl.node.hrrr_ingest", 'etl.node."quoted"\\', "etl.\u0000\u0007\u001f\u007f", "é😀\u2028"]
    ),
    st.text(max_size=12),
    st.sampled_from(["etl.node." + "x" * 1015, "etl." + "y" * 1020, "etl.node." + "ü" * 5000]),
)
EXTRAS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"kfm.node": st.one_of(NAMES, st.integers(), st.none())}),
    st.fixed_dictionaries({"job.type": st.text(max_size=4)}),
)
INSTANTS = st.one_of(st.integers(NOON, END), st.sampled_from([NOON + k * S for k in range(TICKS + 1)]))


@st.composite
def windows(draw: st.DrawFn) -> EnergyStore:
    """Adjoining ticks of one kind: CPU, or CPU and DRAM; one process is named in some of them."""
    dram = draw(st.booleans())
    store = EnergyStore(retention_ns=10**15)
    uj = st.one_of(st.integers(0, 5), st.integers(0, 300_000_000))
    for seq in range(TICKS):
        made = tick(
            seq + 1,
            NOON + seq * S,
            NOON + (seq + 1) * S,
            cpu_uj=draw(uj),
            dram_uj=draw(uj) if dram else None,
            busy_ns=draw(st.integers(0, 4 * S)),
            total_ns=draw(st.integers(1, 4 * S)),
            processes={77: draw(st.integers(0, S))} if draw(st.booleans()) else {},
        )
        store.add(tick_batch(made))
    return store


@st.composite
def settlements(draw: st.DrawFn) -> tuple[Columns, list[Row], list[dict[str, Any]]]:
    count = draw(st.integers(1, 6))
    rows: list[Row] = []
    for number in range(count):
        start, end = sorted((draw(INSTANTS), draw(INSTANTS)))
        parent = draw(st.sampled_from([b"", *(span_id(other + 1) for other in range(count + 1))]))
        rows.append((draw(NAMES), TRACE, span_id(number + 1), parent, start, end, draw(st.integers(-1, 4))))
    spans = Columns(
        starts=[row[4] for row in rows],
        ends=[row[5] for row in rows],
        keys=[row[1] + row[2] for row in rows],
        parents=[row[1] + row[3] if row[3] else b"" for row in rows],
        pids=[draw(st.sampled_from([0, 77])) for _ in rows],
    )
    return spans, rows, [draw(EXTRAS) for _ in rows]


def appended(directory: Path, *, records: list[Any] | None = None, lines: list[Any] | None = None) -> list[bytes]:
    """What a ledger writes of these, its genesis left out; `prev_hash` of the first is that of its own genesis."""
    with Ledger(directory) as ledger:
        if records is not None:
            ledger.append(records)
        if lines is not None:
            ledger.append_lines(lines)
    return (directory / FIRST_SEGMENT).read_bytes().splitlines()[1:]


def unchained(line: bytes) -> bytes:
    """A line without the hash of the one before, which goes back to a genesis of its own in each ledger."""
    value = json.loads(line)
    before, after = line.split(value["prev_hash"].encode())
    return before + after


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@given(
    store=windows(),
    settlement=settlements(),
    carried=st.sampled_from([(0, 0, 0), (7, 0, 0), (7, 3, 0), (0, 0, 5)]),
    lsn=st.integers(0, 2**50),
)
@settings(max_examples=120, deadline=None)
def test_columns_give_what_each_span_alone_gives(
    model: CarbonModel,
    store: EnergyStore,
    settlement: tuple[Columns, list[Row], list[dict[str, Any]]],
    carried: tuple[int, int, int],
    lsn: int,
) -> None:
    """Law: ledger line and attributes are byte for byte those of the general path; the line is RFC 8785 and valid."""
    spans, rows, extras = settlement
    attribute(store, {}, spans)
    add_up(spans, {spans.keys[0]: carried})
    origins, runs = [lsn // 2] * len(rows), [f"run-{at % 2}-0000" for at in range(len(rows))]
    joiner = Joiner(store, model)
    columns = ColumnJoiner(store, joiner)
    first, last = min(spans.starts), max(spans.ends)
    window = joiner.window(first, last)
    uniform = columns.uniform(window, first, last, spans.kids)
    if uniform is None:
        # Nothing else keeps these off the quick path: a point in time at a tick's edge, or energy of another kind.
        assert first == last or carried[1] or carried[2]
        return
    order = list(range(len(rows)))
    group = Settlement(spans, rows=rows, origins=origins, runs=runs, extras=extras)
    lines, blobs, carbons, aligns = columns.join(Portion(uniform, group, order, lsn, 3))
    alone = [
        joiner.join(
            Settled(
                row=rows[at],
                key=spans.keys[at],
                parent=spans.parents[at],
                origin=origins[at],
                run_id=runs[at],
                own=(spans.own[0][at], spans.own[1][at], spans.own[2][at]),
                kids=(spans.kids[0][at], spans.kids[1][at], spans.kids[2][at]),
                scope=spans.scopes[at],
                label=spans.labels[at],
                extras=extras[at],
            ),
            window,
            [lsn, 3 + at],
        )
        for at in order
    ]
    assert blobs == [joined.attributes for joined in alone]
    assert carbons == [joined.exclusive_ug for joined in alone]
    assert aligns == [joined.align_ug for joined in alone]
    with tempfile.TemporaryDirectory() as folder:
        quick = appended(Path(folder) / "a", lines=lines)
        general = appended(Path(folder) / "b", records=[joined.line for joined in alone])
    assert [unchained(line) for line in quick] == [unchained(line) for line in general]
    for line in quick:
        value = json.loads(line)
        assert rfc8785.dumps(value) == line
        validate("ledger-line-v1", value)
    for blob in blobs:
        gained = attributes(Span.FromString(blob))
        assert len(gained) == len(Span.FromString(blob).attributes)
        validate("otel-energy-span-v1", gained)


def uniform_of(store: EnergyStore) -> tuple[ColumnJoiner, Any]:
    joiner = Joiner(store, MODELS["a region"])
    columns = ColumnJoiner(store, joiner)
    start, end = store.rows[0].start_ns, store.watermark_ns
    return columns, columns.uniform(joiner.window(start, end), start, end, NO_KIDS)


NOT_UNIFORM = {
    "a kind this path does not know": [tick(1, NOON, NOON + S, cpu_uj=5, gpu_uj=5)],
    "DRAM alone": [tick(1, NOON, NOON + S, dram_uj=5)],
    "a hole between ticks": [tick(1, NOON, NOON + S, cpu_uj=5), tick(2, NOON + 2 * S, NOON + 3 * S, cpu_uj=5)],
    "a tick with a reason": [tick(1, NOON, NOON + S, cpu_uj=5, gaps=[("package-1", "reset")])],
    "a tick without energy": [tick(1, NOON, NOON + S)],
    "two sets of kinds": [tick(1, NOON, NOON + S, cpu_uj=5), tick(2, NOON + S, NOON + 2 * S, cpu_uj=5, dram_uj=5)],
}


@pytest.mark.parametrize("ticks", NOT_UNIFORM.values(), ids=NOT_UNIFORM.keys())
def test_what_is_not_uniform_is_left_to_the_general_path(ticks: list[Any]) -> None:
    """One method, one set of kinds, no hole and no gap: else no single thing holds (D-10)."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(*ticks))
    assert uniform_of(store)[1] is None


def test_a_table_boundary_is_left_to_the_general_path() -> None:
    """D-14: a span over the turn of the year has two intensities."""
    turn = int(datetime(2023, 1, 1, tzinfo=UTC).timestamp()) * S
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, turn - S, turn, cpu_uj=5), tick(2, turn, turn + S, cpu_uj=5)))
    columns, uniform = uniform_of(store)
    assert uniform is None
    window = Joiner(store, MODELS["a region"]).window(turn, turn + S)
    assert columns.uniform(window, turn, turn + S, NO_KIDS) is not None


@pytest.mark.parametrize(("uj", "ug"), [(1800, 0), (1801, 1), (5400, 2), (5399, 1), (9000, 2)])
def test_a_half_microgram_is_rounded_to_even(uj: int, ug: int) -> None:
    """At 1 kg/kWh a microgram is 3600 uJ: ties go to even, here as in the general path."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, NOON, NOON + S, cpu_uj=uj)))
    joiner = Joiner(store, CarbonModel(StaticFactor("1", "by hand")))
    columns = ColumnJoiner(store, joiner)
    spans = Columns([NOON], [NOON + S], [TRACE + span_id(1)], [b""], [0])
    attribute(store, {}, spans)
    add_up(spans, {})
    uniform = columns.uniform(joiner.window(NOON, NOON + S), NOON, NOON + S, spans.kids)
    assert uniform is not None
    row: Row = ("etl.job", TRACE, span_id(1), b"", NOON, NOON + S, 0)
    group = Settlement(spans, rows=[row], origins=[0], runs=["run-one-0001"], extras=[{}])
    (line,), _, carbons, _ = columns.join(Portion(uniform, group, [0], 1, 0))
    assert carbons == [ug]
    assert f'"ug":{ug},' in line[2]
