from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.canonical import canonical, sha256_hex
from joulegram_pipeline.errors import TableError
from joulegram_processor.intensity.rows import COLUMNS, g_text, parse_rows, summarise
from joulegram_processor.intensity.table import load_table, read_table, shipped_tables

HEADER = ",".join(COLUMNS)
FIRST = "x:A,2023-01-01T00:00:00Z,2023-01-01T01:00:00Z,100.5,hourly,measured"
SECOND = "x:A,2023-01-01T01:00:00Z,2023-01-01T02:00:00Z,200,hourly,estimated"
GOOD = f"{HEADER}\n{FIRST}\n{SECOND}\n".encode()


def _manifest(data: bytes, rows: Any, **changes: Any) -> dict[str, Any]:
    sha256 = sha256_hex(data)
    return {
        **summarise(rows),
        "table_id": "t",
        "version": f"1+{sha256[:8]}",
        "title": "T",
        "publisher": "P",
        "source_url": "https://example.org",
        "licence": "CC-BY-4.0",
        "attribution": "P",
        "table_sha256": sha256,
        "kind": "average",
        "scope": "direct",
        "basis": "production",
        "gas": "co2e",
        "gwp": "AR5",
        "losses_included": False,
        "redistributable": True,
        "allow_zero": False,
        "step_seconds": 3600,
        **changes,
    }


def _write(tree: Path, data: bytes = GOOD, *, rows_from: bytes = GOOD, **changes: Any) -> Path:
    rows = parse_rows(tree, rows_from, True, None)
    manifest = _manifest(data, rows, **changes)
    directory = tree / str(manifest["table_id"]) / str(manifest["version"])
    directory.mkdir(parents=True)
    (directory / "table.csv").write_bytes(data)
    (directory / "manifest.json").write_bytes(canonical(manifest))
    return directory


def _with(row: str) -> bytes:
    return f"{HEADER}\n{FIRST}\n{row}\n".encode()


def _second(**fields: str) -> bytes:
    values = dict(zip(COLUMNS, SECOND.split(","), strict=True)) | fields
    return _with(",".join(values.values()))


