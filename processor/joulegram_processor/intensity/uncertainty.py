"""The 95 % interval of an estimate, from components that say what they share.

Numbered procedure (GUM, JCGM 100:2008, clause 5; design section 5):
    1. a component is a half-width at 95 %: parts per million of the value, or micrograms;
    2. inside a correlation group half-widths add linearly: the same error hits all of them at once;
    3. between groups they add in quadrature;
    4. for a sum of results, each group adds linearly over all of them, then step 3: results that share a
       table row share its error, and summing them does not narrow it;
    5. the bounds are rounded outward to whole micrograms and the lower one is cut at 0.

Invariants:
    * integers only: the same components give the same bounds on every machine;
    * lower <= value <= upper.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isqrt
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import Method
from joulegram_processor.intensity.carbon import UJ_MG_PER_UG_KWH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from joulegram_processor.intensity.chain import IntensityProvider

PPM = 1_000_000
_SQUARE_PPM = PPM * PPM

RAPL_PPM = 56_000
"""Measured RAPL against the wall, after a fit to the machine: at most 5.6 % (Khan et al. 2018)."""

MODEL_PPM = 400_000
"""A SPECpower-type utilisation model: 30 to 40 %, the wider taken."""

STALENESS_PPM = 123_000
"""A year's figure carried forward: from 2023 to 2024 eGRID moved by -9.6 % to +12.3 %, the wider taken."""

TABLE_PPM = 50_000
"""The published intensity itself: an assumption of this project; no publisher states one."""


class Distribution(StrEnum):
    """How an error is spread; said for those who draw from it, the analytic bounds do not use it."""

    NORMAL = "normal"
    UNIFORM = "uniform"


@dataclass(frozen=True, slots=True)
class Component:
    """One source of error.

    Args:
        name: ``rapl``, ``alignment`` …
        group: its correlation group; components of one group are wrong together.
        relative_ppm: half-width at 95 % in parts per million of the value, 0 or more.
        absolute_ug: half-width at 95 % in micrograms, 0 or more; added to the relative one.
        distribution: how it is spread.
    """

    name: str
    group: str
    relative_ppm: int = 0
    absolute_ug: int = 0
    distribution: Distribution = Distribution.NORMAL


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value in micrograms and what it may be wrong by."""

    value_ug: int
    components: tuple[Component, ...]


def interval(value_ug: int, components: Sequence[Component]) -> tuple[int, int]:
    """The 95 % bounds of one result, in micrograms."""
    return sum_interval([Estimate(value_ug, tuple(components))])


def sum_interval(results: Iterable[Estimate]) -> tuple[int, int]:
    """The 95 % bounds of the sum of results, in micrograms: groups they share add linearly."""
    total_ug = 0
    groups: dict[str, int] = {}
    for result in results:
        total_ug += result.value_ug
        for component in result.components:
            width = result.value_ug * component.relative_ppm + component.absolute_ug * PPM
            groups[component.group] = groups.get(component.group, 0) + width
    return _bounds(total_ug, sum(width * width for width in groups.values()))


def alignment_ug(energy_uj: int, mg_per_kwh: int) -> int:
    """What a span's edges may be off by, in micrograms, rounded up.

    Args:
        energy_uj: (P_max - P_idle) x tick / 4 for each edge, as the attribution states it.
        mg_per_kwh: the span's intensity.
    """
    return -(-energy_uj * mg_per_kwh // UJ_MG_PER_UG_KWH)


def default_components(method: Method, provider: IntensityProvider, resolution: str) -> tuple[Component, ...]:
    """The relative components of a joined span, with this module's magnitudes.

    Args:
        method: how its energy came about; what is not wholly measured is taken as modelled.
        provider: where its intensity came from; results of one region and table share their groups.
        resolution: of its segments; ``static`` and ``mixed`` rest on a figure carried beyond its time.
    """
    row = f"{provider.ref.name}/{provider.region or ''}"
    measured = method is Method.MEASURED
    components = [
        Component("rapl", "rapl", RAPL_PPM) if measured else Component("model", "model", MODEL_PPM),
        Component("table", f"table/{row}", TABLE_PPM),
    ]
    if resolution in ("static", "mixed"):
        components.append(Component("staleness", f"staleness/{row}", STALENESS_PPM))
    return tuple(components)


class CompiledInterval:
    """`interval` for one set of relative components, beside an alignment error each span has on its own.

    Args:
        components: relative ones only; an absolute half-width would be counted once for all spans.
    """

    __slots__ = ("components", "square_ppm")

    def __init__(self, components: Sequence[Component]) -> None:
        groups: dict[str, int] = {}
        for component in components:
            assert component.absolute_ug == 0, f"{component.name} is absolute"
            groups[component.group] = groups.get(component.group, 0) + component.relative_ppm
        self.components = tuple(components)
        self.square_ppm = sum(ppm * ppm for ppm in groups.values())

    def __call__(self, value_ug: int, alignment_ug: int = 0) -> tuple[int, int]:
        """The bounds of one span, in micrograms."""
        return _bounds(value_ug, self.square_ppm * value_ug * value_ug + _SQUARE_PPM * alignment_ug**2)

    def over(self, total_ug: int, alignment_square_ug2: int = 0) -> tuple[int, int]:
        """The bounds of a sum of spans that all have these components.

        Args:
            total_ug: the sum of their values.
            alignment_square_ug2: the sum of the squares of their alignment errors, which are independent.
        """
        return _bounds(total_ug, self.square_ppm * total_ug * total_ug + _SQUARE_PPM * alignment_square_ug2)


def _bounds(value_ug: int, square: int) -> tuple[int, int]:
    """Bounds around a value for a half-width whose square is given in (ug/1e6) squared, rounded outward."""
    # isqrt floors: the root of square - 1, in whole micrograms, plus 1, is the true half-width rounded up.
    half_ug = (isqrt(square - 1) // PPM) + 1 if square > 0 else 0
    return (value_ug - half_ug if value_ug > half_ug else 0, value_ug + half_ug)
