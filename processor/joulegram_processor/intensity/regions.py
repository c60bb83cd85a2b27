"""From the region a user names to the one key and table it means; nothing is guessed, nothing falls back.

A region is a key ``scheme:code``, matched exactly, or a bare name of the alias file. No world average stands
in for a better one and nothing is looked up by address: what is unknown or ambiguous is an error at start.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import RegionError
from joulegram_processor.intensity.aliases import shipped_aliases
from joulegram_processor.intensity.recipes import canonical_key
from joulegram_processor.intensity.table import load_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from joulegram_processor.intensity.table import IntensityTable

DEFAULT_TABLES = {
    "egrid": "epa-egrid-subregion",
    "ba": "epa-egrid-ba",
    "iso3": "ember-annual",
    "ember": "ember-annual",
}
"""The shipped table a scheme is looked up in unless another is named."""

BARE_TABLE = DEFAULT_TABLES["egrid"]
"""The table a bare name is looked up in unless another is named."""


@dataclass(frozen=True, slots=True)
class ResolvedRegion:
    """A region pinned to a table.

    Args:
        key: canonical region key, ``egrid:SPNO``.
        table_id: the table that has it.
        path: how it was reached, for the record: ``SPP_KS → egrid:SPNO (aliases <version>, sha256 <hash>)``.
    """

    key: str
    table_id: str
    path: str


def resolve(region: str, table_id: str | None = None, extra_dirs: Sequence[Path] = ()) -> ResolvedRegion:
    """Pin a region.

    Args:
        region: a key ``scheme:code`` or a bare alias.
        table_id: the table to look in; by default that of the scheme, and for a bare name eGRID's subregions.
        extra_dirs: the user's own table trees.

    Raises:
        RegionError: it is unknown or ambiguous; it is quoted, with the choices or near matches.
        TableError: the table is missing or damaged.
    """
    scheme, colon, _ = region.partition(":")
    chosen = table_id or (DEFAULT_TABLES.get(scheme) if colon else BARE_TABLE)
    if chosen is None:
        schemes = ", ".join(f"{name}:" for name in DEFAULT_TABLES)
        raise RegionError(f"got region {region!r} of scheme {scheme!r}, expected one of {schemes} or a table beside it")
    return resolve_in(region, load_table(chosen, extra_dirs=extra_dirs))


def resolve_in(region: str, table: IntensityTable) -> ResolvedRegion:
    """Pin a region in a table that is already loaded; raises RegionError as `resolve` does."""
    key = canonical_key(region) if ":" in region else _target(region, table)
    if key not in table.regions:
        raise RegionError(
            f"got region {region!r}{'' if key == region else f' ({key})'}, which table {table.ref.name} has "
            f"not; {_near(region, table)}"
        )
    path = region
    if key != region:
        path = f"{region} → {key}"
    if ":" not in region:
        aliases = shipped_aliases()
        path = f"{path} (aliases {aliases.version}, sha256 {aliases.sha256})"
    return ResolvedRegion(key, table.ref.id, path)


def _target(name: str, table: IntensityTable) -> str:
    entry = shipped_aliases().entries.get(name)
    if entry is None:
        raise RegionError(f"got region {name!r}, expected scheme:code as egrid:SPNO, or an alias; {_near(name, table)}")
    meant = [alias for scheme, alias in entry.items() if scheme in table.schemes]
    if len(meant) == 1 and meant[0].target is not None:
        return meant[0].target
    choices = [choice for alias in meant for choice in ((alias.target,) if alias.target else alias.choices)]
    if choices:
        problem = f"which is ambiguous in table {table.ref.name}, expected one of {', '.join(choices)}"
    else:
        problem = f"an alias without a target in table {table.ref.name}"
    raise RegionError(f"got region {name!r}, {problem}{_elsewhere(name, table)}")


def _elsewhere(name: str, table: IntensityTable) -> str:
    found = []
    for scheme, alias in shipped_aliases().entries[name].items():
        if scheme in table.schemes or alias.target is None or scheme not in DEFAULT_TABLES:
            continue
        other = load_table(DEFAULT_TABLES[scheme])
        if alias.target in other.regions:
            found.append(f"; {alias.target} exists in table {other.ref.id} (gas {other.gas})")
    return "".join(found)


def _near(region: str, table: IntensityTable) -> str:
    """What may have been meant: the same letters in another case first, then a code without its scheme."""
    known = [*table.regions, *shipped_aliases().entries]
    if ":" not in region:
        for table_id in dict.fromkeys(DEFAULT_TABLES.values()):
            known += load_table(table_id).regions
    known = [name for name in known if name != region]
    folded = region.casefold()
    near = [name for name in known if folded in (name.casefold(), name.rpartition(":")[2].casefold())]
    near = near or difflib.get_close_matches(region, known, n=3, cutoff=0.6)
    return f"did you mean {_either(near)}?" if near else f"{table.ref.id} has {_some(table.regions)}"


def _either(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in dict.fromkeys(names))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    return f"{', '.join(listed[:12])}{more}"