BAD_ROWS = {
    "naive time": (_second(start_utc="2023-01-01T01:00:00"), "3: start_utc: got '2023-01-01T01:00:00'"),
    "offset time": (_second(end_utc="2023-01-01T02:00:00+00:00"), "got '2023-01-01T02:00:00+00:00'"),
    "fraction of a second": (_second(start_utc="2023-01-01T01:00:00.5Z"), "whole seconds"),
    "no such day": (
        _second(end_utc="2023-02-29T00:00:00Z"),
        "table.csv:3: got instant '2023-02-29T00:00:00Z'",
    ),
    "date only": (_second(start_utc="2023-01-01"), "got '2023-01-01'"),
    "CRLF": (GOOD.replace(b"\n", b"\r\n"), "table.csv:1: got a carriage return"),
    "lone CR": (GOOD.replace(b"hourly,est", b"hourly\r,est"), "table.csv:3: got a carriage return"),
    "BOM": (b"\xef\xbb\xbf" + GOOD, "table.csv:1: got a byte order mark"),
    "not UTF-8": (GOOD.replace(b"x:A,2023-01-01T01", b"\xff:A,2023-01-01T01"), "table.csv:3: got bytes"),
    "quotes": (GOOD.replace(b"200", b'"200"'), "table.csv:3: got a quote"),
    "no final newline": (GOOD[:-1], "table.csv:3: got no final newline"),
    "empty": (b"", "no final newline"),
    "header alone": (f"{HEADER}\n".encode(), "got no rows"),
    "other header": (GOOD.replace(b"g_per_kwh", b"kg_per_kwh"), "table.csv:1: got header"),
    "empty line": (GOOD + b"\n", "table.csv:4: got 1 fields"),
    "too many fields": (_with(SECOND + ",x"), "got 7 fields"),
    "bare region": (_second(region_key="A"), "region_key: got 'A'"),
    "unsafe region": (_second(region_key="x:../A"), "region_key: got 'x:../A'"),
    "start after end": (_second(end_utc="2023-01-01T00:00:00Z"), "expected start before end"),
    "no length": (_second(end_utc="2023-01-01T01:00:00Z"), "expected start before end"),
    "off the step": (_second(end_utc="2023-01-01T02:00:01Z"), "expected multiples of step_seconds 3600"),
    "overlap": (
        f"{HEADER}\n{FIRST.replace('T01:00:00Z', 'T03:00:00Z')}\n{SECOND}\n".encode(),
        f"table.csv:3: got '{SECOND}', which overlaps an earlier hourly row of x:A",
    ),
    "duplicate": (_with(FIRST), "table.csv:3: got a duplicate of the one above"),
    "unsorted times": (f"{HEADER}\n{SECOND}\n{FIRST}\n".encode(), "table.csv:3: got a row that sorts before"),
    "unsorted regions": (_second(region_key="w:A"), "sorts before"),
    "unsorted tiers": (
        f"{HEADER}\n{FIRST.replace('hourly', 'daily')}\n{FIRST}\n".encode(),
        "sorts before",
    ),
    "NaN": (_second(g_per_kwh="NaN"), "g_per_kwh: got 'NaN'"),
    "infinity": (_second(g_per_kwh="inf"), "got 'inf'"),
    "negative": (_second(g_per_kwh="-1"), "got '-1'"),
    "exponent": (_second(g_per_kwh="1e2"), "got '1e2'"),
    "four decimals": (_second(g_per_kwh="200.0001"), "at most 3 places"),
    "no figure": (_second(g_per_kwh=""), "got ''"),
    "other digits": (_second(g_per_kwh="٢٠٠"), "g_per_kwh: got '٢٠٠'"),
    "over the range": (_second(g_per_kwh="2500.001"), "expected 0 to 2500"),
    "kg taken for g of a MWh": (_second(g_per_kwh="393600"), "got '393600'"),
    "zero": (_second(g_per_kwh="0.000"), "allow_zero"),
    "unknown tier": (_second(tier="weekly"), "tier: got 'weekly', expected one of hourly, daily"),
    "unknown quality": (_second(quality="good"), "quality: got 'good', expected one of measured"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_breaks_a_rule_is_refused_with_file_and_line(tmp_path: Path, name: str) -> None:
    """Every rule of table.csv is enforced, and the message quotes what stood there (D-14, D-18)."""
    data, words = BAD_ROWS[name]
    directory = _write(tmp_path, data)
    with pytest.raises(TableError) as caught:
        read_table(directory)
    assert words in str(caught.value)
    assert f"{directory / 'table.csv'}:" in str(caught.value)


BAD_MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "other id": ({"version": "1"}, "version: got '1'"),
    "no title": ({"title": " "}, "title: got ' '"),
    "no licence": ({"licence": None}, "licence: got None"),
    "other kind": ({"kind": "market"}, "kind: got 'market', expected one of average, marginal, nonbaseload"),
    "no scope": ({"scope": None}, "scope: got None"),
    "other gas": ({"gas": "CO2e"}, "gas: got 'CO2e'"),
    "co2e without GWP": ({"gwp": None}, "gwp: got None"),
    "co2 with GWP": ({"gas": "co2"}, "gwp: got 'AR5'"),
    "no losses flag": ({"losses_included": "no"}, "losses_included: got 'no'"),
    "step of 0": ({"step_seconds": 0}, "step_seconds: got 0"),
    "other coverage": ({"coverage": {}}, "coverage: got {}"),
    "other counts": ({"counts": {"tier": {"hourly": 3}}}, "counts: got"),
    "other holes": ({"holes": [{}]}, "holes: got"),
    "other worst case": ({"worst_case": None}, "worst_case: got None"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    """The manifest is checked field by field, and against the rows."""
    changes, words = BAD_MANIFESTS[name]
    directory = _write(tmp_path, **changes)
    with pytest.raises(TableError) as caught:
        read_table(directory)
    assert words in str(caught.value)
    assert "manifest.json" in str(caught.value)


def test_a_flipped_byte_is_refused_with_both_hashes(tmp_path: Path) -> None:
    """Bytes that are not those of the manifest are not read, whatever they say (S1-30)."""
    directory = _write(tmp_path)
    assert read_table(directory).regions["x:A"][0].mg_per_kwh == 100_500
    flipped = GOOD.replace(b"100.5", b"100.4")
    (directory / "table.csv").write_bytes(flipped)
    with pytest.raises(TableError) as caught:
        read_table(directory)
    assert sha256_hex(GOOD) in str(caught.value)
    assert sha256_hex(flipped) in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data + b"\n", "not in RFC 8785 form"),
        (lambda data: data[:-1], "expected JSON"),
        (lambda _: b"[]", "got list"),
        (lambda _: b'{"a":NaN}', "expected JSON"),
        (
            lambda data: data.replace(b'"allow_zero":false', b'"allow_zero":false,"allow_zero":false'),
            "RFC 8785",
        ),
        (lambda _: b"[" * 100_000, "expected JSON"),
    ],
)
def test_a_manifest_that_is_not_canonical_json_is_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    """Manifests are hashed too, so only their canonical bytes are read."""
    path = _write(tmp_path) / "manifest.json"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(TableError, match=words):
        read_table(path.parent)


