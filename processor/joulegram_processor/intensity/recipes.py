"""The recipes of the shipped tables: which published rows go in, which figure is taken, what would be absurd.

A recipe reads one committed transcription in ``tables/sources``. Of a row that carries the published figure
in lb/MWh, that figure times 0.45359237 is taken; of a row whose lb/MWh is itself back-computed, the g/kWh it
came from. One half-even rounding to three decimals, in Decimal. Where a region and year stand twice, a
published figure is taken before a back-computed one; two different figures of equal standing are an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.clock import parse_utc_ns, utc_iso
from joulegram_pipeline.errors import TableError
from joulegram_pipeline.units import MG_PER_G
from joulegram_processor.intensity.rows import MAX_G_PER_KWH, Quality, Row, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

G_PER_KWH_PER_LB_PER_MWH = Decimal("0.45359237")
"""One pound is 453.59237 g by definition; one MWh is 1000 kWh."""

EPA_LICENCE = "LicenseRef-US-Government-Public-Domain"
EMBER_LICENCE = "CC-BY-4.0"

SourceRow = dict[str, str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One shipped table.

    Args:
        table_id: its directory.
        label: the upstream label its version begins with.
        source: file in ``tables/sources``.
        years: years of the source that go in.
        gas: as the source spells it, ``CO2`` or ``CO2e``.
        quality: how the publisher came to the figures.
        facts: manifest fields that are the publisher's.
        excluded: what was left out, with the reason.
    """

    table_id: str
    label: str
    source: str
    years: tuple[int, ...]
    gas: str
    scope: str
    quality: Quality
    facts: Mapping[str, Any]
    excluded: tuple[tuple[str, str], ...] = ()


def _epa(title: str, locator: str, gwp: str | None, source_url: str) -> dict[str, Any]:
    return {
        "title": title,
        "publisher": "United States Environmental Protection Agency",
        "source_url": source_url,
        "source_locator": locator,
        "licence": EPA_LICENCE,
        "attribution": f"{title}. Source: US EPA, Emissions & Generation Resource Integrated Database.",
        "gwp": gwp,
        "native_unit": "lb/MWh",
        "conversion": str(G_PER_KWH_PER_LB_PER_MWH),
        "retrieved_at": None,
    }


_EGRID_SUMMARY = "https://www.epa.gov/system/files/documents/2025-06/summary_tables_rev2.xlsx"
_EGRID_DATA = "https://www.epa.gov/system/files/documents/2025-06/egrid2023_data_rev2.xlsx"
_UNOFFICIAL = ("year 2024", "not an EPA release: a third party's run of the eGRID code")
_NONBASELOAD = ("non-baseload rates", "another kind: EPA says not for footprints")

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        table_id="epa-egrid-subregion",
        label="2023.rev2",
        source="us_egrid_subregions.csv",
        years=(2022, 2023),
        gas="CO2e",
        scope="direct",
        quality=Quality.MEASURED,
        facts=_epa(
            "EPA eGRID subregion total output emission rates, CO2e",
            "2022: egrid2022_data.xlsx sheet SRL22, SRC2ERTA; 2023: summary tables rev2, Table 1",
            "AR5",
            _EGRID_SUMMARY,
        ),
        excluded=(
            (
                "years 2018 to 2021",
                "CO2e of another GWP set than AR5, or of one not settled (2021); one table holds one set",
            ),
            _UNOFFICIAL,
            _NONBASELOAD,
        ),
    ),
    Recipe(
        table_id="epa-egrid-subregion-co2",
        label="2023.rev2",
        source="us_egrid_subregions.csv",
        years=(2023,),
        gas="CO2",
        scope="direct",
        quality=Quality.MEASURED,
        facts=_epa(
            "EPA eGRID subregion total output emission rates, CO2",
            "summary tables rev2, Table 1, SRCO2RTA",
            None,
            _EGRID_SUMMARY,
        ),
        excluded=(_NONBASELOAD,),
    ),
    Recipe(
        table_id="epa-egrid-ba",
        label="2023",
        source="us_egrid_ba_2023.csv",
        years=(2023,),
        gas="CO2",
        scope="direct",
        quality=Quality.MEASURED,
        facts=_epa(
            "EPA eGRID balancing authority total output emission rates, CO2",
            "sheet BA23, BACO2RTA, to 0.1 lb/MWh",
            None,
            _EGRID_DATA,
        ),
        excluded=(("other balancing authorities", "not in the transcription"),),
    ),
    Recipe(
        table_id="ember-annual",
        label="2025-08-03",
        source="countries_ember_latest.csv",
        years=(2022, 2023, 2024),
        gas="CO2e",
        scope="lifecycle",
        quality=Quality.ESTIMATED,
        facts={
            "title": "Ember yearly electricity data, CO2 intensity",
            "publisher": "Ember",
            "source_url": "https://ember-energy.org/data/yearly-electricity-data/",
            "source_locator": "country_overview_yearly, CO2 intensity, latest year of each country",
            "licence": EMBER_LICENCE,
            "licence_note": "as users of the data state it; to be confirmed at the source",
            "attribution": "Ember, Yearly Electricity Data, CC BY 4.0; rounded and re-arranged by joulegram.",
            "gwp": "AR5",
            "native_unit": "gCO2/kWh",
            "conversion": "1",
            "retrieved_at": "2025-08-03",
        },
        excluded=(("iso3:CAF 2022", "published as 0, which no life-cycle figure can be: missing, not clean"),),
    ),
)


