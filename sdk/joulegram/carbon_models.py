"""What a carbon estimate looks like: the names of carbon-ops 0.1.1, so that who used it changes one import (S3-11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

CONFIDENCE_PCT = 95.0


class CarbonEstimateDict(dict[str, Any]):
    """An estimate as a dict, which is what estimators return by default.

    Keys: `energy_consumed_wh`, `energy_consumed_kwh`, `total_energy_with_pue_kwh`, `carbon_emissions_gco2`,
    `carbon_emissions_kgco2`, `carbon_emissions_tonnes`, `carbon_intensity_used_gco2_kwh`, `intensity_uncertainty`
    (percent, one standard deviation), `provider_version`, `pue_used`, `meta`.
    """

    def to_dict(self) -> dict[str, Any]:
        """A plain dict; carbon-ops' own example asks for it."""
        return dict(self)


@dataclass(frozen=True, slots=True)
class CarbonEstimate:
    """Carbon of one energy: an estimate of the grid's average, location-based.

    Args:
        grams: of the table's gas; None where the intensity was not known for any of the time.
        intensity_g_per_kwh: what the energy was multiplied by, weighted by time.
        energy_kwh: as it was given.
        total_energy_with_pue_kwh: times `pue_used`.
        pue_used: power usage effectiveness, at least 1.
        source: the table, or who declares the intensity.
        region: as it was resolved.
        start_ts: of the energy, where it was given.
        end_ts: of the energy, where it was given.
        uncertainty_pct: of the intensity, one standard deviation in percent; None where nobody states one.
        provider_version: ``id@version`` of the table.
        calibration_version: always None: nothing is calibrated here.
        conversion_version: the rule of conversion, ``joulegram-1``: 3.6e12 uJ a kWh.
        quality_flag: ``measured`` where the table has a row for the time, ``estimated`` where one is carried
            forward or declared, ``fallback`` for a worst case or a world average.
        coverage_pct: how much of the time had an intensity, 0 to 100.
        meta: `method`, `ci_lower_g`, `ci_upper_g`, `confidence_level_pct`.
    """

    grams: float
    intensity_g_per_kwh: float
    energy_kwh: float
    total_energy_with_pue_kwh: float
    pue_used: float
    source: str
    region: str
    start_ts: datetime | None = None
    end_ts: datetime | None = None
    uncertainty_pct: float | None = None
    provider_version: str | None = None
    calibration_version: str | None = None
    conversion_version: str | None = "joulegram-1"
    quality_flag: str = "estimated"
    coverage_pct: float | None = None
    meta: dict[str, object] | None = None

    def to_dict(self) -> CarbonEstimateDict:
        """The fields under the names of the dict."""
        return CarbonEstimateDict(
            energy_consumed_wh=self.energy_kwh * 1000,
            energy_consumed_kwh=self.energy_kwh,
            total_energy_with_pue_kwh=self.total_energy_with_pue_kwh,
            carbon_emissions_gco2=self.grams,
            carbon_emissions_kgco2=self.grams / 1e3,
            carbon_emissions_tonnes=self.grams / 1e6,
            carbon_intensity_used_gco2_kwh=self.intensity_g_per_kwh,
            intensity_uncertainty=self.uncertainty_pct,
            provider_version=self.provider_version,
            pue_used=self.pue_used,
            meta=self.meta,
        )

    def to_ndjson_event(self) -> dict[str, object]:
        """The estimate as an event; instants are ISO 8601."""
        event: dict[str, object] = {"type": "carbon_estimate"}
        for name in self.__slots__:
            value = getattr(self, name)
            event[name] = value.isoformat() if name in {"start_ts", "end_ts"} and value is not None else value
        return event


def compare_carbon_equivalents(carbon_kgco2: float) -> dict[str, str]:
    """What a mass of carbon stands for, with carbon-ops' divisors: 0.12 kg/km, 0.021 kg/tree-day, 0.008 kg/charge.

    They are rough and without a source; they are kept for who prints them.

    Raises:
        ValueError: it is negative.
    """
    if carbon_kgco2 < 0:
        raise ValueError("carbon_kgco2 must be non-negative")
    return {
        "carbon_kgco2": f"{carbon_kgco2:.4f}",
        "equivalent_km_driven": f"{carbon_kgco2 / 0.12:.2f}",
        "equivalent_tree_days": f"{carbon_kgco2 / 0.021:.1f}",
        "equivalent_smartphone_charges": f"{carbon_kgco2 / 0.008:.0f}",
    }


_RATINGS = ((0.01, "A+"), (0.05, "A"), (0.1, "B"), (0.5, "C"), (1.0, "D"), (5.0, "E"))


def derive_rating(carbon_kg: float) -> str:
    """A letter from A+ below 10 g to F from 5 kg on."""
    return next((letter for below, letter in _RATINGS if carbon_kg < below), "F")
