from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.canonical import sha256_hex
from joulegram_pipeline.clock import utc_iso
from joulegram_pipeline.errors import TableError
from joulegram_processor.intensity import build
from joulegram_processor.intensity.recipes import RECIPES, check_plausible, rows_of
from joulegram_processor.intensity.table import TABLES_DIR, IntensityTable, load_table, shipped_tables

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tables.md"
TABLES = [load_table(*name) for name in shipped_tables()]
SHIPPABLE = {"LicenseRef-US-Government-Public-Domain", "CC-BY-4.0"}


def _g(table_id: str, key: str, year: int) -> str:
    rows = load_table(table_id).regions[key]
    found = [row for row in rows if utc_iso(row.start_ns).startswith(str(year))]
    assert len(found) == 1
    return f"{found[0].mg_per_kwh / 1000:.3f}"


def _files(tree: Path) -> dict[str, bytes]:
    found = (path for path in tree.rglob("*") if path.is_file())
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in found}


def test_committed_tables_are_what_their_sources_give() -> None:
    """Golden: rebuilding from tables/sources gives the committed bytes (S0-54, S1-28, S1-30)."""
    done = subprocess.run(
        [sys.executable, "-m", "joulegram_processor.intensity.build", "--check"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_build_gives_the_same_bytes_under_any_hash_seed(tmp_path: Path) -> None:
    """A build into an empty tree, with another hash seed, equals the committed one."""
    shutil.copytree(TABLES_DIR / "sources", tmp_path / "sources")
    subprocess.run(
        [sys.executable, "-m", "joulegram_processor.intensity.build", "--tables", str(tmp_path)],
        check=True,
        env={"PYTHONHASHSEED": "77", "PATH": ""},
    )
    assert _files(tmp_path) == _files(TABLES_DIR)


def _flip(tree: Path) -> None:
    path = next(tree.glob("epa-egrid-ba/*/table.csv"))
    path.write_bytes(path.read_bytes().replace(b"395.306", b"395.307"))


def _drop(tree: Path) -> None:
    next(tree.glob("ember-annual/*/NOTICE")).unlink()


def _add(tree: Path) -> None:
    next(tree.glob("ember-annual/*")).joinpath("extra.csv").write_text("x")


@pytest.mark.parametrize(
    ("harm", "word"), [(_flip, "differs: epa-egrid-ba"), (_drop, "missing: ember"), (_add, "not built")]
)
def test_check_names_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], word: str
) -> None:
    """--check exits 1 for a changed, a missing and an extra file, and a build heals all three."""
    tree = tmp_path / "tables"
    shutil.copytree(TABLES_DIR, tree)
    harm(tree)
    assert build.main(["--check", "--tables", str(tree)]) == 1
    assert word in capsys.readouterr().err
    assert build.main(["--tables", str(tree)]) == 0
    assert build.main(["--check", "--tables", str(tree)]) == 0


def test_published_figures_stand_in_the_tables() -> None:
    """Hand-converted figures of the published tables: lb/MWh x 0.45359237, half-even to 3 decimals."""
    assert _g("epa-egrid-subregion", "egrid:SPNO", 2023) == "393.600"
    assert _g("epa-egrid-subregion", "egrid:SPNO", 2022) == "435.168"
    assert _g("epa-egrid-subregion", "egrid:US", 2023) == "349.667"
    assert _g("epa-egrid-subregion-co2", "egrid:SPNO", 2023) == "390.996"
    assert _g("epa-egrid-ba", "ba:SWPP", 2023) == "395.306"
    assert _g("ember-annual", "iso3:DEU", 2024) == "342.060"


def test_every_egrid_figure_is_its_published_one_rounded_once() -> None:
    """Independent of the recipe: each 2023 CO2e row is its own lb/MWh converted in Decimal."""
    text = (TABLES_DIR / "sources" / "us_egrid_subregions.csv").read_text("utf-8")
    seen = 0
    for raw in csv.DictReader(io.StringIO(text)):
        if (raw["year"], raw["gas"], raw["kind"]) == ("2023", "CO2e", "average"):
            exact = Decimal(raw["raw_value"]) * Decimal("0.45359237")
            want = exact.quantize(Decimal("0.001"), ROUND_HALF_EVEN)
            assert _g("epa-egrid-subregion", raw["region_code"], 2023) == str(want)
            seen += 1
    assert seen == 28


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.ref.id)
def test_one_table_is_one_combination_with_a_licence_that_may_ship(table: IntensityTable) -> None:
    """No ODbL or proprietary source; one kind, scope, basis, gas and GWP set (S0-05, S1-30)."""
    assert table.ref.licence in SHIPPABLE
    assert table.manifest["redistributable"] is True
    assert table.manifest["kind"] == "average"
    assert table.manifest["scope"] == ("lifecycle" if table.ref.publisher == "Ember" else "direct")
    directory = TABLES_DIR / table.ref.id / table.ref.version
    notice = (directory / "NOTICE").read_text("utf-8")
    assert table.ref.licence in notice
    assert table.manifest["attribution"] in notice
    assert table.ref.version.endswith("+" + sha256_hex((directory / "table.csv").read_bytes())[:8])
    for word in ("electricity maps", "electricitymaps", "odbl", "watttime"):
        assert word not in json.dumps(table.manifest).casefold() + notice.casefold()