def rows_of(recipe: Recipe, source_rows: Iterable[SourceRow]) -> list[Row]:
    """The rows of a table, sorted, from the rows of its source.

    Raises:
        TableError: two rows disagree, or a figure cannot be one.
    """
    chosen: dict[tuple[str, int], SourceRow] = {}
    skipped = {what for what, _ in recipe.excluded}
    for raw in source_rows:
        tags = (raw["kind"], raw["scope"], raw["basis"], raw["gas"])
        year = int(raw["year"])
        key = canonical_key(raw["region_code"])
        if tags != ("average", recipe.scope, "production", recipe.gas) or year not in recipe.years:
            continue
        if f"{key} {year}" in skipped:
            continue
        other = chosen.get((key, year))
        chosen[key, year] = raw if other is None else _better(raw, other)
    rows = [_row(key, year, raw, recipe.quality) for (key, year), raw in chosen.items()]
    return sorted(rows, key=lambda row: row.order)


def canonical_key(region_code: str) -> str:
    """A source's region code as a region key: a country that Ember's scheme names is ``iso3:``."""
    scheme, _, code = region_code.partition(":")
    if scheme == "ember" and len(code) == 3 and code.isalpha() and code.isupper():
        return f"iso3:{code}"
    return region_code


def check_plausible(tables: Mapping[str, Sequence[Row]]) -> None:
    """What an invented, shifted or mis-united table would not pass (grid facts 2.5).

    Args:
        tables: the rows of every recipe by table id.

    Raises:
        TableError: quoting the figures that cannot be.
    """
    co2e = _by_year(tables["epa-egrid-subregion"])
    co2 = _by_year(tables["epa-egrid-subregion-co2"])
    authority = _by_year(tables["epa-egrid-ba"])[2023]
    for year, figures in (*co2e.items(), *co2.items()):
        regions = {key: mg for key, mg in figures.items() if key != "egrid:US"}
        mean = figures["egrid:US"]
        if not min(regions.values()) < mean < max(regions.values()):
            raise TableError(f"eGRID {year}: got a US mean of {mean} mg/kWh, expected it inside its subregions")
        if len(set(figures.values())) != len(figures):
            raise TableError(f"eGRID {year}: got the same figure for two regions, expected all to differ")
    for key, mg in co2e[2023].items():
        if not co2[2023][key] <= mg <= co2[2023][key] * 102 // 100:
            raise TableError(f"{key} 2023: got CO2e {mg} and CO2 {co2[2023][key]} mg/kWh, expected within 2 %")
        before = co2e[2022][key]
        if before == mg or not before <= 2 * mg <= 4 * before:
            raise TableError(f"{key}: got {before} then {mg} mg/kWh, expected a change, and less than twofold")
    for ours, theirs in (("ba:ERCO", "egrid:ERCT"), ("ba:ISNE", "egrid:NEWE")):
        if abs(authority[ours] - co2[2023][theirs]) * 100 > authority[ours]:
            raise TableError(f"{ours}: got {authority[ours]} mg/kWh, expected within 1 % of {theirs}")


def _by_year(rows: Sequence[Row]) -> dict[int, dict[str, int]]:
    years: dict[int, dict[str, int]] = {}
    for row in rows:
        years.setdefault(int(utc_iso(row.start_ns)[:4]), {})[row.region_key] = row.mg_per_kwh
    return years


def _better(one: SourceRow, other: SourceRow) -> SourceRow:
    if _is_published(one) != _is_published(other):
        return one if _is_published(one) else other
    if _g_per_kwh(one) != _g_per_kwh(other):
        raise TableError(
            f"got {one['region_code']} {one['year']} as {_g_per_kwh(one)} and {_g_per_kwh(other)} g/kWh, "
            "expected one figure"
        )
    return other


def _is_published(raw: SourceRow) -> bool:
    return "back-computed" not in raw["raw_unit"]


def _g_per_kwh(raw: SourceRow) -> Decimal:
    try:
        given = Decimal(raw["gco2e_per_kwh"])
        published = Decimal(raw["raw_value"]) * G_PER_KWH_PER_LB_PER_MWH if raw["raw_unit"] == "lb/MWh" else given
        agree = abs(published - given) <= Decimal("0.001")
    except InvalidOperation as error:
        got = (raw["gco2e_per_kwh"], raw["raw_value"])
        raise TableError(f"{raw['region_code']}: got figures {got}, expected decimal numbers") from error
    if not agree:
        raise TableError(f"{raw['region_code']}: got {given} g/kWh, expected {published} of its lb/MWh")
    return published


def _row(key: str, year: int, raw: SourceRow, quality: Quality) -> Row:
    figure = _g_per_kwh(raw)
    if not 0 < figure <= MAX_G_PER_KWH:
        raise TableError(f"{key} {year}: got {figure} g/kWh, expected above 0 and up to {MAX_G_PER_KWH}")
    start, end = (parse_utc_ns(f"{at}-01-01T00:00:00Z") for at in (year, year + 1))
    mg = int((figure * MG_PER_G).to_integral_value(ROUND_HALF_EVEN))
    return Row(key, start, end, mg, Tier.ANNUAL, quality)
