"""The rows of an intensity table: strict reading of ``table.csv``, and what follows from its rows.

Invariants:
    * intervals are UTC, half-open, sorted, and never overlap inside one tier of one region;
    * an intensity is an integer of mg/kWh; the decimal text of the file is never a float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from joulegram_pipeline.clock import parse_utc_ns, utc_iso
from joulegram_pipeline.errors import TableError, WireError
from joulegram_pipeline.units import MG_PER_G, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS = ("region_key", "start_utc", "end_utc", "g_per_kwh", "tier", "quality")
MAX_G_PER_KWH = 2500
"""No published grid comes near it (highest seen: 1306); above it the unit is wrong."""

WORST_CASE_RULE = "highest row of the region in this table"

REGION_KEY = re.compile(r"[a-z0-9-]+:[A-Za-z0-9_.-]+", re.ASCII)
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)
_DECIMAL = re.compile(r"(0|[1-9]\d{0,3})(?:\.(\d{1,3}))?", re.ASCII)


class Tier(StrEnum):
    """How finely a row is resolved, finest first."""

    HOURLY = "hourly"
    DAILY = "daily"
    MONTHLY = "monthly"
    ANNUAL = "annual"
    STATIC = "static"


class Quality(StrEnum):
    """How the publisher came to a figure."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    IMPUTED = "imputed"
    FORECAST = "forecast"


_TIER_RANK = {tier: rank for rank, tier in enumerate(Tier)}


@dataclass(frozen=True, slots=True)
class Row:
    """One interval of one region: ``[start_ns, end_ns)`` in nanoseconds since 1970, intensity in mg/kWh."""

    region_key: str
    start_ns: int
    end_ns: int
    mg_per_kwh: int
    tier: Tier
    quality: Quality

    @property
    def order(self) -> tuple[str, int, int]:
        """The sort key of ``table.csv``."""
        return (self.region_key, self.start_ns, _TIER_RANK[self.tier])


def g_text(mg_per_kwh: int) -> str:
    """mg/kWh as the canonical decimal of ``table.csv``: g/kWh with three places."""
    return f"{mg_per_kwh // MG_PER_G}.{mg_per_kwh % MG_PER_G:03d}"


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The manifest fields that follow from the rows: coverage, holes, counts and worst case.

    Args:
        rows: in the order of ``table.csv``.
    """
    coverage: dict[str, list[int]] = {}
    worst: dict[str, int] = {}
    tiers: dict[str, int] = {}
    qualities: dict[str, int] = {}
    holes: list[dict[str, str]] = []
    for row in rows:
        span = coverage.setdefault(row.region_key, [row.start_ns, row.end_ns])
        if row.start_ns > span[1]:
            holes.append(
                {
                    "region_key": row.region_key,
                    "start_utc": utc_iso(span[1]),
                    "end_utc": utc_iso(row.start_ns),
                }
            )
        span[1] = max(span[1], row.end_ns)
        worst[row.region_key] = max(worst.get(row.region_key, 0), row.mg_per_kwh)
        tiers[row.tier.value] = tiers.get(row.tier.value, 0) + 1
        qualities[row.quality.value] = qualities.get(row.quality.value, 0) + 1
    return {
        "coverage": {key: [utc_iso(start), utc_iso(end)] for key, (start, end) in coverage.items()},
        "holes": holes,
        "counts": {"tier": tiers, "quality": qualities},
        "worst_case": {"rule": WORST_CASE_RULE, "g_per_kwh": {key: g_text(mg) for key, mg in worst.items()}},
    }


def text_lines(path: Path, data: bytes) -> list[str]:
    """The lines of a canonical CSV: UTF-8, LF, no BOM, no quotes, a final newline.

    Raises:
        TableError: naming the file and line that is not so.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise TableError(f"{path}:1: got a byte order mark, expected UTF-8 without one")
    for byte, name in ((b"\r", "carriage return"), (b'"', "quote")):
        at = data.find(byte)
        if at >= 0:
            raise TableError(f"{path}:{_line_of(data, at)}: got a {name}, expected unquoted lines that end in LF")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TableError(f"{path}:{_line_of(data, error.start)}: got bytes that are not UTF-8") from error
    if not text.endswith("\n"):
        raise TableError(f"{path}:{_line_of(data, len(data))}: got no final newline, expected one")
    return text[:-1].split("\n")


