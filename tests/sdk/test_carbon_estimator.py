"""CarbonEstimator: carbon-ops' names and fields, on versioned tables, with intervals that mean something (S3-11)."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import joulegram
from joulegram import CarbonEstimate, CarbonEstimator
from joulegram.intensity import Piece, StaticIntensity
from joulegram_pipeline.errors import ConfigError, RegionError

START = datetime(2023, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)
DICT = {
    *("energy_consumed_wh", "energy_consumed_kwh", "total_energy_with_pue_kwh", "carbon_emissions_gco2"),
    *("carbon_emissions_kgco2", "carbon_emissions_tonnes", "carbon_intensity_used_gco2_kwh", "intensity_uncertainty"),
    *("provider_version", "pue_used", "meta"),
}
DATACLASS = {
    *("grams", "intensity_g_per_kwh", "energy_kwh", "total_energy_with_pue_kwh", "pue_used", "source", "region"),
    *("start_ts", "end_ts", "uncertainty_pct", "provider_version", "calibration_version", "conversion_version"),
    *("quality_flag", "coverage_pct", "meta"),
}
META = {"method", "ci_lower_g", "ci_upper_g", "confidence_level_pct"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No region from outside."""
    for name in [*os.environ]:
        if name.startswith(("KFM_", "JOULEGRAM_")):
            monkeypatch.delenv(name)


class Hours:
    """100 and 300 g/kWh in turn, by the hour, of a given width, known for the first `known` hours of the window."""

    region, source = "test", "hours@1"

    def __init__(self, half_width_ppm: int | None = 100_000, known: int | None = None) -> None:
        self.half_width_ppm = half_width_ppm
        self.known = known

    def pieces(self, start_ns: int, end_ns: int) -> list[Piece]:
        hour = 3_600_000_000_000
        starts = range(start_ns, end_ns, hour)[: self.known]
        return [
            Piece(at, min(at + hour, end_ns), 100_000 if number % 2 == 0 else 300_000, self.half_width_ppm)
            for number, at in enumerate(starts)
        ]


def estimate(estimator: CarbonEstimator, **given: Any) -> CarbonEstimate:
    found = estimator.estimate_over_span(START, END, 1000.0, return_dataclass=True, **given)
    assert isinstance(found, CarbonEstimate)
    return found


def test_the_fields_are_those_of_carbon_ops() -> None:
    """Eleven keys, the sixteen of the dataclass, the four of `meta`; tests/peers/energy asks the package."""
    found: Any = CarbonEstimator("SPP_KS").estimate_over_span(start_ts=START, end_ts=END, energy_wh=1000.0)
    assert set(found) == DICT
    assert set(found["meta"]) == META
    assert {field.name for field in fields(CarbonEstimate)} == DATACLASS
    assert json.loads(json.dumps(found.to_dict())) == found
    assert estimate(CarbonEstimator("SPP_KS")).to_ndjson_event()["type"] == "carbon_estimate"


def test_energy_times_pue_times_the_tables_row() -> None:
    """Exact: 1 kWh x 1.2 x 393.6 g/kWh; the table and its version are in the result."""
    found = estimate(CarbonEstimator("SPP_KS"))
    assert found.grams == 472.32
    assert (found.energy_kwh, found.total_energy_with_pue_kwh, found.pue_used) == (1.0, 1.2, 1.2)
    assert (found.region, found.provider_version) == ("egrid:SPNO", "epa-egrid-subregion@2023.rev2+cf04ea89")
    assert (found.quality_flag, found.coverage_pct) == ("measured", 100.0)
    assert found.intensity_g_per_kwh == joulegram.lookup_factor(START, "SPP_KS").intensity_gco2_per_kwh


