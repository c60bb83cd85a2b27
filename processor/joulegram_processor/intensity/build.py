"""Builds the shipped tables and aliases: ``python -m joulegram_processor.intensity.build [--check]``.

Everything is a pure function of ``tables/sources`` and the recipes: no clock, no network, the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.canonical import canonical, sha256_hex
from joulegram_pipeline.clock import utc_iso
from joulegram_pipeline.files import replace_file, safe_mkdir
from joulegram_processor.intensity.aliases import ALIASES_ID, alias_csv
from joulegram_processor.intensity.recipes import RECIPES, Recipe, check_plausible, rows_of
from joulegram_processor.intensity.rows import COLUMNS, Row, g_text, summarise
from joulegram_processor.intensity.table import TABLES_DIR, read_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from joulegram_processor.intensity.recipes import SourceRow

ALIASES_LABEL = "2026.1"
ALIASES_SOURCE = "region_aliases.csv"
IMPORTER = {"name": "joulegram_processor.intensity.build", "version": "1"}


def render(sources: Path) -> dict[str, bytes]:
    """Every file of the shipped tree, by path below ``tables/``.

    Raises:
        TableError: a source is missing, contradicts itself, or holds what cannot be.
    """
    transcriptions = {recipe.source: _source(sources, recipe.source) for recipe in RECIPES}
    tables = {recipe.table_id: rows_of(recipe, transcriptions[recipe.source][0]) for recipe in RECIPES}
    check_plausible(tables)
    files: dict[str, bytes] = {}
    for recipe in RECIPES:
        files |= _table_files(recipe, tables[recipe.table_id], transcriptions[recipe.source][1])
    subregions = {row.region_key for row in tables["epa-egrid-subregion"]}
    source_rows, source_sha256 = _source(sources, ALIASES_SOURCE)
    data = alias_csv(source_rows, subregions)
    version = f"{ALIASES_LABEL}+{sha256_hex(data)[:8]}"
    manifest = {
        "aliases_sha256": sha256_hex(data),
        "id": ALIASES_ID,
        "importer": IMPORTER,
        "transcription": {"file": ALIASES_SOURCE, "sha256": source_sha256},
        "version": version,
    }
    files[f"{ALIASES_ID}/{version}/aliases.csv"] = data
    files[f"{ALIASES_ID}/{version}/manifest.json"] = canonical(manifest)
    return files


def differences(tables: Path) -> list[str]:
    """What of the committed tree is not what its sources give; empty when it is.

    Raises:
        TableError: the sources cannot be built from.
    """
    wanted = render(tables / "sources")
    ids = {name.partition("/")[0] for name in wanted}
    there = {
        path.relative_to(tables).as_posix()
        for table_id in ids
        for path in (tables / table_id).rglob("*")
        if path.is_file()
    }
    found = [f"missing: {name}" for name in sorted(wanted.keys() - there)]
    found += [f"not built from sources: {name}" for name in sorted(there - wanted.keys())]
    same = sorted(wanted.keys() & there)
    return found + [f"differs: {name}" for name in same if read_bytes(tables / name) != wanted[name]]


def write(tables: Path) -> None:
    """Replace the built tables below `tables` by what the sources give; other directories are left alone.

    Raises:
        TableError: the sources cannot be built from.
        StorageError: the disk refused.
    """
    files = render(tables / "sources")
    for table_id in {name.partition("/")[0] for name in files}:
        shutil.rmtree(tables / table_id, ignore_errors=True)
    for name, data in files.items():
        safe_mkdir((tables / name).parent)
        replace_file(tables / name, data)


def main(argv: Sequence[str] | None = None) -> int:
    """Build, or with ``--check`` compare; 1 if the committed tree is not what the sources give."""
    parser = argparse.ArgumentParser(prog="joulegram_processor.intensity.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the tree instead of writing it")
    parser.add_argument("--tables", type=Path, default=TABLES_DIR, help="the tree; its sources/ is read")
    options = parser.parse_args(argv)
    if not options.check:
        write(options.tables)
        return 0
    found = differences(options.tables)
    for line in found:
        sys.stderr.write(f"{line}\n")
    return 1 if found else 0


def _source(sources: Path, name: str) -> tuple[list[SourceRow], str]:
    data = read_bytes(sources / name)
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))), sha256_hex(data)


def _table_files(recipe: Recipe, rows: Sequence[Row], source_sha256: str) -> dict[str, bytes]:
    lines = [",".join(COLUMNS)]
    for row in rows:
        start, end = utc_iso(row.start_ns), utc_iso(row.end_ns)
        lines.append(f"{row.region_key},{start},{end},{g_text(row.mg_per_kwh)},{row.tier},{row.quality}")
    table = "".join(f"{line}\n" for line in lines).encode("ascii")
    sha256 = sha256_hex(table)
    version = f"{recipe.label}+{sha256[:8]}"
    manifest: dict[str, Any] = {
        **recipe.facts,
        **summarise(rows),
        "allow_zero": False,
        "basis": "production",
        "excluded": [{"what": what, "why": why} for what, why in recipe.excluded],
        "gas": recipe.gas.lower(),
        "importer": IMPORTER,
        "kind": "average",
        "losses_included": False,
        "redistributable": True,
        "revision_of": None,
        "scope": recipe.scope,
        "source_sha256": None,
        "source_stamp": "calendar year, taken as UTC",
        "step_seconds": None,
        "table_id": recipe.table_id,
        "table_sha256": sha256,
        "transcription": {"file": recipe.source, "sha256": source_sha256},
        "version": version,
    }
    notice = (
        f"{manifest['attribution']}\n{manifest['source_url']}\nLicence: {manifest['licence']}\n"
        "Transcribed, converted to g/kWh and rounded to three decimals; no endorsement is implied.\n"
    )
    place = f"{recipe.table_id}/{version}"
    return {
        f"{place}/table.csv": table,
        f"{place}/manifest.json": canonical(manifest),
        f"{place}/NOTICE": notice.encode("ascii"),
    }


if __name__ == "__main__":
    sys.exit(main())
