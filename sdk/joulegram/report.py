"""Joules and grams as people read them, with how they are known: what pytest and notebooks print."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import JoulegramError

if TYPE_CHECKING:
    from collections.abc import Callable

UNKNOWN = "?"


def number(value: float | None) -> str:
    """Three digits; what is not known is a question mark."""
    return UNKNOWN if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def pricing(region: str | None = None) -> tuple[Callable[[float], float] | None, str]:
    """Grams of joules spent now, and what they rest on; None, and why, where nothing is known.

    Args:
        region: a key or alias of the tables; by default the declared factor of KFM_EMISSION_FACTOR_KG_PER_KWH, then
            JOULEGRAM_REGION. There is no average for want of a region.
    """
    factor = os.environ.get("KFM_EMISSION_FACTOR_KG_PER_KWH")
    try:
        if region is None and factor:
            from joulegram.telemetry import TelemetryConfig  # noqa: PLC0415 - only where grams are wanted

            config = TelemetryConfig.from_environment()
            kg_per_kwh = config.emission_factor_kg_per_kwh or 0.0
            return lambda joules: joules / 3600 * kg_per_kwh, f"declared by {config.emission_factor_source}"
        region = region or os.environ.get("JOULEGRAM_REGION")
        if not region:
            return None, "no region: set JOULEGRAM_REGION, as SPP_KS or iso3:DEU"
        from joulegram.intensity import open_intensity  # noqa: PLC0415 - reads a table

        intensity = open_intensity(region)
        now_ns = time.time_ns()
        mg_per_kwh = intensity.pieces(now_ns, now_ns + 1)[0].mg_per_kwh
    except JoulegramError as error:
        return None, str(error)
    return lambda joules: joules * mg_per_kwh / 3.6e9, f"{intensity.region}, {intensity.source}"
