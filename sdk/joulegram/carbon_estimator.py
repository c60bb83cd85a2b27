"""`CarbonEstimator`: carbon of an energy, under the names of carbon-ops 0.1.1 (S3-11), on joulegram's own tables.

Numbered procedure:
    1. Energy in whole microjoules; power is uniform over the span.
    2. The span is cut where the intensity changes; each piece gets its part of the energy by time.
    3. grams = sum(energy x PUE x intensity), exactly, rounded once to a float.
    4. Pieces of one table share its error, so half-widths add linearly and a longer span is not surer (F20 of the
       audit of carbon-ops): half-width = sum(grams x relative half-width).
    5. `analytical_truncated`: grams -/+ half-width, cut at 0, 95 %. `monte_carlo`: seeded draws of the intensity's
       error, and the percentiles of the draws, not of their mean.
"""

from __future__ import annotations

import math
import os
import random
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from joulegram.carbon_models import CONFIDENCE_PCT, CarbonEstimate, compare_carbon_equivalents, derive_rating
from joulegram.intensity import StaticIntensity, open_intensity
from joulegram_pipeline.clock import parse_utc_ns
from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from joulegram.carbon_models import CarbonEstimateDict
    from joulegram.intensity import Intensity, Piece

REGION_VARIABLE = "JOULEGRAM_REGION"
GLOBAL_AVERAGE = "global-average"
_WORLD = "ember:WORLD"

PUE = {"cloud-hyperscale": 1.2, "enterprise": 1.6, "edge": 1.4, "on-premise": 1.8}
"""What carbon-ops takes for a kind of data centre; no source is given for them."""

_Z95 = 1.959964
_MAX_ITERATIONS = 100_000


