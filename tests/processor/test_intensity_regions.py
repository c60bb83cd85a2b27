from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.errors import RegionError, TableError
from joulegram_processor.intensity.aliases import ALIASES_ID, alias_csv, read_aliases, shipped_aliases
from joulegram_processor.intensity.regions import resolve, resolve_in
from joulegram_processor.intensity.table import TABLES_DIR, load_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = [
    ("egrid:SPNO", None, "egrid:SPNO", "epa-egrid-subregion"),
    ("egrid:SPNO", "epa-egrid-subregion-co2", "egrid:SPNO", "epa-egrid-subregion-co2"),
    ("ba:MISO", None, "ba:MISO", "epa-egrid-ba"),
    ("iso3:DEU", None, "iso3:DEU", "ember-annual"),
    ("ember:DEU", None, "iso3:DEU", "ember-annual"),
    ("ember:EU", None, "ember:EU", "ember-annual"),
    ("SPP_KS", None, "egrid:SPNO", "epa-egrid-subregion"),
    ("SPP_KS", "epa-egrid-subregion-co2", "egrid:SPNO", "epa-egrid-subregion-co2"),
    ("SPP_KS", "epa-egrid-ba", "ba:SWPP", "epa-egrid-ba"),
    ("MISO", "epa-egrid-ba", "ba:MISO", "epa-egrid-ba"),
    ("ERCOT", None, "egrid:ERCT", "epa-egrid-subregion"),
    ("ERCOT", "epa-egrid-ba", "ba:ERCO", "epa-egrid-ba"),
]


@pytest.mark.parametrize(("region", "table_id", "key", "found_in"), GOOD)
def test_a_region_resolves_to_one_key_and_table(region: str, table_id: str | None, key: str, found_in: str) -> None:
    """Keys by their scheme, aliases by the table's scheme (S1-26, D-15)."""
    resolved = resolve(region, table_id)
    assert (resolved.key, resolved.table_id) == (key, found_in)


def test_the_path_says_how_and_by_which_alias_file() -> None:
    """A result can name the alias file it went through, or that it needed none (S1-30)."""
    aliases = shipped_aliases()
    assert resolve("SPP_KS").path == (f"SPP_KS → egrid:SPNO (aliases {aliases.version}, sha256 {aliases.sha256})")
    assert resolve("egrid:SPNO").path == "egrid:SPNO"
    assert resolve("ember:DEU").path == "ember:DEU → iso3:DEU"


