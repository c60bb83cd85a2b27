from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from joulegram_pipeline.canonical import canonical, canonical_plain
from joulegram_pipeline.energy import Method
from joulegram_processor.energy_store import HOST, EnergyStore
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.table import load_table
from joulegram_processor.join import CarbonModel, Joined, Joiner, Settled
from joulegram_processor.scopes import BY_HOST, BY_PROCESS
from joulegram_schemas import validate
from simulators.decoded import attributes
from simulators.traces import TRACE, S, span_id, tick, tick_batch

TABLE = load_table("epa-egrid-subregion")
CHAIN = IntensityChain(TABLE, "egrid:SPNO")
MODEL = CarbonModel(CHAIN, region="egrid:SPNO")
TURN = int(datetime(2023, 1, 1, tzinfo=UTC).timestamp()) * S
BEFORE_MG, AFTER_MG = (
    next(row.mg_per_kwh for row in TABLE.regions["egrid:SPNO"] if row.start_ns <= at < row.end_ns)
    for at in (TURN - 1, TURN)
)
UJ = st.one_of(st.integers(0, 9), st.integers(0, 10**9))


def settled(
    start_ns: int,
    end_ns: int,
    own: tuple[int, int, int] = (0, 0, 0),
    kids: tuple[int, int, int] = (0, 0, 0),
    scope: int = HOST,
    **extras: Any,
) -> Settled:
    row = ("etl.step", TRACE, span_id(1), b"", start_ns, end_ns, 0)
    found = {key.replace("__", "."): value for key, value in extras.items()}
    return Settled(
        row, TRACE + span_id(1), b"", 7, "run-one-0001", own, kids, scope, BY_PROCESS if scope else BY_HOST, found
    )


def joined(store: EnergyStore, span: Settled, model: CarbonModel = MODEL, *, windowed: bool = True) -> Joined:
    joiner = Joiner(store, model)
    window = joiner.window(span.row[4], span.row[5]) if windowed else None
    return joiner.join(span, window, [10, 0])


