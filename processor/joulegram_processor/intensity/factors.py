"""The names the first sketch used, as thin wrappers over tables, chain and carbon (S1-26 to S1-29).

They differ from the sketch where it was wrong: no region is baked in (D-15), time is the job's own and aware,
the factor is integrated over the job and not taken at its end (D-14), and a result names its table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.units import NS_PER_S, UJ_PER_J, mg_to_g, ug_to_g
from joulegram_processor.intensity.carbon import carbon_across
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.regions import resolve, resolve_in
from joulegram_processor.intensity.table import load_table

if TYPE_CHECKING:
    from joulegram_processor.intensity.table import IntensityTable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RegionFactor:
    """An intensity at an instant (S1-26).

    Args:
        region_code: the canonical region key it was resolved to.
        intensity_gco2_per_kwh: g/kWh, a projection of whole mg/kWh.
        resolution: ``hourly`` to ``static``.
        upper_bound: it is the region's worst case.
        table: ``id@version`` (D-15, S1-30).
    """

    region_code: str
    intensity_gco2_per_kwh: float
    resolution: str = ""
    upper_bound: bool = False
    table: str = ""


def lookup_factor(ts: datetime, region_code: str, table: IntensityTable | None = None) -> RegionFactor:
    """The factor of a region at an instant: hourly, else coarser, else static worst case (S1-27, S1-28).

    Args:
        ts: time-zone aware.
        region_code: a region key or alias.
        table: where to look; by default the shipped table of the region's scheme.

    Raises:
        WireError: `ts` is naive.
        RegionError: the region is unknown or ambiguous.
    """
    at_ns = _instant_ns(ts)
    chain = _chain(region_code, table)
    segment = chain.segments(at_ns, at_ns)[0]
    return RegionFactor(
        region_code=str(chain.region),
        intensity_gco2_per_kwh=mg_to_g(segment.mg_per_kwh),
        resolution=segment.resolution,
        upper_bound=segment.upper_bound,
        table=chain.ref.name,
    )


def to_gco2e(
    cpu_j: float | None,
    gpu_w_avg: float | None,
    duration_s: float,
    region_code: str,
    *,
    started_at: datetime,
    table: IntensityTable | None = None,
) -> float | None:
    """Grams for a job's energy, over the job's own time (S1-29).

    Args:
        cpu_j: CPU energy in joules, None if unknown.
        gpu_w_avg: mean GPU power in watts, None if unknown.
        duration_s: of the job, in seconds.
        region_code: a region key or alias; there is no default.
        started_at: when the job began, time-zone aware.
        table: as for `lookup_factor`.

    Returns:
        grams of the table's gas; None if and only if both energies are None (S0-67). With one of them None it
        is the part that is known, and the caller says so (C-09).

    Raises:
        WireError: a quantity is negative or not finite, or `started_at` is naive.
        RegionError: the region is unknown or ambiguous.
    """
    start_ns = _instant_ns(started_at)
    seconds = _quantity("duration_s", duration_s)
    chain = _chain(region_code, table)
    if cpu_j is None and gpu_w_avg is None:
        return None
    joules = Fraction(0)
    if cpu_j is not None:
        joules += _quantity("cpu_j", cpu_j)
    if gpu_w_avg is not None:
        joules += _quantity("gpu_w_avg", gpu_w_avg) * seconds
    segments = chain.segments(start_ns, start_ns + round(seconds * NS_PER_S))
    return ug_to_g(carbon_across(round(joules * UJ_PER_J), segments))


def _chain(region_code: str, table: IntensityTable | None) -> IntensityChain:
    if table is None:
        return _shipped_chain(region_code)
    return IntensityChain(table, resolve_in(region_code, table).key)


@lru_cache(maxsize=64)
def _shipped_chain(region_code: str) -> IntensityChain:
    resolved = resolve(region_code)
    return IntensityChain(load_table(resolved.table_id), resolved.key)


def _instant_ns(instant: datetime) -> int:
    if instant.utcoffset() is None:
        raise WireError(f"got instant {instant!r}, expected one with a time zone")
    delta = instant - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * NS_PER_S + delta.microseconds * 1000


def _quantity(name: str, value: float) -> Fraction:
    if not math.isfinite(value) or value < 0:
        raise WireError(f"{name}: got {value!r}, expected a finite number, 0 or more")
    return Fraction(value)
