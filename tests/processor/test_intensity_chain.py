from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.clock import parse_utc_ns
from joulegram_pipeline.errors import ConfigError, RegionError, TableError, WireError
from joulegram_pipeline.records import TableRef
from joulegram_processor.intensity.chain import BEGINNING_NS, DEFAULT_TIERS, END_NS, IntensityChain, Segment
from joulegram_processor.intensity.rows import Quality, Row, Tier
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.intensity.table import IntensityTable, load_table

HOUR_NS = 3600 * 10**9
EGRID = load_table("epa-egrid-subregion")


def _ns(text: str) -> int:
    return parse_utc_ns(text)


def _table(*rows: tuple[int, int, int, Tier]) -> IntensityTable:
    made = tuple(Row("x:A", *row, Quality.MEASURED) for row in rows)
    ref = TableRef("t", "1+0", "0" * 64, "T", "P", "", "")
    return IntensityTable(ref, MappingProxyType({"gas": "co2e"}), {"x:A": made})


def _plain(segments: list[Segment]) -> list[tuple[int, int, int, str, bool]]:
    return [(s.start_ns, s.end_ns, s.mg_per_kwh, s.resolution, s.upper_bound) for s in segments]


MIXED = _table(
    (0, 10, 100, Tier.ANNUAL),
    (2, 4, 300, Tier.HOURLY),
    (3, 6, 200, Tier.DAILY),
    (4, 5, 310, Tier.HOURLY),
    (12, 13, 50, Tier.HOURLY),
)


def test_the_first_declared_tier_that_has_a_row_wins() -> None:
    """Hourly, daily, annual; the worst case for holes, the newest year after coverage (S1-27, C-08)."""
    chain = IntensityChain(MIXED, "x:A")
    assert _plain(chain.segments(-2, 20)) == [
        (-2, 0, 310, "static", True),
        (0, 2, 100, "annual", False),
        (2, 4, 300, "hourly", False),
        (4, 5, 310, "hourly", False),
        (5, 6, 200, "daily", False),
        (6, 10, 100, "annual", False),
        (10, 12, 310, "static", True),
        (12, 13, 50, "hourly", False),
        (13, 20, 100, "static", False),
    ]


def test_the_order_is_the_users_and_is_hashed() -> None:
    """Another order is another result and another hash; the same order is the same hash (C-08, S1-30)."""
    seed = IntensityChain(MIXED, "x:A")
    static = IntensityChain(MIXED, "x:A", ("annual", "latest", "worst_case"))
    assert static.segment_at(2, 4) == Segment(0, 10, 100, "annual", upper_bound=False)
    assert static.sha256 != seed.sha256
    assert IntensityChain(MIXED, "x:A").sha256 == seed.sha256
    assert IntensityChain(EGRID, "egrid:SPNO").sha256 != IntensityChain(EGRID, "egrid:SPSO").sha256


def test_worst_case_is_the_highest_row_and_not_a_mean() -> None:
    """The bound is the region's own maximum, labelled as a bound (C-08)."""
    bound = IntensityChain(MIXED, "x:A", ("worst_case",)).segment_at(5, 9)
    assert bound == Segment(BEGINNING_NS, END_NS, 310, "static", upper_bound=True)


def test_a_chain_without_a_bound_refuses_what_it_does_not_cover() -> None:
    """No row and no declared fallback is an error that says when, never a 0."""
    chain = IntensityChain(MIXED, "x:A", ("hourly",))
    assert chain.segment_at(4, 6) is None
    assert chain.segment_at(-5, -4) is None
    assert chain.segment_at(10, 11) is None
    for start, end, at in ((4, 7, 5), (-5, -4, -5), (2, 30, 5), (13, 13, 13)):
        with pytest.raises(TableError, match=f"got instant {at} of span {start} to {end}"):
            chain.segments(start, end)


@pytest.mark.parametrize("tiers", [(), ("hourly", "hourly"), ("weekly",), ("hourly", "average")])
def test_an_order_that_is_none_is_refused(tiers: tuple[str, ...]) -> None:
    """Unknown, doubled or missing tiers are a configuration error that lists those there are."""
    with pytest.raises(ConfigError, match="expected some of hourly, daily, monthly, annual, static, latest"):
        IntensityChain(MIXED, "x:A", tiers)


def test_an_unknown_region_is_refused() -> None:
    """A chain is for a region of its table."""
    with pytest.raises(RegionError, match="got region 'x:B'"):
        IntensityChain(MIXED, "x:B")