@st.composite
def stores(draw: st.DrawFn) -> EnergyStore:
    """Ticks around the turn of the year, of any kinds and two methods, with holes and gaps."""
    store = EnergyStore(retention_ns=10**15)
    at = TURN - 3 * S
    for seq in range(6):
        made = tick(
            seq + 1,
            at,
            at + S,
            cpu_uj=draw(st.one_of(st.none(), UJ)),
            gpu_uj=draw(st.sampled_from([None, None, 5_000_000])),
            busy_ns=S,
            total_ns=2 * S,
            processes={77: S // 3} if draw(st.booleans()) else {},
            gaps=[("package-1", "reset")] if draw(st.integers(0, 9)) == 0 else (),
        )
        store.add(tick_batch(made, method=draw(st.sampled_from([Method.MEASURED, Method.MEASURED, Method.MODELLED]))))
        at += S * draw(st.sampled_from([1, 1, 1, 2]))
    return store


INSTANTS = st.one_of(st.integers(TURN - 4 * S, TURN + 4 * S), st.sampled_from([TURN + k * S for k in range(-4, 5)]))


@given(stores(), INSTANTS, INSTANTS, st.tuples(UJ, UJ, UJ), st.tuples(UJ, UJ, UJ), st.sampled_from([HOST, 77]))
@settings(max_examples=300, deadline=None)
def test_carbon_is_the_exact_fraction_rounded_once(
    store: EnergyStore, one: int, other: int, own: tuple[int, int, int], kids: tuple[int, int, int], scope: int
) -> None:
    """Law (D-14): energy x intensity, split at the table's boundary by what the scope spent on either side."""
    start, end = min(one, other), max(one, other)
    made = joined(store, settled(start, end, own, kids, scope))
    carbon, energy = made.line["carbon"], made.line["energy"]
    if energy["method"] == "unavailable":
        assert set(carbon) == {"reason"}  # S0-67
        assert set(energy) == {"method", "reason", "covered_ns"}
        return
    total = sum(own) + sum(kids)
    assert energy["total_uj"] == total
    weights = [sum(store.energy(start, TURN, scope)), sum(store.energy(TURN, end, scope))]
    if start >= TURN or end <= TURN:
        weights = [int(end <= TURN and start < TURN), int(start >= TURN)]
    elif not any(weights):
        weights = [TURN - start, end - TURN]
    for uj, ug in ((total, carbon["ug"]), (sum(own), carbon["exclusive_ug"])):
        exact = Fraction(uj, sum(weights)) * (weights[0] * BEFORE_MG + weights[1] * AFTER_MG) / 3_600_000_000
        # Energy is split in whole microjoules; a microjoule is less than a thousandth of a microgram.
        assert abs(ug - exact) <= Fraction(501, 1000)
    assert carbon["lower_ug"] <= carbon["ug"] <= carbon["upper_ug"]
    assert min(BEFORE_MG, AFTER_MG) <= carbon["intensity_mg_per_kwh"] <= max(BEFORE_MG, AFTER_MG)


@given(stores(), INSTANTS, INSTANTS, st.tuples(UJ, UJ, UJ), st.sampled_from([HOST, 77]))
@settings(max_examples=200, deadline=None)
def test_every_line_and_attribute_set_is_valid(
    store: EnergyStore, one: int, other: int, own: tuple[int, int, int], scope: int
) -> None:
    """Law (D-22, S1-23, S1-24): schema valid, RFC 8785, no key twice; a duration always."""
    start, end = min(one, other), max(one, other)
    made = joined(store, settled(start, end, own, scope=scope))
    line = dict(made.line) | {"seq": 1, "prev_hash": "sha256:" + "0" * 64}
    validate("ledger-line-v1", line)
    assert canonical(line) == canonical_plain(line)
    span = Span.FromString(made.attributes)
    gained = attributes(span)
    assert len(gained) == len(span.attributes)
    validate("otel-energy-span-v1", gained)
    assert gained["timing.duration_s"] == (end - start) / 1e9
    assert gained["energy.method"] == made.line["energy"]["method"]
    assert ("energy.reason" in gained) == ("reason" in made.line["energy"]) == ("covered_ns" in made.line["energy"])


@given(stores(), INSTANTS, INSTANTS, st.tuples(UJ, UJ, UJ))
@settings(max_examples=150, deadline=None)
def test_a_window_is_a_short_cut_only(store: EnergyStore, one: int, other: int, own: tuple[int, int, int]) -> None:
    """Law: where one thing holds over a span's time, looking tick by tick finds the same."""
    span = settled(min(one, other), max(one, other), own)
    quick, slow = joined(store, span), joined(store, span, windowed=False)
    assert (quick.line, quick.attributes) == (slow.line, slow.attributes)


def test_a_span_over_the_turn_is_cut_there() -> None:
    """By hand (D-14): 1 kWh before and 3 kWh after; an effective intensity between, resolution of both."""
    store = EnergyStore(retention_ns=10**18)
    hour = 3600 * S
    kwh = 3_600_000_000_000
    store.add(tick_batch(tick(1, TURN - hour, TURN, cpu_uj=kwh), tick(2, TURN, TURN + hour, cpu_uj=3 * kwh)))
    made = joined(store, settled(TURN - hour, TURN + hour, (4 * kwh, 0, 0)))
    carbon = made.line["carbon"]
    assert carbon["ug"] == (BEFORE_MG + 3 * AFTER_MG) * 1000
    assert carbon["intensity_mg_per_kwh"] == round(Fraction(BEFORE_MG + 3 * AFTER_MG, 4))
    assert (carbon["resolution"], carbon["table"]) == ("annual", TABLE.ref.name)


SPANS: dict[str, tuple[tuple[float, float], dict[str, Any]]] = {
    "whole": ((0, 1), {"method": "measured", "reason": None, "covered": None}),
    "in part before the first tick": ((-1, 1), {"method": "measured", "reason": "before_first_tick", "covered": 1}),
    "in a hole": ((2, 3), {"method": "unavailable", "reason": "gap_between_ticks", "covered": 0}),
    "over a hole": ((1, 4), {"method": "mixed", "reason": "gap_between_ticks", "covered": 2}),
    "modelled": ((3, 4), {"method": "modelled", "reason": None, "covered": None}),
    "after the last": ((5, 6), {"method": "unavailable", "reason": "after_last_tick", "covered": 0}),
}


@pytest.mark.parametrize(("window", "wanted"), SPANS.values(), ids=SPANS.keys())
def test_what_is_said_of_a_spans_energy(window: tuple[float, float], wanted: dict[str, Any]) -> None:
    """S0-60, C-09, D-10: method of the ticks, and for what is missing a reason and how much is covered; never 0."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, TURN, TURN + S, cpu_uj=5), tick(2, TURN + S, TURN + 2 * S, cpu_uj=5)))
    store.add(tick_batch(tick(3, TURN + 3 * S, TURN + 4 * S, cpu_uj=5), method=Method.MODELLED))
    start, end = (TURN + round(at * S) for at in window)
    energy = joined(store, settled(start, end, (1, 0, 0))).line["energy"]
    covered = wanted["covered"]
    assert (energy["method"], energy.get("reason")) == (wanted["method"], wanted["reason"])
    assert energy.get("covered_ns") == (None if covered is None else str(covered * S))
    assert ("total_uj" in energy) == (wanted["method"] != "unavailable")


def test_a_kind_that_was_not_read_is_absent() -> None:
    """D-09, D-10: no DRAM and no GPU is no key; with one, mean power is its counter over the span (S1-23, S1-24)."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, TURN, TURN + S, cpu_uj=5), tick(2, TURN + S, TURN + 2 * S, cpu_uj=5, gpu_uj=9)))
    without = attributes(Span.FromString(joined(store, settled(TURN, TURN + S, (5, 0, 0))).attributes))
    assert not {"energy.dram_j", "energy.gpu_j", "energy.gpu_w_avg"} & set(without)
    span = settled(TURN + S, TURN + S + S // 2, (2, 0, 4_000_000))
    having = attributes(Span.FromString(joined(store, span).attributes))
    assert (having["energy.gpu_j"], having["energy.gpu_w_avg"]) == (4.0, 8.0)
    assert "energy.dram_j" not in having


REPORTS: dict[str, tuple[Any, int | None]] = {
    "a number of joules": (2.5, 2_500_000),
    "whole joules": (3, 3_000_000),
    "nothing": (0, 0),
    "less than nothing": (-1.0, None),
    "no number": (float("nan"), None),
    "without end": (float("inf"), None),
    "a truth": (True, None),
    "text": ("2.5", None),
    "a power station's": (1e9, None),
}


@pytest.mark.parametrize(("value", "uj"), REPORTS.values(), ids=REPORTS.keys())
def test_what_a_job_may_report(value: Any, uj: int | None) -> None:
    """D-08, S0-66: a report that can be an energy is kept and priced; one that cannot is measured instead."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, TURN, TURN + S, cpu_uj=5)))
    energy = joined(store, settled(TURN, TURN + S, (5, 0, 0), energy__cpu_j=value)).line["energy"]
    assert energy["method"] == ("measured" if uj is None else "reported")
    assert energy["total_uj"] == (5 if uj is None else uj)
    assert energy.get("reported_uj") == uj
    assert energy["exclusive_uj"] == 5  # sums are of what was measured, whatever was reported


def test_without_an_intensity_the_reason_is_the_models() -> None:
    """D-15, S0-67: no default region; energy stands alone and carbon says why it is missing."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, TURN, TURN + S, cpu_uj=5)))
    made = joined(store, settled(TURN, TURN + S, (5, 0, 0)), CarbonModel(None, "region_not_configured"))
    assert made.line["carbon"] == {"reason": "region_not_configured"}
    assert made.line["energy"]["total_uj"] == 5


EDGES: dict[str, tuple[tuple[int, int], int]] = {
    "on the edges of ticks": ((0, 20), 0),
    "the middle of one tick": ((2, 7), 50),
    "half a tick at its beginning": ((5, 20), 13),  # 2.5 of 15 ns, floored to whole ones
    "half a tick at its end": ((0, 15), 13),
    "a point": ((5, 5), 0),
    "after all ticks": ((20, 30), 0),
}


@pytest.mark.parametrize(("window", "part"), EDGES.values(), ids=EDGES.keys())
def test_how_far_the_edges_may_be_off(window: tuple[int, int], part: int) -> None:
    """Power inside a tick is not known: e x f x (1 - f) at each edge, in hundredths of the span's energy."""
    store = EnergyStore(retention_ns=10**15)
    store.add(tick_batch(tick(1, 100, 110, cpu_uj=5), tick(2, 110, 120, cpu_uj=5)))
    assert Joiner(store, MODEL).alignment_uj(100 + window[0], 100 + window[1], 100) == part