def _line_of(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


def parse_rows(path: Path, data: bytes, allow_zero: bool, step_seconds: int | None) -> list[Row]:
    """Read the bytes of a ``table.csv``.

    Raises:
        TableError: naming the file, the line, what was got and what was expected.
    """
    lines = text_lines(path, data)
    if lines[0] != ",".join(COLUMNS):
        raise TableError(f"{path}:1: got header {lines[0]!r}, expected {','.join(COLUMNS)!r}")
    rows: list[Row] = []
    ends: dict[tuple[str, Tier], int] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = _parse_row(line, allow_zero, step_seconds)
            if rows and row.order <= rows[-1].order:
                problem = "a duplicate of" if row.order == rows[-1].order else "a row that sorts before"
                raise TableError(f"got {problem} the one above, expected rows sorted by region, start, tier")
            if row.start_ns < ends.get((row.region_key, row.tier), row.start_ns):
                raise TableError(f"got {line!r}, which overlaps an earlier {row.tier} row of {row.region_key}")
        except (TableError, WireError) as error:
            raise TableError(f"{path}:{number}: {error}") from error
        ends[row.region_key, row.tier] = row.end_ns
        rows.append(row)
    if not rows:
        raise TableError(f"{path}:2: got no rows, expected at least one")
    return rows


def _parse_row(line: str, allow_zero: bool, step_seconds: int | None) -> Row:
    fields = line.split(",")
    if len(fields) != len(COLUMNS):
        raise TableError(f"got {len(fields)} fields in {line!r}, expected {len(COLUMNS)}")
    key, start_text, end_text, g_per_kwh, tier, quality = fields
    if REGION_KEY.fullmatch(key) is None:
        raise TableError(f"region_key: got {key!r}, expected scheme:code, as egrid:SPNO")
    for name, text in (("start_utc", start_text), ("end_utc", end_text)):
        if _INSTANT.fullmatch(text) is None:
            raise TableError(f"{name}: got {text!r}, expected UTC in whole seconds with Z, as 2023-01-01T00:00:00Z")
    start_ns, end_ns = parse_utc_ns(start_text), parse_utc_ns(end_text)
    if start_ns >= end_ns:
        raise TableError(f"got start {start_text} and end {end_text}, expected start before end")
    if step_seconds is not None and (start_ns % (step_seconds * NS_PER_S) or end_ns % (step_seconds * NS_PER_S)):
        raise TableError(f"got {start_text} to {end_text}, expected multiples of step_seconds {step_seconds}")
    match = _DECIMAL.fullmatch(g_per_kwh)
    if match is None:
        raise TableError(f"g_per_kwh: got {g_per_kwh!r}, expected a plain decimal with at most 3 places")
    mg_per_kwh = int(match[1]) * MG_PER_G + int((match[2] or "").ljust(3, "0"))
    if mg_per_kwh > MAX_G_PER_KWH * MG_PER_G:
        raise TableError(f"g_per_kwh: got {g_per_kwh}, expected 0 to {MAX_G_PER_KWH}; is the unit g/kWh?")
    if mg_per_kwh == 0 and not allow_zero:
        raise TableError(f"g_per_kwh: got {g_per_kwh}, expected above 0, or allow_zero in the manifest")
    return Row(key, start_ns, end_ns, mg_per_kwh, _member(Tier, "tier", tier), _member(Quality, "quality", quality))


_Name = TypeVar("_Name", bound=StrEnum)


def _member(kind: type[_Name], name: str, text: str) -> _Name:
    try:
        return kind(text)
    except ValueError as error:
        raise TableError(f"{name}: got {text!r}, expected one of {', '.join(kind)}") from error