def test_unofficial_and_other_gwp_years_are_left_out_and_said() -> None:
    """EGRID CO2e holds 2022 and 2023 alone, 28 regions each; the manifest says what is not there."""
    table = load_table("epa-egrid-subregion")
    years = [utc_iso(row.start_ns)[:4] for rows in table.regions.values() for row in rows]
    assert {year: years.count(year) for year in set(years)} == {"2022": 28, "2023": 28}
    left_out = {item["what"]: item["why"] for item in table.manifest["excluded"]}
    assert "GWP" in left_out["years 2018 to 2021"]
    assert "not an EPA release" in left_out["year 2024"]


def test_a_life_cycle_zero_is_missing_and_not_zero() -> None:
    """Ember's 0 for one country is left out, since no life-cycle figure is 0; the manifest says so."""
    table = load_table("ember-annual")
    assert "iso3:CAF" not in table.regions
    assert len(table.regions) == 221
    assert any("iso3:CAF" in item["what"] for item in table.manifest["excluded"])
    assert {key for key in table.regions if key.startswith("ember:")} >= {"ember:EU", "ember:WORLD"}


def _sources(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((TABLES_DIR / "sources" / name).read_text("utf-8"))))


def _tables_with(change: str, region: str, figure: str | None) -> None:
    tables = {}
    for recipe in RECIPES:
        source = _sources(recipe.source)
        for raw in source:
            if change == recipe.table_id and raw["region_code"] == region and raw["year"] == "2023":
                raw["raw_unit"] = "g/kWh"
                raw["gco2e_per_kwh"] = figure or raw["gco2e_per_kwh"]
        tables[recipe.table_id] = rows_of(recipe, source)
    check_plausible(tables)


@pytest.mark.parametrize(
    ("table_id", "region", "figure", "word"),
    [
        ("epa-egrid-subregion", "egrid:US", "800", "US mean"),
        ("epa-egrid-subregion", "egrid:SPSO", "393.600", "same figure"),
        ("epa-egrid-subregion", "egrid:SPNO", "867.74", "within 2 %"),  # lb/MWh taken for g/kWh
        ("epa-egrid-subregion", "egrid:SPNO", "0.3936", "within 2 %"),  # kg/kWh taken for g/kWh
        ("epa-egrid-subregion", "egrid:SPNO", "393600", "up to 2500"),  # g/MWh taken for g/kWh
        ("epa-egrid-subregion", "egrid:SPNO", "NaN", "expected decimal numbers"),
        ("epa-egrid-subregion-co2", "egrid:SPNO", "400", "within 2 %"),
        ("epa-egrid-ba", "ba:ERCO", "734.0", "within 1 %"),
    ],
)
def test_absurd_figures_stop_the_build(table_id: str, region: str, figure: str, word: str) -> None:
    """Unit mix-ups, copied and invented figures do not pass the plausibility checks (D-19, C-07)."""
    _tables_with(table_id, region, None)
    with pytest.raises(TableError, match=re.escape(word)):
        _tables_with(table_id, region, figure)


def test_two_figures_for_one_region_and_year_are_an_error_and_a_published_one_goes_first() -> None:
    """The documented rule for duplicates: published before back-computed, else they must agree."""
    recipe = RECIPES[0]
    source = _sources(recipe.source)
    row = next(raw for raw in source if raw["region_code"] == "egrid:SPNO" and raw["year"] == "2022")
    plain = rows_of(recipe, source)
    published = {**row, "raw_unit": "lb/MWh", "raw_value": "959.382", "gco2e_per_kwh": "435.168355"}
    for order in ([*source, published], [published, *source]):
        assert rows_of(recipe, order) == rows_of(recipe, [raw for raw in order if raw is not row])
    assert rows_of(recipe, [*source, row]) == plain
    with pytest.raises(TableError, match="expected one figure"):
        rows_of(recipe, [*source, {**row, "gco2e_per_kwh": "435.2"}])
    with pytest.raises(TableError, match="of its lb/MWh"):
        rows_of(recipe, [{**published, "gco2e_per_kwh": "959.382"}])


def test_ember_keys_of_countries_are_iso3() -> None:
    """`ember:DEU` in a source is `iso3:DEU` in the table."""
    recipe = next(recipe for recipe in RECIPES if recipe.table_id == "ember-annual")
    source = _sources(recipe.source)
    spelled = [{**raw, "region_code": raw["region_code"].replace("iso3:", "ember:")} for raw in source]
    assert rows_of(recipe, spelled) == rows_of(recipe, source)


def test_the_page_lists_every_table_as_it_is() -> None:
    """docs/tables.md and the files agree: id, version, gas, scope, years, licence and sha256."""
    listed = set()
    for line in DOCS.read_text("utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 8 and re.fullmatch(r"[0-9a-f]{64}", cells[-1]):
            listed.add(tuple(cells))
    want = set()
    for table in TABLES:
        years = sorted({utc_iso(row.start_ns)[:4] for rows in table.regions.values() for row in rows})
        span = years[0] if len(years) == 1 else f"{years[0]} to {years[-1]}"
        ref = table.ref
        tags = (table.gas, table.manifest["scope"], span, str(len(table.regions)), ref.licence)
        want.add((ref.id, ref.version, *tags, ref.sha256))
    assert listed == want
