"""From configuration to what prices energy: every region, table and factor that cannot be used is said so at start."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_pipeline.canonical import canonical, sha256_hex
from joulegram_pipeline.errors import ConfigError
from joulegram_processor.intensity.table import TABLES_DIR
from joulegram_service.carbon_model import NO_REGION, build_carbon
from joulegram_service.config_file import load_config

if TYPE_CHECKING:
    from collections.abc import Mapping

SHIPPED = "epa-egrid-subregion"


def built(raw: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Any:
    """What is built of a `carbon` section."""
    return build_carbon(load_config(None, {("carbon", key): value for key, value in raw.items()}, env or {}))


def fault(raw: Mapping[str, Any], env: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        built(raw, env)
    return str(caught.value)


def own_table(directory: Path, table_id: str = "my-table", label: str | None = None) -> Path:
    """A copy of a shipped table under another name, as a user may have one; the path of its table.csv."""
    (source,) = (TABLES_DIR / SHIPPED).iterdir()
    manifest = json.loads((source / "manifest.json").read_bytes())
    version = manifest["version"] if label is None else f"{label}+{manifest['table_sha256'][:8]}"
    target = directory / table_id / version
    shutil.copytree(source, target)
    manifest.update(table_id=table_id, version=version)
    (target / "manifest.json").write_bytes(canonical(manifest))
    return target / "table.csv"


REGIONS = {
    "an alias in another case": ("spp_ks", "did you mean 'SPP_KS'?"),
    "a code without its scheme": ("SPNO", "did you mean 'egrid:SPNO'?"),
    "a letter too many": ("egrid:SPNOO", "did you mean 'egrid:SPNO'"),
    "a scheme that is none": ("zip:66044", "expected one of egrid:, ba:, iso3:, ember:"),
    "several regions": ("MISO", "ambiguous in table epa-egrid-subregion@"),
    "a place on earth": ("world", "expected scheme:code as egrid:SPNO"),
    "nothing": ("", "expected scheme:code"),
}


@pytest.mark.parametrize(("region", "expected"), REGIONS.values(), ids=REGIONS)
def test_a_region_that_is_unknown_or_ambiguous_is_an_error(region: str, expected: str) -> None:
    """It is quoted with the key and with what was probably meant; no world average stands in for it (design 5)."""
    message = fault({"region": region})
    assert message.startswith(f"carbon.region: got {region!r}, expected a region of the tables")
    assert expected in message


def test_an_ambiguous_region_lists_its_choices() -> None:
    """MISO spans several subregions: all of them are named, and the table that has it as one."""
    message = fault({"region": "MISO"})
    for choice in ("egrid:MROE", "egrid:MROW", "egrid:SRMV", "ba:MISO exists in table epa-egrid-ba"):
        assert choice in message


def test_a_region_of_the_environment_is_quoted_as_that() -> None:
    """The user finds the variable he set."""
    assert fault({}, {"JOULEGRAM_REGION": "MISO"}).startswith("JOULEGRAM_REGION (carbon.region): got 'MISO'")


def test_a_table_that_is_missing_lists_those_there_are() -> None:
    """Quoted, with id and version of each."""
    message = fault({"region": "SPP_KS", "table": "epa-egrid"})
    assert message.startswith("carbon.table: got 'epa-egrid', expected a table that is there and whole")
    assert "epa-egrid-subregion@" in message
    assert "ember-annual@" in message


def test_a_table_of_ones_own_is_taken(tmp_path: Path) -> None:
    """From `carbon.table_dirs`, named by `carbon.table`; the record names it (S1-28, S1-30)."""
    own_table(tmp_path)
    model, identity = built({"region": "egrid:SPNO", "table": "my-table", "table_dirs": [str(tmp_path)]})
    assert identity.tables[0].id == "my-table"
    assert "my-table@" in identity.factor_source
    assert model.region == "egrid:SPNO"


@pytest.mark.parametrize("at", [0, 100, -2])
def test_a_table_whose_bytes_are_not_those_of_its_manifest_is_refused(tmp_path: Path, at: int) -> None:
    """One byte flipped, wherever it is: both hashes are quoted, nothing is priced with it."""
    path = own_table(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    message = fault({"region": "egrid:SPNO", "table": "my-table", "table_dirs": [str(tmp_path)]})
    assert message.startswith("carbon.table: got 'my-table', expected a table that is there and whole")
    assert f"got bytes of sha256 {sha256_hex(bytes(data))}" in message


def test_an_added_version_is_chosen_by_name(tmp_path: Path) -> None:
    """Two versions of one id are ambiguous until `id@version` says which: no result changes in silence."""
    own_table(tmp_path, SHIPPED, "mine")
    dirs = {"table_dirs": [str(tmp_path)]}
    message = fault({"region": "egrid:SPNO", "table": SHIPPED, **dirs})
    assert "without a version, expected one of its versions" in message
    version = next(word.strip(")") for word in message.replace(",", " ").split() if word.startswith("mine+"))
    _, identity = built({"region": "egrid:SPNO", "table": f"{SHIPPED}@{version}", **dirs})
    assert identity.tables[0].name == f"{SHIPPED}@{version}"


def test_a_table_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """By its place in the list."""
    message = fault({"region": "SPP_KS", "table_dirs": [str(tmp_path), "/nowhere"]})
    assert message == "carbon.table_dirs[1]: got '/nowhere', expected a directory that exists"


def test_without_region_and_factor_there_is_a_reason() -> None:
    """No default region, no default factor (D-15, D-16): energy is joined, carbon is missing with its reason."""
    model, identity = built({})
    assert (identity.factor_source, identity.region, identity.tables) == (NO_REGION, None, ())
    assert model.reason == NO_REGION


FACTORS: dict[str, tuple[Any, str, str]] = {
    "NaN": (".nan", "bill", "kg_per_kwh: got '.nan', expected a decimal number"),
    "nan as a number": (float("nan"), "bill", "kg_per_kwh: got 'nan', expected a finite number"),
    "infinity": (float("inf"), "bill", "kg_per_kwh: got 'inf', expected a finite number"),
    "below 0": (-0.1, "bill", "kg_per_kwh: got '-0.1', expected a finite number of kg/kWh, 0 or more"),
    "grams": (400, "bill", "kg_per_kwh: got '400', expected at most 5 kg/kWh; this is probably g/kWh: divide by 1000"),
    "text": ("lots", "bill", "kg_per_kwh: got 'lots', expected a decimal number of kg/kWh"),
    "nothing": ("", "bill", "kg_per_kwh: got '', expected a decimal number of kg/kWh"),
    "finer than a milligram": ("0.0000004", "bill", "kg_per_kwh: got '0.0000004', expected at most 6 decimals"),
    "an empty source": (0.4, "", "source: got '', expected the name of a source"),
    "a source of blanks": (0.4, "  ", "source: got '  ', expected the name of a source"),
    "a source to be found": (0.4, "TBD", "source: got 'TBD', expected the name of a source"),
}


@pytest.mark.parametrize(("factor", "source", "expected"), FACTORS.values(), ids=FACTORS)
def test_a_factor_that_cannot_be_used_is_an_error(factor: object, source: str, expected: str) -> None:
    """Not finite, negative, in grams, or of nobody (D-18, D-19, C-07), under the key of the file."""
    message = fault({"factor": {"kg_per_kwh": factor, "source": source}})
    assert message.startswith(f"carbon.factor.{expected}")


def test_a_factor_of_the_environment_is_quoted_as_that() -> None:
    """By the names the job side knows (S0-55)."""
    env = {"KFM_EMISSION_FACTOR_KG_PER_KWH": "400", "KFM_EMISSION_FACTOR_SOURCE": "bill"}
    assert fault({}, env).startswith("KFM_EMISSION_FACTOR_KG_PER_KWH (carbon.factor.kg_per_kwh): got '400'")
    env = {"KFM_EMISSION_FACTOR_KG_PER_KWH": "0.4", "KFM_EMISSION_FACTOR_SOURCE": "tbd"}
    assert fault({}, env).startswith("KFM_EMISSION_FACTOR_SOURCE (carbon.factor.source): got 'tbd'")


@pytest.mark.parametrize("value", ["0", "0.0", "0.394", "5"])
def test_a_declared_factor_is_taken_as_declared(value: str) -> None:
    """0 too, which is not "undeclared" (D-16); with its source, recorded with every run (S0-57, S0-58)."""
    env = {"KFM_EMISSION_FACTOR_KG_PER_KWH": value, "KFM_EMISSION_FACTOR_SOURCE": "utility bill 2025"}
    model, identity = built({}, env)
    assert model.intensity.kg_per_kwh == Decimal(value)
    assert identity.factor_source == "utility bill 2025"


def test_a_declared_factor_goes_before_a_table() -> None:
    """Both given: the declared one is used (C-06)."""
    _, identity = built({"region": "SPP_KS", "factor": {"kg_per_kwh": "0.4", "source": "bill"}})
    assert (identity.factor_source, identity.region) == ("bill", None)


def test_a_region_says_how_it_was_reached() -> None:
    """The alias, its target, and the hash of the alias file: an auditor can follow it."""
    _, identity = built({"region": "SPP_KS"})
    assert identity.region is not None
    assert identity.region.startswith("SPP_KS → egrid:SPNO (aliases ")
    assert Path(TABLES_DIR, identity.tables[0].id, identity.tables[0].version).is_dir()
