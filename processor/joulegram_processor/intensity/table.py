"""A grid-intensity table: strict loading of ``table.csv`` and ``manifest.json`` (docs/tables.md).

Invariants:
    * a table is the bytes its manifest names: the sha256 of ``table.csv`` is checked before a row is read;
    * one table is one combination of kind, scope, basis, gas and GWP set;
    * coverage, holes, counts and worst case in the manifest are those of the rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.canonical import canonical, sha256_hex
from joulegram_pipeline.errors import DocumentError, TableError
from joulegram_pipeline.records import TableRef
from joulegram_processor.intensity.rows import parse_rows, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from joulegram_processor.intensity.rows import Row

TABLES_DIR = Path(__file__).resolve().parent.parent / "tables"
_TEXT_FIELDS = (
    "table_id",
    "version",
    "title",
    "publisher",
    "source_url",
    "licence",
    "attribution",
    "table_sha256",
)
_CHOICES = {
    "kind": ("average", "marginal", "nonbaseload"),
    "scope": ("direct", "lifecycle"),
    "basis": ("production", "consumption"),
    "gas": ("co2", "co2e"),
}


@dataclass(frozen=True, slots=True, eq=False)
class IntensityTable:
    """A verified table.

    Args:
        ref: identity, as records name it.
        manifest: the manifest as it stands in the file.
        regions: rows by region key, sorted by start and tier.
    """

    ref: TableRef
    manifest: Mapping[str, Any]
    regions: Mapping[str, tuple[Row, ...]]

    @property
    def gas(self) -> str:
        """``co2`` or ``co2e``, what the figures count (C-02)."""
        return str(self.manifest["gas"])

    @property
    def schemes(self) -> frozenset[str]:
        """The schemes of the table's region keys: ``egrid``, ``ba``, ``iso3``."""
        return frozenset(key.partition(":")[0] for key in self.regions)


def shipped_tables() -> tuple[tuple[str, str], ...]:
    """Id and version of every table in the package, sorted."""
    return tuple(sorted(_scan(TABLES_DIR)))


def load_table(table_id: str, version: str | None = None, extra_dirs: Sequence[Path] = ()) -> IntensityTable:
    """Load and verify a table.

    Args:
        table_id: as ``epa-egrid-subregion``.
        version: may be left out where one version exists; with several it must be said, so that an added
            table never changes a result silently.
        extra_dirs: the user's own table trees, ``<dir>/<id>/<version>/``.

    Raises:
        TableError: there is no such table, several versions, or one that is not what its manifest says.
    """
    found: dict[tuple[str, str], Path] = {}
    for directory in (TABLES_DIR, *extra_dirs):
        for name, path in _scan(directory).items():
            found.setdefault(name, path)
    wanted = table_id if version is None else f"{table_id}@{version}"
    names = sorted(name for name in found if name[0] == table_id and version in (None, name[1]))
    if not names:
        listed = ", ".join(f"{name}@{label}" for name, label in sorted(found))
        raise TableError(f"got table {wanted!r}, expected one of {listed}")
    if len(names) > 1:
        listed = ", ".join(label for _, label in names)
        raise TableError(f"got table {wanted!r} without a version, expected one of its versions: {listed}")
    return read_table(found[names[0]])


def _scan(directory: Path) -> dict[tuple[str, str], Path]:
    if not directory.is_dir():
        raise TableError(f"got table directory {str(directory)!r}, expected a directory that exists")
    return {(path.parent.parent.name, path.parent.name): path.parent for path in directory.glob("*/*/table.csv")}


def read_table(directory: Path) -> IntensityTable:
    """Read and verify ``<directory>/table.csv`` against ``<directory>/manifest.json``.

    Raises:
        TableError: a file is missing or breaks a rule of docs/tables.md; it names the file and line.
    """
    manifest = _read_manifest(directory)
    path = directory / "table.csv"
    data = read_bytes(path)
    sha256 = sha256_hex(data)
    if sha256 != manifest["table_sha256"]:
        raise TableError(
            f"{path}: got bytes of sha256 {sha256}, expected {manifest['table_sha256']} as its manifest says"
        )
    rows = parse_rows(path, data, manifest["allow_zero"], manifest.get("step_seconds"))
    for name, value in summarise(rows).items():
        if manifest.get(name) != value:
            raise TableError(
                f"{directory / 'manifest.json'}: {name}: got {str(manifest.get(name))[:200]}, expected what "
                f"table.csv holds: {str(value)[:200]}"
            )
    regions: dict[str, list[Row]] = {}
    for row in rows:
        regions.setdefault(row.region_key, []).append(row)
    ref = TableRef(
        id=manifest["table_id"],
        version=manifest["version"],
        sha256=sha256,
        title=manifest["title"],
        publisher=manifest["publisher"],
        source_url=manifest["source_url"],
        licence=manifest["licence"],
    )
    return IntensityTable(ref, manifest, {key: tuple(found) for key, found in regions.items()})


def read_bytes(path: Path) -> bytes:
    """The bytes of a table file; TableError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / "manifest.json"
    data = read_bytes(path)
    try:
        manifest = json.loads(data)
        written = canonical(manifest)
    except (ValueError, RecursionError, DocumentError) as error:
        raise TableError(f"{path}: got {data[:80]!r}, expected JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise TableError(f"{path}: got {type(manifest).__name__}, expected a JSON object")
    if written != data:
        raise TableError(f"{path}: got JSON that is not in RFC 8785 form, expected canonical bytes")
    for name in _TEXT_FIELDS:
        if not isinstance(manifest.get(name), str) or not manifest[name].strip():
            raise TableError(f"{path}: {name}: got {manifest.get(name)!r}, expected text")
    for name, choices in _CHOICES.items():
        if manifest.get(name) not in choices:
            raise TableError(f"{path}: {name}: got {manifest.get(name)!r}, expected one of {', '.join(choices)}")
    for name in ("losses_included", "redistributable", "allow_zero"):
        if not isinstance(manifest.get(name), bool):
            raise TableError(f"{path}: {name}: got {manifest.get(name)!r}, expected true or false")
    gwp = manifest.get("gwp")
    if (manifest["gas"] == "co2e") != (isinstance(gwp, str) and bool(gwp)):
        raise TableError(f"{path}: gwp: got {gwp!r}, expected a GWP set for co2e and null for co2")
    step = manifest.get("step_seconds")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step <= 0):
        raise TableError(f"{path}: step_seconds: got {step!r}, expected a positive integer or null")
    place = (directory.parent.name, directory.name)
    if (manifest["table_id"], manifest["version"]) != place:
        raise TableError(
            f"{path}: got table {manifest['table_id']!r} version {manifest['version']!r}, expected those of "
            f"its directory, {place[0]!r} and {place[1]!r}"
        )
    tail = f"+{manifest['table_sha256'][:8]}"
    if not manifest["version"].endswith(tail):
        raise TableError(f"{path}: version: got {manifest['version']!r}, expected a label that ends in {tail!r}")
    return manifest