def test_a_table_in_another_directory_is_refused(tmp_path: Path) -> None:
    """Id and version are those of the directory."""
    directory = _write(tmp_path)
    moved = directory.rename(directory.parent / "2+00000000")
    with pytest.raises(TableError, match=r"expected those of its directory, 't' and '2\+00000000'"):
        read_table(moved)


def test_a_zero_needs_leave(tmp_path: Path) -> None:
    """0 g/kWh is read where the manifest allows it (D-16)."""
    data = _second(g_per_kwh="0")
    directory = _write(tmp_path, data, rows_from=data, allow_zero=True)
    assert read_table(directory).regions["x:A"][1].mg_per_kwh == 0


def test_tables_are_found_by_id_and_version_alone(tmp_path: Path) -> None:
    """A missing table lists those there are; several versions must be told apart (D-15)."""
    version = _write(tmp_path).name
    assert load_table("t", extra_dirs=[tmp_path]).ref.name == f"t@{version}"
    assert load_table("t", version, [tmp_path]).ref.version == version
    with pytest.raises(TableError, match=r"got table 'nope', expected one of ember-annual@.*epa-egrid-ba@.*t@1"):
        load_table("nope", extra_dirs=[tmp_path])
    with pytest.raises(TableError, match=r"got table 't@9\+00000000', expected one of"):
        load_table("t", "9+00000000", [tmp_path])
    with pytest.raises(TableError, match="expected one of"):
        load_table("../t", extra_dirs=[tmp_path])
    other = _second(g_per_kwh="201")
    _write(tmp_path, other, rows_from=other)
    with pytest.raises(TableError, match="without a version, expected one of its versions: 1"):
        load_table("t", extra_dirs=[tmp_path])
    with pytest.raises(TableError, match="expected a directory that exists"):
        load_table("t", extra_dirs=[tmp_path / "none"])


def test_a_table_without_its_csv_says_so(tmp_path: Path) -> None:
    """A file that cannot be read is named."""
    directory = _write(tmp_path)
    (directory / "table.csv").unlink()
    with pytest.raises(TableError, match=r"table\.csv: cannot be read"):
        read_table(directory)


def test_holes_are_listed() -> None:
    """A gap in a region's coverage stands in the manifest, between regions there is none."""
    late = SECOND.replace("T02", "T06").replace("T01", "T05")
    data = f"{HEADER}\n{FIRST}\n{late}\nx:B{SECOND[3:]}\n".encode()
    holes = summarise(parse_rows(Path("t"), data, False, 3600))["holes"]
    assert holes == [{"region_key": "x:A", "start_utc": "2023-01-01T01:00:00Z", "end_utc": "2023-01-01T05:00:00Z"}]


def test_shipped_tables_are_the_four() -> None:
    """What the package ships, each verified on load."""
    ids = [table_id for table_id, _ in shipped_tables()]
    assert ids == ["ember-annual", "epa-egrid-ba", "epa-egrid-subregion", "epa-egrid-subregion-co2"]


@given(st.integers(1, 2_500_000))
def test_milligrams_and_text_round_trip(mg: int) -> None:
    """The canonical decimal of a figure reads back as the same integer."""
    line = f"x:A,2023-01-01T00:00:00Z,2024-01-01T00:00:00Z,{g_text(mg)},annual,measured"
    rows = parse_rows(Path("t"), f"{HEADER}\n{line}\n".encode(), False, None)
    assert rows[0].mg_per_kwh == mg
