"""Grid intensity for jobs: what an estimator asks, and where the answer comes from.

The SDK carries no tables and imports no room that does. Whoever has them registers under the entry point group
`joulegram.intensity` (Python Packaging, entry points); joulegram's own tables are registered there by the package
that ships them, and are found where it is installed. A provider of your own is an object handed to the estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP = "joulegram.intensity"
DEFAULT = "tables"
"""The name in the group that is asked unless another is named."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One intensity over ``[start_ns, end_ns)``.

    Args:
        start_ns: wall clock, nanoseconds since 1970.
        end_ns: exclusive.
        mg_per_kwh: the intensity.
        half_width_ppm: 95 % half-width in parts per million of it; None where nobody states one.
        upper_bound: it is a worst case, not an estimate.
        is_carried: it is of another time, carried to this one.
    """

    start_ns: int
    end_ns: int
    mg_per_kwh: int
    half_width_ppm: int | None = None
    upper_bound: bool = False
    is_carried: bool = False


class Intensity(Protocol):
    """Intensity of one region."""

    @property
    def region(self) -> str:
        """The region, as it was resolved."""

    @property
    def source(self) -> str:
        """Where it comes from, with its version: ``id@version``."""

    def pieces(self, start_ns: int, end_ns: int) -> Sequence[Piece]:
        """The window cut where the intensity changes; what is not covered is left out."""


class StaticIntensity:
    """One intensity for all time.

    Args:
        g_per_kwh: the intensity.
        source: who declares it.
        region: the name of what it is of.

    Raises:
        ConfigError: it is negative, not finite, or above 2500 g/kWh, which no grid is.
    """

    def __init__(self, g_per_kwh: float, source: str = "declared", region: str = "declared") -> None:
        if not 0 <= g_per_kwh <= 2500:
            raise ConfigError("custom_carbon_intensity", g_per_kwh, "g/kWh from 0 to 2500")
        self.region = region
        self.source = source
        self._mg_per_kwh = round(g_per_kwh * 1000)

    def pieces(self, start_ns: int, end_ns: int) -> Sequence[Piece]:
        return [Piece(start_ns, end_ns, self._mg_per_kwh)]


def open_intensity(region: str) -> Intensity:
    """Intensity of a region, from the registered tables.

    Args:
        region: a key as ``egrid:SPNO`` or ``iso3:DEU``, or an alias as ``SPP_KS`` (docs/tables.md).

    Raises:
        RegionError: it is unknown or ambiguous.
        ConfigError: no tables are installed.
    """
    found: Intensity = tables().open_intensity(region)
    return found


@cache
def tables() -> Any:
    """What is registered as `DEFAULT`: a module with `open_intensity`, `lookup_factor`, `to_gco2e`, `RegionFactor`.

    Raises:
        ConfigError: nothing is.
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - reads every installed package's metadata

    for entry in entry_points(group=GROUP, name=DEFAULT):
        return entry.load()
    raise ConfigError(
        GROUP, None, f"an entry point {DEFAULT!r}: install the whole joulegram, or give an intensity of your own"
    )


def __getattr__(name: str) -> Any:
    # The seed's names (S1-26, S1-27, S1-29; C-60): defined with the tables, named here.
    if name in {"RegionFactor", "lookup_factor", "to_gco2e"}:
        return getattr(tables(), name)
    raise AttributeError(f"module 'joulegram.intensity' has no attribute {name!r}")
