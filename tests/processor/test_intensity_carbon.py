from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import ConfigError, RegionError, WireError
from joulegram_pipeline.units import joules_to_kwh
from joulegram_processor.intensity.carbon import (
    Overheads,
    carbon_across,
    carbon_over,
    carbon_ug,
    effective_mg_per_kwh,
    mean_mg_per_kwh,
)
from joulegram_processor.intensity.chain import IntensityChain, Segment
from joulegram_processor.intensity.factors import RegionFactor, lookup_factor, to_gco2e
from joulegram_processor.intensity.table import load_table

ENERGY = st.integers(0, 10**15)
MG = st.integers(0, 2_500_000)
PIECES = st.lists(st.tuples(ENERGY, MG), max_size=20)
EGRID = load_table("epa-egrid-subregion")
NOON = datetime(2023, 6, 1, 12, tzinfo=UTC)


def _exact(pieces: list[tuple[int, int]]) -> Fraction:
    kwh_mg = sum((Fraction(uj, 3_600_000_000_000) * mg for uj, mg in pieces), Fraction(0))
    return kwh_mg * 1000


def test_one_kilowatt_hour_at_one_gram() -> None:
    """The unit chain by hand: 3.6e12 uJ at 1000 mg/kWh is 1 g is 1e6 ug (S0-52, S0-53)."""
    assert carbon_ug(3_600_000_000_000, 1000) == 1_000_000
    assert carbon_ug(3_600_000_000_000, 393_600) == 393_600_000
    assert carbon_ug(1_800_000_000, 1) == 0  # half to even
    assert carbon_ug(5_400_000_000, 1) == 2


@given(ENERGY, MG)
def test_carbon_is_the_fraction_rounded_once(energy_uj: int, mg: int) -> None:
    """Law: round() of the exact Fraction, which is half-even (S0-54)."""
    assert carbon_ug(energy_uj, mg) == round(_exact([(energy_uj, mg)]))
    assert carbon_over([(energy_uj, mg)]) == carbon_ug(energy_uj, mg)