class CarbonEstimator:
    """Estimates carbon for energies of one region.

    Args:
        region: a key as ``egrid:SPNO`` or an alias (docs/tables.md). ``global-average``, the default, is what
            JOULEGRAM_REGION says where it is set, else Ember's world average, flagged ``fallback``. An unknown
            region is an error, and never silently the average.
        datacenter_type: sets the PUE, see `PUE`.
        custom_carbon_intensity: g/kWh, instead of a table.
        custom_pue: at least 1.
        intensity_provider: an `Intensity` of your own.
        config: not supported; carbon-ops' file format is not read.

    Raises:
        RegionError: the region is unknown or ambiguous.
        ConfigError: anything else that cannot be used.
    """

    MAX_ITERATIONS = _MAX_ITERATIONS

    def __init__(
        self,
        region: str | None = GLOBAL_AVERAGE,
        datacenter_type: str = "cloud-hyperscale",
        *,
        custom_carbon_intensity: float | None = None,
        custom_pue: float | None = None,
        intensity_provider: Intensity | None = None,
        config: Any = None,
    ) -> None:
        if config is not None:
            raise ConfigError("config", type(config).__name__, "none: give region, custom_pue and the like instead")
        if datacenter_type not in PUE and custom_pue is None:
            raise ConfigError("datacenter_type", datacenter_type, f"one of {', '.join(PUE)}, or custom_pue")
        self.datacenter_type = datacenter_type
        self.pue = PUE.get(datacenter_type, 1.0) if custom_pue is None else float(custom_pue)
        if not (math.isfinite(self.pue) and self.pue >= 1):
            raise ConfigError("custom_pue", custom_pue, "a ratio of at least 1")
        self._world = False
        if intensity_provider is not None:
            self.intensity_provider: Intensity = intensity_provider
        elif custom_carbon_intensity is not None:
            self.intensity_provider = StaticIntensity(custom_carbon_intensity, region=region or "declared")
        else:
            self.intensity_provider = self._open(region)
        self.region = self.intensity_provider.region

    @property
    def carbon_intensity_gco2_kwh(self) -> float:
        """The intensity now, in g/kWh."""
        now_ns = _ns(datetime.now(UTC))
        return next((piece.mg_per_kwh / 1000 for piece in self.intensity_provider.pieces(now_ns, now_ns + 1)), math.nan)

    def estimate_from_energy(
        self,
        energy_wh: float,
        *,
        timestamp: datetime | str | None = None,
        region: str | None = None,
        return_dataclass: bool = False,
    ) -> CarbonEstimate | CarbonEstimateDict:
        """Carbon of an energy at one instant, by default now.

        Raises:
            ValueError: a negative or infinite energy, or no intensity at that instant.
        """
        at = _aware(timestamp, "timestamp") if timestamp is not None else datetime.now(UTC)
        start_ns = _ns(at)
        estimate = self._estimate(energy_wh, start_ns, start_ns + 1, region, (at, at) if timestamp else (None, None))
        return estimate if return_dataclass else estimate.to_dict()

    def estimate_from_power_time(
        self,
        power_watts: float,
        duration_seconds: float,
        *,
        timestamp: datetime | str | None = None,
        region: str | None = None,
        return_dataclass: bool = False,
    ) -> CarbonEstimate | CarbonEstimateDict:
        """Carbon of uniform power over a time, as `estimate_from_energy`."""
        energy_wh = power_watts * duration_seconds / 3600
        return self.estimate_from_energy(
            energy_wh, timestamp=timestamp, region=region, return_dataclass=return_dataclass
        )

    def estimate_over_span(
        self,
        start_ts: datetime | str,
        end_ts: datetime | str,
        energy_wh: float | None = None,
        *,
        power_watts: float | None = None,
        region: str | None = None,
        bucket_minutes: int | None = None,
        missing_policy: str | None = None,
        return_dataclass: bool = False,
        audit_mode: bool = False,
        monte_carlo_iterations: int = 10_000,
        monte_carlo_alpha: float = 0.05,
        monte_carlo_seed: int | None = 42,
    ) -> CarbonEstimate | CarbonEstimateDict:
        """Carbon of an energy over a span, integrated over the intensity's own intervals.

        Args:
            start_ts: a datetime with a time zone, or ISO 8601 text.
            end_ts: after `start_ts`.
            energy_wh: over the span.
            power_watts: uniform power, where no energy is given.
            region: another region for this estimate.
            bucket_minutes: accepted and not needed: the span is cut where the intensity changes.
            missing_policy: ``step`` (default) carries the mean of what is known over time without an intensity;
                ``drop`` leaves that time's energy out. `coverage_pct` says how much time was known.
            return_dataclass: a `CarbonEstimate` instead of a dict.
            audit_mode: the interval by `monte_carlo` instead of `analytical_truncated`.
            monte_carlo_iterations: draws, 1 to `MAX_ITERATIONS`.
            monte_carlo_alpha: 0.05 for a 95 % interval.
            monte_carlo_seed: None for chance.

        Raises:
            ValueError: as carbon-ops: the span is empty, the energy missing, negative or not finite.
        """
        start, end = _aware(start_ts, "start_ts"), _aware(end_ts, "end_ts")
        if end <= start:
            raise ValueError(f"got end_ts {end.isoformat()}, expected one after start_ts {start.isoformat()}")
        if bucket_minutes is not None and bucket_minutes < 1:
            raise ValueError(f"got bucket_minutes {bucket_minutes}, expected at least 1")
        if missing_policy not in (None, "step", "drop"):
            raise ValueError(f"got missing_policy {missing_policy!r}, expected step or drop")
        if energy_wh is None:
            if power_watts is None:
                raise ValueError("got neither energy_wh nor power_watts, expected one: the energy is not known")
            energy_wh = power_watts * (end - start).total_seconds() / 3600
        drop = missing_policy == "drop"
        draws: tuple[int, float, int | None] | None = None
        if audit_mode:
            if not 1 <= monte_carlo_iterations <= self.MAX_ITERATIONS or not 0 < monte_carlo_alpha < 1:
                raise ValueError(
                    f"got {monte_carlo_iterations} iterations and alpha {monte_carlo_alpha}, expected 1 to "
                    f"{self.MAX_ITERATIONS} and an alpha between 0 and 1"
                )
            draws = monte_carlo_iterations, monte_carlo_alpha, monte_carlo_seed
        estimate = self._estimate(energy_wh, _ns(start), _ns(end), region, (start, end), drop=drop, draws=draws)
        return estimate if return_dataclass else estimate.to_dict()

    def compare_carbon_equivalents(self, carbon_kgco2: float) -> dict[str, str]:
        """See `joulegram.carbon_models.compare_carbon_equivalents`."""
        return compare_carbon_equivalents(carbon_kgco2)

    def get_carbon_label(self, energy_wh: float) -> dict[str, object]:
        """An energy's carbon with a rating and equivalents."""
        estimate = self.estimate_from_energy(energy_wh, return_dataclass=True)
        assert isinstance(estimate, CarbonEstimate)
        kilograms = estimate.grams / 1000
        return {
            "carbon_label": {
                "rating": derive_rating(kilograms),
                "region": estimate.region,
                "datacenter_type": self.datacenter_type,
                "estimates": estimate.to_dict(),
                "equivalents": compare_carbon_equivalents(kilograms),
                "timestamp": None,
            }
        }

    @staticmethod
    def get_available_datacenter_types() -> dict[str, float]:
        """Kinds of data centre and the PUE taken for them."""
        return dict(PUE)

    def _open(self, region: str | None) -> Intensity:
        wanted = region or GLOBAL_AVERAGE
        if wanted == GLOBAL_AVERAGE:
            wanted = os.environ.get(REGION_VARIABLE) or _WORLD
        self._world = wanted == _WORLD
        return open_intensity(wanted)

    def _estimate(
        self,
        energy_wh: float,
        start_ns: int,
        end_ns: int,
        region: str | None,
        stamps: tuple[datetime | None, datetime | None],
        *,
        drop: bool = False,
        draws: tuple[int, float, int | None] | None = None,
    ) -> CarbonEstimate:
        if not math.isfinite(energy_wh) or energy_wh < 0:
            raise ValueError(f"got energy_wh {energy_wh}, expected a finite number, 0 or more")
        intensity = self.intensity_provider if region in (None, self.region) else open_intensity(str(region))
        pieces = intensity.pieces(start_ns, end_ns)
        known_ns = sum(piece.end_ns - piece.start_ns for piece in pieces)
        if not known_ns:
            raise ValueError(f"got no intensity of {intensity.region} for that time, expected some")
        window_ns = end_ns - start_ns
        kwh = Fraction(energy_wh) / 1000 * (Fraction(known_ns, window_ns) if drop else 1)
        weighted = sum(piece.mg_per_kwh * (piece.end_ns - piece.start_ns) for piece in pieces)
        g_per_kwh = Fraction(weighted, 1000 * known_ns)
        grams = float(kwh * Fraction(self.pue) * g_per_kwh)
        relative = _half_width(pieces, weighted)
        return CarbonEstimate(
            grams=grams,
            intensity_g_per_kwh=float(g_per_kwh),
            energy_kwh=float(kwh),
            total_energy_with_pue_kwh=float(kwh * Fraction(self.pue)),
            pue_used=self.pue,
            source=intensity.source,
            region=intensity.region,
            start_ts=stamps[0],
            end_ts=stamps[1],
            uncertainty_pct=None if relative is None else 50 * relative,
            provider_version=intensity.source,
            quality_flag=self._quality(intensity, pieces),
            coverage_pct=100 * known_ns / window_ns,
            meta=_interval(grams, relative or 0.0, draws),
        )

    def _quality(self, intensity: Intensity, pieces: Any) -> str:
        if any(piece.upper_bound for piece in pieces) or (self._world and intensity is self.intensity_provider):
            return "fallback"
        if isinstance(intensity, StaticIntensity) or any(piece.is_carried for piece in pieces):
            return "estimated"
        return "measured"


