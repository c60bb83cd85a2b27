"""One declared emission factor with its source, for a user who has no table (S0-02, S0-55, C-06)."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from joulegram_pipeline.canonical import canonical, sha256_hex
from joulegram_pipeline.errors import ConfigError, WireError
from joulegram_pipeline.records import TableRef
from joulegram_processor.intensity.chain import BEGINNING_NS, END_NS, Segment
from joulegram_processor.intensity.rows import Tier

MG_PER_KG = 1_000_000
LIMIT_KG_PER_KWH = Decimal(5)
"""Twice the highest intensity a table may hold; above it the user gave g/kWh (C-07)."""

_PLACEHOLDERS = frozenset({"", "tbd", "todo", "unknown", "n/a"})
_KEY = "emission_factor_kg_per_kwh"
_SOURCE_KEY = "emission_factor_source"


class StaticFactor:
    """A factor that holds at all times, with the interface of a chain.

    Args:
        kg_per_kwh: the factor; 0 is a factor like any other (D-16). Decimal text, not a float, so that what
            is recorded is what was declared; at most six decimals, the milligram that is counted in.
        source: who says so, for people; recorded with every run.
        gas: ``co2e`` or ``co2``, what the factor counts.
        limit_kg_per_kwh: above it the unit is taken to be wrong.

    Raises:
        ConfigError: not a number of that kind, or a source that names none (D-18).
    """

    __slots__ = ("_segment", "gas", "kg_per_kwh", "ref", "region", "sha256", "source")

    def __init__(
        self,
        kg_per_kwh: Decimal | str,
        source: str,
        gas: str = "co2e",
        limit_kg_per_kwh: Decimal = LIMIT_KG_PER_KWH,
    ) -> None:
        factor = _checked(kg_per_kwh, limit_kg_per_kwh)
        if source.strip().casefold() in _PLACEHOLDERS:
            raise ConfigError(_SOURCE_KEY, source, "the name of a source, as 'utility bill 2025'")
        if gas not in ("co2", "co2e"):
            raise ConfigError("emission_factor_gas", gas, "co2 or co2e")
        mg_per_kwh = int(factor * MG_PER_KG)
        self.kg_per_kwh = factor
        self.source = source.strip()
        self.gas = gas
        self.region: str | None = None
        self.sha256 = sha256_hex(canonical({"gas": gas, "mg_per_kwh": mg_per_kwh, "source": self.source}))
        self.ref = TableRef(
            id="static-factor",
            version=self.sha256[:8],
            sha256=self.sha256,
            title="Declared emission factor",
            publisher=self.source,
            source_url="",
            licence="",
        )
        self._segment = Segment(BEGINNING_NS, END_NS, mg_per_kwh, Tier.STATIC.value, upper_bound=False)

    def segment_at(self, start_ns: int, end_ns: int) -> Segment | None:  # noqa: ARG002 - holds at all times
        """The one segment there is."""
        return self._segment

    def segments(self, start_ns: int, end_ns: int) -> list[Segment]:
        """The span itself; WireError if it ends before it starts."""
        if end_ns < start_ns:
            raise WireError(f"got a span from {start_ns} to {end_ns}, expected an end at or after its start")
        return [Segment(start_ns, end_ns, self._segment.mg_per_kwh, Tier.STATIC.value, upper_bound=False)]


def _checked(given: Decimal | str, limit: Decimal) -> Decimal:
    try:
        factor = Decimal(given)
    except InvalidOperation as error:
        raise ConfigError(_KEY, given, "a decimal number of kg/kWh, as 0.394") from error
    if not factor.is_finite() or factor < 0:
        raise ConfigError(_KEY, str(given), "a finite number of kg/kWh, 0 or more")
    if factor > limit:
        raise ConfigError(_KEY, str(given), f"at most {limit} kg/kWh; this is probably g/kWh: divide by 1000")
    if factor * MG_PER_KG % 1:
        raise ConfigError(_KEY, str(given), "at most 6 decimals, a milligram: round it, and say so in the source")
    return factor
