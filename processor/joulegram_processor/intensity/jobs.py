"""The shipped tables as the SDK asks for them: the entry point `joulegram.intensity`, so no room imports the other."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.factors import RegionFactor, lookup_factor, to_gco2e
from joulegram_processor.intensity.regions import resolve
from joulegram_processor.intensity.table import load_table
from joulegram_processor.intensity.uncertainty import STALENESS_PPM, TABLE_PPM

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["JobIntensity", "RegionFactor", "TablePiece", "lookup_factor", "open_intensity", "to_gco2e"]

_CARRIED = "static"
_CARRIED_PPM = isqrt(TABLE_PPM**2 + STALENESS_PPM**2)


@dataclass(frozen=True, slots=True)
class TablePiece:
    """One intensity over ``[start_ns, end_ns)``, with its 95 % half-width in parts per million of it.

    `is_carried` says that no row holds then: the latest, or the worst, stands in.
    """

    start_ns: int
    end_ns: int
    mg_per_kwh: int
    half_width_ppm: int | None
    upper_bound: bool
    is_carried: bool


class JobIntensity:
    """A region of a table under the default order of tiers.

    Args:
        chain: of the region.
    """

    def __init__(self, chain: IntensityChain) -> None:
        self._chain = chain
        self.region = str(chain.region)
        self.source = chain.ref.name

    def pieces(self, start_ns: int, end_ns: int) -> Sequence[TablePiece]:
        """The window cut where the table's rows change."""
        return [
            TablePiece(
                segment.start_ns,
                segment.end_ns,
                segment.mg_per_kwh,
                _CARRIED_PPM if segment.resolution == _CARRIED else TABLE_PPM,
                segment.upper_bound,
                segment.resolution == _CARRIED,
            )
            for segment in self._chain.segments(start_ns, end_ns)
        ]


def open_intensity(region: str) -> JobIntensity:
    """Intensity of a region key or alias.

    Raises:
        RegionError: it is unknown or ambiguous.
        TableError: its table is missing or damaged.
    """
    resolved = resolve(region)
    return JobIntensity(IntensityChain(load_table(resolved.table_id), resolved.key))