def test_a_span_of_2026_under_egrid_2023_is_static_from_the_2023_row() -> None:
    """A year carried forward is reported as static, and is an estimate, not a bound (S0-68, C-08)."""
    chain = IntensityChain(EGRID, "egrid:SPNO")
    start = _ns("2026-05-01T00:00:00Z")
    segment = chain.segment_at(start, start + HOUR_NS)
    assert segment is not None
    assert (segment.mg_per_kwh, segment.resolution, segment.upper_bound) == (393_600, "static", False)
    before = chain.segments(_ns("2021-05-01T00:00:00Z"), _ns("2021-05-01T01:00:00Z"))
    assert [(s.mg_per_kwh, s.resolution, s.upper_bound) for s in before] == [(435_168, "static", True)]


def test_a_span_over_the_new_year_is_cut_at_it() -> None:
    """The factor is that of the time of use, on both sides of the boundary (D-14)."""
    chain = IntensityChain(EGRID, "egrid:SPNO")
    turn = _ns("2023-01-01T00:00:00Z")
    assert chain.segment_at(turn - 1, turn + 1) is None
    assert _plain(chain.segments(turn - HOUR_NS, turn + 2 * HOUR_NS)) == [
        (turn - HOUR_NS, turn, 435_168, "annual", False),
        (turn, turn + 2 * HOUR_NS, 393_600, "annual", False),
    ]


def test_a_span_that_ends_on_a_boundary_stays_before_it() -> None:
    """Half-open: the end instant belongs to the next row; a point on the boundary too."""
    chain = IntensityChain(EGRID, "egrid:SPNO")
    turn = _ns("2023-01-01T00:00:00Z")
    for _ in range(2):  # the second round answers from the segment that was kept
        ends = chain.segment_at(turn - HOUR_NS, turn)
        point = chain.segment_at(turn, turn)
        assert ends is not None
        assert point is not None
        assert (ends.mg_per_kwh, point.mg_per_kwh) == (435_168, 393_600)
    assert _plain(chain.segments(turn, turn)) == [(turn, turn, 393_600, "annual", False)]
    assert len(chain.segments(turn - HOUR_NS, turn)) == 1


def test_a_leap_day_has_its_24_hours() -> None:
    """29 February of an hourly table is covered hour by hour; 28 February of the year before has no 29th."""
    first = _ns("2024-02-28T23:00:00Z")
    rows = [(first + n * HOUR_NS, first + (n + 1) * HOUR_NS, 100 + n, Tier.HOURLY) for n in range(26)]
    chain = IntensityChain(_table(*rows), "x:A")
    day = chain.segments(_ns("2024-02-29T00:00:00Z"), _ns("2024-03-01T00:00:00Z"))
    assert [segment.mg_per_kwh for segment in day] == list(range(101, 125))
    assert {segment.resolution for segment in day} == {"hourly"}


def test_an_end_before_its_start_is_refused() -> None:
    """Such a span is not a span; both providers say so."""
    for provider in (IntensityChain(MIXED, "x:A"), StaticFactor("0.4", "bill")):
        with pytest.raises(WireError, match="got a span from 5 to 4"):
            provider.segments(5, 4)


_TIERED = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 10), st.integers(0, 999), st.sampled_from(list(Tier))),
    min_size=1,
    max_size=12,
)


def _apart(rows: list[tuple[int, int, int, Tier]]) -> list[tuple[int, int, int, Tier]]:
    out: list[tuple[int, int, int, Tier]] = []
    for start, length, mg, tier in sorted(rows, key=lambda row: (row[0], list(Tier).index(row[3]))):
        if all(row[3] is not tier or row[1] <= start for row in out):
            out.append((start, start + length, mg, tier))
    return out


@given(_TIERED, st.integers(-5, 60), st.integers(0, 60), st.lists(st.sampled_from(DEFAULT_TIERS), unique=True))
def test_segments_agree_with_a_look_at_each_instant(
    raw: list[tuple[int, int, int, Tier]], start: int, length: int, some: list[str]
) -> None:
    """Law: the cut span adjoins, covers exactly the span, and at each instant has the first declared tier."""
    rows = _apart(raw)
    tiers = [*(tier for tier in some if tier != "worst_case"), "worst_case"]
    chain = IntensityChain(_table(*rows), "x:A", tiers)
    pieces = chain.segments(start, start + length)
    assert (pieces[0].start_ns, pieces[-1].end_ns) == (start, start + length)
    assert all(one.end_ns == two.start_ns for one, two in pairwise(pieces))
    annual = [row for row in rows if row[3] is Tier.ANNUAL]
    coverage = max((row[1] for row in rows if row[3].value in tiers or row in annual), default=0)
    for at in range(start, start + length):
        for tier in tiers:
            if tier == "worst_case":
                want = (max(row[2] for row in rows), "static", True)
            elif tier == "latest" and annual and at >= coverage:
                want = (max(annual, key=lambda row: row[1])[2], "static", False)
            elif here := [row for row in rows if row[3].value == tier and row[0] <= at < row[1]]:
                want = (here[0][2], tier, False)
            else:
                continue
            break
        piece = next(piece for piece in pieces if piece.start_ns <= at < piece.end_ns)
        assert (piece.mg_per_kwh, piece.resolution, piece.upper_bound) == want