def test_a_span_is_integrated_over_the_intensitys_intervals() -> None:
    """Half an hour over a boundary has half of each; whatever `bucket_minutes` says."""
    estimator = CarbonEstimator(intensity_provider=Hours(), custom_pue=1.0)
    found: Any = estimator.estimate_over_span(
        START, START + timedelta(minutes=90), power_watts=1000.0, bucket_minutes=60
    )
    assert found["energy_consumed_kwh"] == 1.5
    assert found["carbon_emissions_gco2"] == pytest.approx(100 + 150)


def test_a_longer_span_is_not_surer() -> None:
    """Rows of one table are wrong together: a day of 24 rows has the width of one row."""
    hour, day = (
        CarbonEstimator(intensity_provider=Hours(), custom_pue=1.0).estimate_over_span(
            START, START + timedelta(hours=hours), 1000.0, return_dataclass=True
        )
        for hours in (1, 24)
    )
    assert isinstance(hour, CarbonEstimate)
    assert isinstance(day, CarbonEstimate)
    assert hour.uncertainty_pct == day.uncertainty_pct == 5.0
    assert day.meta is not None
    assert day.meta["ci_lower_g"] == pytest.approx(day.grams * 0.9)
    assert day.meta["ci_upper_g"] == pytest.approx(day.grams * 1.1)


def test_monte_carlo_agrees_with_the_analytical_interval() -> None:
    """The percentiles of the draws, not of their mean: within 3 % of the half-width, around the value, repeatable."""
    estimator = CarbonEstimator(intensity_provider=Hours(), custom_pue=1.0)
    plain, drawn, again = (
        estimate(estimator),
        estimate(estimator, audit_mode=True),
        estimate(estimator, audit_mode=True),
    )
    assert plain.meta is not None
    assert drawn.meta is not None
    assert drawn.meta == again.meta
    assert (plain.meta["method"], drawn.meta["method"]) == ("analytical_truncated", "monte_carlo")
    half = 0.1 * plain.grams
    for end in ("ci_lower_g", "ci_upper_g"):
        assert drawn.meta[end] == pytest.approx(plain.meta[end], abs=0.03 * half)


def test_time_without_an_intensity() -> None:
    """`step` carries the mean of what is known, `drop` leaves that energy out; `coverage_pct` is a percentage."""
    estimator = CarbonEstimator(intensity_provider=Hours(known=12), custom_pue=1.0)
    step, drop = estimate(estimator), estimate(estimator, missing_policy="drop")
    assert (step.energy_kwh, step.grams, step.coverage_pct) == (1.0, 200.0, 50.0)
    assert (drop.energy_kwh, drop.grams, drop.coverage_pct) == (0.5, 100.0, 50.0)


def test_an_intensity_whose_width_nobody_states_has_none() -> None:
    """`uncertainty_pct` is None, and the interval is the value: nothing is made up."""
    found = estimate(CarbonEstimator(custom_carbon_intensity=400.0, custom_pue=1.0))
    assert (found.grams, found.uncertainty_pct, found.quality_flag) == (400.0, None, "estimated")
    assert found.meta is not None
    assert found.meta["ci_lower_g"] == found.meta["ci_upper_g"] == 400.0


def test_the_region_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """JOULEGRAM_REGION, else Ember's world, flagged as the fallback that it is."""
    world = estimate(CarbonEstimator())
    assert (world.region, world.quality_flag) == ("ember:WORLD", "fallback")
    monkeypatch.setenv("JOULEGRAM_REGION", "SPP_KS")
    assert CarbonEstimator().region == "egrid:SPNO"


def test_another_region_for_one_estimate() -> None:
    """Its own intensity comes with its name (it did not there)."""
    found = estimate(CarbonEstimator("SPP_KS"), region="iso3:DEU")
    assert found.region == "iso3:DEU"
    assert found.intensity_g_per_kwh != estimate(CarbonEstimator("SPP_KS")).intensity_g_per_kwh