BAD = [
    (
        "MISO",
        None,
        "ambiguous in table epa-egrid-subregion@",
        "egrid:MROE, egrid:MROW, egrid:RFCM, egrid:RFCW, egrid:SRMV, egrid:SRMW",
        "ba:MISO exists in table epa-egrid-ba (gas co2)",
    ),
    ("PJM", None, "ambiguous", "egrid:RFCE, egrid:RFCM, egrid:RFCW"),
    ("NYISO", None, "ambiguous", "egrid:NYCW, egrid:NYLI, egrid:NYUP"),
    ("PJM", "epa-egrid-ba", "an alias without a target in table epa-egrid-ba@"),
    ("NYISO", "epa-egrid-ba", "(ba:NYIS), which table epa-egrid-ba@"),
    ("SPP_KS", "ember-annual", "an alias without a target", "egrid:SPNO exists in table epa-egrid-subregion"),
    ("spp_ks", None, "did you mean 'SPP_KS'?"),
    ("egrid:spno", None, "did you mean 'egrid:SPNO'?"),
    ("EGRID:SPNO", None, "scheme 'EGRID'", "expected one of egrid:, ba:, iso3:, ember:"),
    ("SPNO", None, "expected scheme:code", "did you mean 'egrid:SPNO'?"),
    ("DEU", None, "did you mean 'iso3:DEU'?"),
    ("egrid:SPPNO", None, "did you mean 'egrid:SPNO'"),
    ("egrid:MISO", None, "did you mean"),
    ("iso3:DEU", "epa-egrid-ba", "which table epa-egrid-ba@"),
    ("iso3:XXX", None, "which table ember-annual@"),
    ("iso3:CAF", None, "which table ember-annual@"),
    ("em:DE", None, "scheme 'em'"),
    ("us-central2", None, "expected scheme:code"),
    ("", None, "got region ''"),
    (" SPP_KS", None, "did you mean 'SPP_KS'?"),
    ("qqqqqqqq", None, "epa-egrid-subregion has egrid:AKGD", "and 16 more"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[0]}@{case[1]}")
def test_an_unknown_or_ambiguous_region_is_quoted_and_refused(case: tuple[str, ...]) -> None:
    """Never a guess or a world average: the message quotes the region and says what there is (D-15)."""
    region, table_id, *words = case
    with pytest.raises(RegionError) as caught:
        resolve(region, table_id)
    for word in (repr(region), *words):
        assert word in str(caught.value)


def test_a_table_that_is_not_there_is_a_table_error() -> None:
    """The table is checked before the region."""
    with pytest.raises(TableError, match="got table 'nope'"):
        resolve("SPP_KS", "nope")


def test_a_loaded_table_resolves_without_a_look_at_others() -> None:
    """`resolve_in` gives what `resolve` gives for that table."""
    assert resolve_in("SPP_KS", load_table("epa-egrid-ba")) == resolve("SPP_KS", "epa-egrid-ba")


HARM: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "both": (lambda data: data.replace(b"egrid:SPNO,", b"egrid:SPNO,egrid:SPSO"), "expected one target"),
    "neither": (lambda data: data.replace(b"egrid:SPNO,", b","), "expected one target"),
    "bare target": (lambda data: data.replace(b"egrid:SPNO,", b"SPNO,"), "as region keys"),
    "twice": (lambda data: data + data.splitlines(keepends=True)[-1], "expected it once"),
    "fields": (lambda data: data + b"A,b\n", "got 2 fields"),
    "header": (lambda data: data.replace(b"alias,", b"name,", 1), "aliases.csv:1: got header"),
    "CRLF": (lambda data: data.replace(b"\n", b"\r\n"), "aliases.csv:1: got a carriage return"),
}


@pytest.mark.parametrize("name", [*HARM, "hash"])
def test_a_damaged_alias_file_is_refused(tmp_path: Path, name: str) -> None:
    """The alias file is hashed and strict, as a table is."""
    directory = tmp_path / "aliases"
    shutil.copytree(next((TABLES_DIR / ALIASES_ID).iterdir()), directory)
    path, manifest = directory / "aliases.csv", directory / "manifest.json"
    before = read_aliases(directory)
    harm, words = HARM.get(name, (lambda data: data.replace(b"ba:SWPP", b"ba:MISO"), before.sha256))
    path.write_bytes(harm(path.read_bytes()))
    if name in HARM:
        from joulegram_pipeline.canonical import sha256_hex

        fresh = sha256_hex(path.read_bytes()).encode()
        manifest.write_bytes(manifest.read_bytes().replace(before.sha256.encode(), fresh))
    with pytest.raises(TableError) as caught:
        read_aliases(directory)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_an_alias_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """A manifest without a version and hash is not one."""
    (tmp_path / "aliases.csv").write_bytes(b"")
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(TableError, match="got no alias manifest"):
        read_aliases(tmp_path)


def test_an_alias_source_that_contradicts_itself_is_refused() -> None:
    """Two targets in one scheme, or an ambiguity without choices, stop the build."""
    row = {"alias": "A", "scheme": "eia", "target": "X", "why": ""}
    with pytest.raises(TableError, match="got alias A twice in ba"):
        alias_csv([row, {**row, "scheme": "egrid-ba", "target": "ba:Y"}], set())
    with pytest.raises(TableError, match="without a target or choices"):
        alias_csv([{**row, "target": "", "scheme": "egrid", "why": "SPNO"}], set())
