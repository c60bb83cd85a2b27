"""The alias file: bare names such as ``SPP_KS``, with one target per region scheme, or choices and then none.

``aliases.csv`` has the columns alias, scheme, target, choices. `target` is empty exactly where the name is
ambiguous; `choices` then holds the region keys it may mean, separated by blanks. Its identity is its sha256.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from joulegram_pipeline.canonical import sha256_hex
from joulegram_pipeline.errors import TableError
from joulegram_processor.intensity.rows import REGION_KEY, text_lines
from joulegram_processor.intensity.table import TABLES_DIR, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from joulegram_processor.intensity.recipes import SourceRow

ALIASES_ID = "region-aliases"
COLUMNS = ("alias", "scheme", "target", "choices")

_SCHEMES = {"egrid": "egrid", "egrid-ba": "ba", "eia": "ba", "electricitymaps": "em"}
"""Families of the source whose targets are region keys, and their schemes; the others name services."""

_CODE = re.compile(r"\b[A-Z]{4}\b", re.ASCII)


@dataclass(frozen=True, slots=True)
class Alias:
    """What a bare name means in one scheme: a target, or None and the choices."""

    target: str | None
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AliasFile:
    """The verified alias file: entries by alias, then scheme."""

    version: str
    sha256: str
    entries: Mapping[str, Mapping[str, Alias]]


def alias_csv(source_rows: Iterable[SourceRow], subregions: set[str]) -> bytes:
    """The canonical bytes of ``aliases.csv``.

    Args:
        source_rows: of ``sources/region_aliases.csv``.
        subregions: keys of the eGRID subregions; an ambiguous eGRID alias names its choices among them.

    Raises:
        TableError: two rows give one alias two targets in a scheme, or an ambiguous one names no choice.
    """
    lines: dict[tuple[str, str], str] = {}
    for raw in source_rows:
        scheme = _SCHEMES.get(raw["scheme"])
        if scheme is None:
            continue
        alias, code = raw["alias"], raw["target"].rpartition(":")[2]
        choices = [f"{scheme}:{word}" for word in _CODE.findall(raw["why"])] if not code else []
        choices = sorted(set(choices) & subregions)
        if not code and not choices:
            raise TableError(f"got alias {alias} without a target or choices in scheme {scheme}")
        line = f"{alias},{scheme},{f'{scheme}:{code}' if code else ''},{' '.join(choices)}"
        if lines.setdefault((alias, scheme), line) != line:
            raise TableError(f"got alias {alias} twice in {scheme}: {lines[alias, scheme]!r} and {line!r}")
    return "".join(f"{line}\n" for line in (",".join(COLUMNS), *(lines[key] for key in sorted(lines)))).encode()


@cache
def shipped_aliases() -> AliasFile:
    """The alias file of the package.

    Raises:
        TableError: it is missing, there are several, or it is not what its manifest says.
    """
    found = sorted((TABLES_DIR / ALIASES_ID).glob("*/aliases.csv"))
    if len(found) != 1:
        raise TableError(f"{TABLES_DIR / ALIASES_ID}: got {len(found)} alias files, expected one")
    return read_aliases(found[0].parent)


def read_aliases(directory: Path) -> AliasFile:
    """Read and verify ``<directory>/aliases.csv`` against its manifest.

    Raises:
        TableError: naming the file and line that breaks a rule, or both hashes.
    """
    path = directory / "aliases.csv"
    data = read_bytes(path)
    try:
        manifest = json.loads(read_bytes(directory / "manifest.json"))
        version, expected = str(manifest["version"]), str(manifest["aliases_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{directory / 'manifest.json'}: got no alias manifest: {error!r}") from error
    sha256 = sha256_hex(data)
    if sha256 != expected:
        raise TableError(f"{path}: got bytes of sha256 {sha256}, expected {expected} as its manifest says")
    lines = text_lines(path, data)
    if lines[0] != ",".join(COLUMNS):
        raise TableError(f"{path}:1: got header {lines[0]!r}, expected {','.join(COLUMNS)!r}")
    entries: dict[str, dict[str, Alias]] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split(",")
        if len(fields) != len(COLUMNS):
            raise TableError(f"{path}:{number}: got {len(fields)} fields, expected {len(COLUMNS)}")
        alias, scheme, target, listed = fields
        choices = tuple(listed.split())
        keys = (target, *choices) if target else choices
        if bool(target) == bool(choices) or not all(REGION_KEY.fullmatch(key) for key in keys):
            raise TableError(f"{path}:{number}: got {line!r}, expected one target, or choices, as region keys")
        if scheme in entries.setdefault(alias, {}):
            raise TableError(f"{path}:{number}: got {alias!r} in {scheme!r} again, expected it once")
        entries[alias][scheme] = Alias(target or None, choices)
    return AliasFile(version, sha256, entries)