def _half_width(pieces: Any, weighted: int) -> float | None:
    """Relative half-width of all pieces together, their errors wrong together; None where one is not stated."""
    if not weighted or any(piece.half_width_ppm is None for piece in pieces):
        return None
    return float(Fraction(sum(_width(piece) for piece in pieces), weighted * 1_000_000))


def _width(piece: Piece) -> int:
    return piece.mg_per_kwh * (piece.end_ns - piece.start_ns) * (piece.half_width_ppm or 0)


def _interval(grams: float, relative: float, draws: tuple[int, float, int | None] | None) -> dict[str, object]:
    if draws is None:
        lower, upper, level = max(0.0, grams * (1 - relative)), grams * (1 + relative), CONFIDENCE_PCT
        method = "analytical_truncated"
    else:
        count, alpha, seed = draws
        chance = random.Random(seed)  # noqa: S311 - a simulation, not a secret
        sigma = relative / _Z95
        drawn = sorted(max(0.0, grams * (1 + sigma * chance.gauss(0, 1))) for _ in range(count))
        lower, upper = (_percentile(drawn, part) for part in (alpha / 2, 1 - alpha / 2))
        method, level = "monte_carlo", 100 * (1 - alpha)
    return {"method": method, "ci_lower_g": lower, "ci_upper_g": upper, "confidence_level_pct": level}


def _percentile(ordered: list[float], part: float) -> float:
    """Linear between the two nearest."""
    at = part * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _aware(instant: datetime | str, name: str) -> datetime:
    if isinstance(instant, str):
        try:
            instant = datetime.fromisoformat(instant)
        except ValueError as error:
            raise ValueError(f"got {name} {instant!r}, expected ISO 8601") from error
    if instant.utcoffset() is None:
        raise ValueError(f"got {name} {instant.isoformat()} without a time zone, expected one")
    return instant


def _ns(instant: datetime) -> int:
    return parse_utc_ns(instant.isoformat())