def test_an_unknown_region_is_an_error_and_no_average() -> None:
    """Quoted, as everywhere."""
    with pytest.raises(RegionError, match="'us-east'"):
        CarbonEstimator("us-east")


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ({"datacenter_type": "barn"}, "datacenter_type: got 'barn'"),
        ({"custom_pue": 0.0}, "custom_pue: got 0.0"),
        ({"custom_carbon_intensity": -1.0}, "custom_carbon_intensity: got -1.0"),
        ({"custom_carbon_intensity": float("nan")}, "custom_carbon_intensity: got nan"),
        ({"config": object()}, "config: got 'object'"),
    ],
)
def test_what_cannot_be_used_is_quoted(given: dict[str, Any], quoted: str) -> None:
    """A PUE below 1 and a negative intensity are refused, not multiplied (C-59 is about hardware)."""
    with pytest.raises(ConfigError, match=quoted):
        CarbonEstimator(**given)


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ({"energy_wh": -1.0}, "got energy_wh -1.0"),
        ({"energy_wh": float("inf")}, "got energy_wh inf"),
        ({}, "got neither energy_wh nor power_watts"),
        ({"energy_wh": 1.0, "end_ts": START}, "expected one after start_ts"),
        ({"energy_wh": 1.0, "start_ts": datetime(2023, 5, 1)}, "without a time zone"),  # noqa: DTZ001 - the subject
        ({"energy_wh": 1.0, "start_ts": "yesterday"}, "got start_ts 'yesterday'"),
        ({"energy_wh": 1.0, "bucket_minutes": 0}, "got bucket_minutes 0"),
        ({"energy_wh": 1.0, "missing_policy": "guess"}, "got missing_policy 'guess'"),
        ({"energy_wh": 1.0, "audit_mode": True, "monte_carlo_iterations": 10**9}, "got 1000000000 iterations"),
    ],
)
def test_bad_input_is_a_value_error_as_there(given: dict[str, Any], quoted: str) -> None:
    """Negative and infinite energies are refused (they were not), and each message quotes what it got."""
    estimator = CarbonEstimator(custom_carbon_intensity=400.0)
    with pytest.raises(ValueError, match=quoted):
        estimator.estimate_over_span(**{"start_ts": START, "end_ts": END, **given})


def test_from_an_energy_and_from_power() -> None:
    """The shorter ways give the same, at an instant."""
    estimator = CarbonEstimator(custom_carbon_intensity=400.0, custom_pue=1.5)
    energy: Any = estimator.estimate_from_energy(1000.0, timestamp=START)
    power: Any = estimator.estimate_from_power_time(500.0, 7200.0, timestamp=START)
    assert energy == power
    assert energy["carbon_emissions_gco2"] == 600.0
    assert estimator.carbon_intensity_gco2_kwh == 400.0


def test_labels_and_equivalents() -> None:
    """carbon-ops' keys and divisors."""
    estimator = CarbonEstimator(custom_carbon_intensity=400.0, custom_pue=1.0)
    label: Any = estimator.get_carbon_label(1000.0)["carbon_label"]
    assert (label["rating"], label["equivalents"]["equivalent_km_driven"]) == ("C", "3.33")
    assert estimator.get_available_datacenter_types()["edge"] == 1.4
    with pytest.raises(ValueError, match="non-negative"):
        estimator.compare_carbon_equivalents(-1.0)


def test_the_seeds_names_are_there() -> None:
    """RegionFactor, lookup_factor and to_gco2e from where jobs import (S1-26, S1-27, S1-29, C-60)."""
    factor = joulegram.lookup_factor(START, "SPP_KS")
    assert isinstance(factor, joulegram.RegionFactor)
    assert joulegram.to_gco2e(3_600_000.0, None, 60.0, "SPP_KS", started_at=START) == pytest.approx(393.6)


def test_an_intensity_of_ones_own() -> None:
    """A declared one says who declares it."""
    assert StaticIntensity(50.0, "own hydro").source == "own hydro"