@given(_TIERED, st.lists(st.tuples(st.integers(-5, 60), st.integers(0, 30)), min_size=1, max_size=20))
def test_the_short_cut_gives_what_a_cut_gives(
    raw: list[tuple[int, int, int, Tier]], spans: list[tuple[int, int]]
) -> None:
    """Law: whatever was asked before, `segment_at` is the one of `segments`, or None where it cuts."""
    chain = IntensityChain(_table(*_apart(raw)), "x:A")
    for start, length in spans:
        pieces = chain.segments(start, start + length)
        found = chain.segment_at(start, start + length)
        if found is None:
            assert len(pieces) > 1
        else:
            assert _plain(pieces) == [(start, start + length, found.mg_per_kwh, found.resolution, found.upper_bound)]


BAD_FACTORS = {
    "NaN": ("NaN", "finite"),
    "infinity": ("inf", "finite"),
    "minus infinity": ("-Infinity", "finite"),
    "negative": ("-0.1", "0 or more"),
    "g taken for kg": ("393.6", "probably g/kWh"),
    "the 1548 of D-19": ("1548", "probably g/kWh"),
    "just above": ("5.000001", "at most 5 kg/kWh"),
    "words": ("zero", "expected a decimal number"),
    "empty": ("", "expected a decimal number"),
    "finer than a milligram": ("0.0000001", "at most 6 decimals"),
}


@pytest.mark.parametrize("name", BAD_FACTORS)
def test_a_declared_factor_that_cannot_be_is_refused(name: str) -> None:
    """NaN, infinity, a negative, a wrong unit: the key and the value are quoted (D-18, D-19, C-07)."""
    given_text, words = BAD_FACTORS[name]
    with pytest.raises(ConfigError, match="emission_factor_kg_per_kwh: got") as caught:
        StaticFactor(given_text, "utility bill 2025")
    assert words in str(caught.value)


@pytest.mark.parametrize("source", ["", "  ", "TBD", "tbd", " Todo ", "N/A", "unknown"])
def test_a_factor_without_a_source_is_refused(source: str) -> None:
    """A source that names none does not pass (S0-58, D-18)."""
    with pytest.raises(ConfigError, match="emission_factor_source"):
        StaticFactor("0.4", source)


def test_a_gas_that_is_none_is_refused() -> None:
    """The gas comes from the factor and is one of two (C-02)."""
    assert StaticFactor("0.4", "bill", "co2").gas == "co2"
    with pytest.raises(ConfigError, match="emission_factor_gas"):
        StaticFactor("0.4", "bill", "CO2e")


@pytest.mark.parametrize(("text", "mg"), [("0", 0), ("0.0", 0), ("0.40", 400_000), ("5", 5_000_000)])
def test_a_declared_factor_holds_at_all_times(text: str, mg: int) -> None:
    """0 is a factor and not its absence; factor and source stand before any carbon (D-16, D-17, S0-57)."""
    factor = StaticFactor(text, " bill ")
    assert (factor.kg_per_kwh, factor.source, factor.region) == (Decimal(text), "bill", None)
    segment = factor.segment_at(0, END_NS)
    assert segment is not None
    assert (segment.mg_per_kwh, segment.resolution, segment.upper_bound) == (mg, "static", False)
    assert _plain(factor.segments(3, 9)) == [(3, 9, mg, "static", False)]


def test_a_declared_factor_is_named_by_value_and_source() -> None:
    """The version is the hash of what was declared; another spelling is the same factor (C-06)."""
    factor = StaticFactor("0.40", "bill")
    assert (factor.ref.id, factor.ref.version) == ("static-factor", factor.sha256[:8])
    assert StaticFactor("0.4", "bill").ref == factor.ref
    others = [StaticFactor("0.41", "bill"), StaticFactor("0.4", "other"), StaticFactor("0.4", "bill", "co2")]
    assert len({factor.ref.version, *(other.ref.version for other in others)}) == 4


def test_a_chain_names_its_source() -> None:
    """The source text carries the table's id and version (C-06, S0-58, D-15)."""
    chain = IntensityChain(EGRID, "egrid:SPNO")
    assert EGRID.ref.name in chain.source
    assert "egrid:SPNO" in chain.source
    assert (chain.region, chain.gas, chain.ref) == ("egrid:SPNO", "co2e", EGRID.ref)
