"""Energy times intensity, exactly, with one rounding: the audited calculation.

Numbered procedure (SCI, ISO/IEC 21031:2024: operational emissions O = E x I; GHG Protocol Scope 2 Guidance,
the location-based method; S0-52, S0-53):
    1. E is energy in whole microjoules; 1 kWh = 3.6e12 uJ.
    2. I is the intensity of the table row at that time, in whole mg/kWh: average, location-based. No
       market-based instrument reduces it.
    3. O in micrograms = E / 3.6e12 kWh x I mg/kWh x 1000 ug/mg = E x I / 3.6e9.
    4. Over several rows the products are summed as integers; power is taken as uniform over what is not
       measured more finely, so energy given to a row is E x its time / all time.
    5. PUE multiplies energy; grid losses divide by (1 - loss). Both default to nothing, are recorded beside
       the result, and never enter the table.
    6. The sum is rounded once, halves to even.

Invariants:
    * cutting a span, or permuting its parts, does not change the sum before the rounding of step 6;
    * no float takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.exact import div_half_even

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_processor.intensity.chain import Segment

UJ_MG_PER_UG_KWH = 3_600_000_000
"""3.6e12 uJ/kWh / 1000 ug/mg: the divisor of step 3."""


@dataclass(frozen=True, slots=True)
class Overheads:
    """What lies between the measured energy and the grid (step 5).

    Args:
        pue: power usage effectiveness, at least 1.
        loss_fraction: share of generation lost on the way, 0 or more and below 1.

    Raises:
        ConfigError: out of those ranges.
    """

    pue: Fraction = Fraction(1)
    loss_fraction: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if self.pue < 1:
            raise ConfigError("intensity.pue", str(self.pue), "a ratio of at least 1")
        if not 0 <= self.loss_fraction < 1:
            raise ConfigError("intensity.loss_fraction", str(self.loss_fraction), "a share from 0 to below 1")

    @property
    def factor(self) -> Fraction:
        """What the product of step 4 is multiplied by."""
        return self.pue / (1 - self.loss_fraction)


NO_OVERHEADS = Overheads()


def carbon_ug(energy_uj: int, mg_per_kwh: int) -> int:
    """Carbon of one energy under one intensity, in micrograms, without overheads."""
    return div_half_even(energy_uj * mg_per_kwh, UJ_MG_PER_UG_KWH)


def carbon_over(pieces: Iterable[tuple[int, int]], overheads: Overheads = NO_OVERHEADS) -> int:
    """Carbon of several energies, each under its own intensity, with one rounding.

    Args:
        pieces: (microjoules, mg/kWh).
        overheads: PUE and losses.

    Returns:
        micrograms.
    """
    factor = overheads.factor
    product = sum(energy_uj * mg_per_kwh for energy_uj, mg_per_kwh in pieces)
    return div_half_even(product * factor.numerator, UJ_MG_PER_UG_KWH * factor.denominator)


def carbon_across(energy_uj: int, segments: Iterable[Segment], overheads: Overheads = NO_OVERHEADS) -> int:
    """Carbon of one energy spent at uniform power over segments, with one rounding.

    Args:
        energy_uj: of the whole span.
        segments: of `IntensityProvider.segments`; a span without length has one.
        overheads: PUE and losses.

    Returns:
        micrograms.
    """
    weighted, weight = _weigh(segments)
    factor = overheads.factor
    return div_half_even(energy_uj * weighted * factor.numerator, UJ_MG_PER_UG_KWH * weight * factor.denominator)


def effective_mg_per_kwh(pieces: Iterable[tuple[int, int]]) -> int | None:
    """The mean intensity of pieces (weight, mg/kWh), rounded once: weights are microjoules, or nanoseconds.

    Returns:
        mg/kWh, or None where all weights are 0 and a mean does not exist.
    """
    weighted = weight = 0
    for part, mg_per_kwh in pieces:
        weighted += part * mg_per_kwh
        weight += part
    return div_half_even(weighted, weight) if weight else None


def mean_mg_per_kwh(segments: Iterable[Segment]) -> int:
    """The effective intensity of a span at uniform power: its time-weighted mean, rounded once."""
    return div_half_even(*_weigh(segments))


def _weigh(segments: Iterable[Segment]) -> tuple[int, int]:
    weighted = weight = 0
    instant = 0
    for segment in segments:
        duration_ns = segment.end_ns - segment.start_ns
        weighted += duration_ns * segment.mg_per_kwh
        weight += duration_ns
        instant = segment.mg_per_kwh
    return (weighted, weight) if weight else (instant, 1)