@given(PIECES, st.randoms(use_true_random=False))
def test_a_sum_is_rounded_once_in_any_order(pieces: list[tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    """Law: one rounding of the exact sum; order is nothing."""
    shuffled = list(pieces)
    random.shuffle(shuffled)
    assert carbon_over(pieces) == carbon_over(shuffled) == round(_exact(pieces))


@given(st.integers(0, 10**12), MG, st.lists(st.integers(0, 10**12), max_size=6))
def test_splitting_an_energy_changes_nothing(energy_uj: int, mg: int, cuts: list[int]) -> None:
    """Law: additivity; the parts of an energy under one row give what the whole gives."""
    edges = sorted({0, energy_uj, *(cut % (energy_uj + 1) for cut in cuts)})
    parts = [(after - before, mg) for before, after in pairwise(edges)]
    assert carbon_over(parts) == carbon_ug(energy_uj, mg)


@given(PIECES, st.fractions(1, 3), st.fractions(0, Fraction(9, 10)))
def test_overheads_multiply_exactly(pieces: list[tuple[int, int]], pue: Fraction, loss: Fraction) -> None:
    """Law: PUE x, losses / (1 - loss), still one rounding."""
    want = round(_exact(pieces) * pue / (1 - loss))
    assert carbon_over(pieces, Overheads(pue, loss)) == want


@pytest.mark.parametrize(
    ("pue", "loss", "key"),
    [
        (Fraction(9, 10), Fraction(0), "pue"),
        (Fraction(1), Fraction(1), "loss"),
        (Fraction(1), Fraction(-1), "loss"),
    ],
)
def test_overheads_out_of_range_are_refused(pue: Fraction, loss: Fraction, key: str) -> None:
    """A PUE below 1 and a loss of all or below nothing are errors that name the key."""
    with pytest.raises(ConfigError, match=f"intensity.{key}"):
        Overheads(pue, loss)


@given(st.integers(0, 10**14), st.integers(1, 10**6), st.integers(-(10**6), 10**6), st.data())
def test_cutting_a_span_gives_the_whole_before_rounding(
    energy_uj: int, length: int, offset: int, data: st.DataObject
) -> None:
    """Law: over a year boundary, sub-spans at uniform power add up to the whole span, exactly (D-14)."""
    chain = IntensityChain(EGRID, "egrid:SPNO")
    turn = int(datetime(2023, 1, 1, tzinfo=UTC).timestamp()) * 10**9
    start = turn + offset
    middle = data.draw(st.integers(start, start + length))
    whole = chain.segments(start, start + length)
    parts = [*chain.segments(start, middle), *chain.segments(middle, start + length)]
    exact = sum((Fraction(energy_uj * (s.end_ns - s.start_ns), length) * s.mg_per_kwh for s in whole), Fraction(0))
    assert carbon_across(energy_uj, whole) == round(exact / 3_600_000_000)
    assert carbon_across(energy_uj, parts) == carbon_across(energy_uj, whole)
    assert mean_mg_per_kwh(parts) == mean_mg_per_kwh(whole)


def test_a_span_without_length_takes_the_factor_at_its_instant() -> None:
    """Energy at a point is under the row that holds there."""
    point = [Segment(5, 5, 400_000, "annual", upper_bound=False)]
    assert carbon_across(9_000_000_000, point) == carbon_ug(9_000_000_000, 400_000)
    assert mean_mg_per_kwh(point) == 400_000
    assert carbon_across(9_000_000_000, point, Overheads(Fraction(3, 2))) == 1_500_000


@given(PIECES)
def test_the_effective_intensity_is_the_weighted_mean(pieces: list[tuple[int, int]]) -> None:
    """Law: energy-weighted, rounded once, inside its parts; without weight there is none (C-06)."""
    weight = sum(uj for uj, _ in pieces)
    found = effective_mg_per_kwh(pieces)
    if weight == 0:
        assert found is None
        return
    assert found == round(Fraction(sum(uj * mg for uj, mg in pieces), weight))
    inside = [mg for uj, mg in pieces if uj]
    assert min(inside) <= found <= max(inside)


def test_lookup_names_region_resolution_and_table() -> None:
    """The seed's function answers, with the table's version in what it gives (S1-26, S1-27, D-15)."""
    assert lookup_factor(NOON, "SPP_KS") == RegionFactor(
        "egrid:SPNO", 393.6, "annual", upper_bound=False, table=EGRID.ref.name
    )
    late = lookup_factor(NOON.replace(year=2026), "SPP_KS", EGRID)
    assert (late.intensity_gco2_per_kwh, late.resolution, late.upper_bound) == (393.6, "static", False)
    early = lookup_factor(NOON.replace(year=2020), "SPP_KS")
    assert (early.intensity_gco2_per_kwh, early.resolution, early.upper_bound) == (435.168, "static", True)
    assert lookup_factor(NOON, "MISO", load_table("epa-egrid-ba")).region_code == "ba:MISO"


def test_lookup_takes_the_instant_and_not_its_spelling() -> None:
    """The same instant in another zone is the same factor, on both sides of the UTC new year (D-14)."""
    turn = datetime(2023, 1, 1, tzinfo=UTC)
    kansas = timezone(timedelta(hours=-6))
    for at in (turn, turn - timedelta(microseconds=1)):
        assert lookup_factor(at.astimezone(kansas), "SPP_KS") == lookup_factor(at, "SPP_KS")
    assert lookup_factor(turn, "SPP_KS") != lookup_factor(turn - timedelta(microseconds=1), "SPP_KS")


def test_naive_time_and_ambiguous_regions_are_refused() -> None:
    """The traps of the first sketch: naive time (D-14), a region that is several (D-15)."""
    naive = NOON.replace(tzinfo=None)
    with pytest.raises(WireError, match=r"got instant datetime\.datetime\(2023, 6, 1, 12, 0\)"):
        lookup_factor(naive, "SPP_KS")
    with pytest.raises(WireError, match="time zone"):
        to_gco2e(1.0, None, 1.0, "SPP_KS", started_at=naive)
    with pytest.raises(RegionError, match="ambiguous"):
        lookup_factor(NOON, "MISO")
    with pytest.raises(TypeError):
        to_gco2e(1.0, None, 1.0, started_at=NOON)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("cpu_j", "gpu_w_avg"), [(7200.0, 250.0), (7200.0, None), (None, 250.0), (0.0, 0.0), (0.0, None)]
)
def test_grams_are_the_seeds_formula(cpu_j: float | None, gpu_w_avg: float | None) -> None:
    """cpu_j / 3.6e6 and gpu_w x s / 3.6e6, times the intensity; a 0 is a figure (S1-29, S0-52)."""
    kwh = joules_to_kwh((cpu_j or 0.0) + (gpu_w_avg or 0.0) * 60.0)
    found = to_gco2e(cpu_j, gpu_w_avg, 60.0, "SPP_KS", started_at=NOON)
    assert found == pytest.approx(kwh * 393.6, abs=1e-6)


def test_grams_are_none_only_without_any_energy() -> None:
    """No energy, no carbon: None and never 0 (S1-29, S0-67)."""
    assert to_gco2e(None, None, 60.0, "SPP_KS", started_at=NOON) is None


def test_a_job_over_the_new_year_has_both_factors() -> None:
    """Half a job in each year costs the mean of the two, not the factor at its end (D-14)."""
    started = datetime(2022, 12, 31, 23, tzinfo=UTC)
    found = to_gco2e(3_600_000.0, None, 7200.0, "SPP_KS", started_at=started)
    assert found == pytest.approx((435.168 + 393.600) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cpu_j", (float("nan"), None, 1.0)),
        ("cpu_j", (-1.0, None, 1.0)),
        ("gpu_w_avg", (None, float("inf"), 1.0)),
        ("duration_s", (1.0, None, -1.0)),
        ("duration_s", (None, None, float("nan"))),
    ],
)
def test_quantities_that_are_none_are_refused(name: str, values: tuple[float | None, float | None, float]) -> None:
    """NaN, infinity and negatives are quoted (S0-66)."""
    with pytest.raises(WireError, match=f"{name}: got"):
        to_gco2e(*values, "SPP_KS", started_at=NOON)
