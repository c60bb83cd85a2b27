"""The fallback chain: a region's rows and a declared order of tiers, compiled to segments.

Numbered procedure (design section 5, C-08):
    1. at an instant, the first tier of the declared order with a row there gives the intensity;
    2. ``latest`` is the newest annual row, carried to instants after the region's coverage; its resolution
       is ``static``, because nothing says it holds there, and it is no upper bound;
    3. ``worst_case`` is the highest row of the region in its own table, for what nothing else covers:
       ``static`` and an upper bound;
    4. a result names the resolution and the table, and the order itself is hashed.

Invariants:
    * segments are half-open and adjoin; cutting a span at them loses no nanosecond and counts none twice;
    * what is returned depends on the instants alone: the segment kept from the last call is only a short cut.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.canonical import canonical, sha256_hex
from joulegram_pipeline.errors import ConfigError, RegionError, TableError, WireError
from joulegram_processor.intensity.rows import Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from joulegram_pipeline.records import TableRef
    from joulegram_processor.intensity.rows import Row
    from joulegram_processor.intensity.table import IntensityTable

LATEST = "latest"
WORST_CASE = "worst_case"
DEFAULT_TIERS = (*(tier.value for tier in Tier), LATEST, WORST_CASE)
"""The seed's order (S1-27): hourly, daily, monthly, annual, static rows, latest, worst case."""

BEGINNING_NS = -(2**64)
END_NS = 2**64
"""Beyond every instant OTLP can write: its times are unsigned 64-bit nanoseconds."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One intensity over ``[start_ns, end_ns)``.

    Args:
        start_ns: wall clock, nanoseconds since 1970.
        end_ns: exclusive.
        mg_per_kwh: the intensity.
        resolution: ``hourly``, ``daily``, ``monthly``, ``annual`` or ``static``.
        upper_bound: it is the worst case, not an estimate.
    """

    start_ns: int
    end_ns: int
    mg_per_kwh: int
    resolution: str
    upper_bound: bool


class IntensityProvider(Protocol):
    """Where intensity comes from: a compiled chain, or one declared factor (C-06)."""

    ref: TableRef
    region: str | None
    gas: str
    source: str
    sha256: str

    def segment_at(self, start_ns: int, end_ns: int) -> Segment | None:
        """The one segment that covers ``[start_ns, end_ns)`` whole, None where a boundary cuts it."""

    def segments(self, start_ns: int, end_ns: int) -> list[Segment]:
        """The span cut at every boundary; one without length gives the segment at its start.

        Raises:
            TableError: a chain without ``worst_case`` does not cover all of it.
            WireError: it ends before it starts.
        """


class IntensityChain:
    """A region of a table under a declared order of tiers.

    Args:
        table: a loaded table.
        region_key: one of its regions.
        tiers: the order; of `DEFAULT_TIERS`, none twice.

    Raises:
        RegionError: the table has no such region.
        ConfigError: `tiers` is empty, repeats a tier or has an unknown one.
    """

    __slots__ = ("_last", "_segments", "_starts", "gas", "ref", "region", "sha256", "source", "tiers")

    def __init__(self, table: IntensityTable, region_key: str, tiers: Sequence[str] = DEFAULT_TIERS) -> None:
        if not tiers or len(set(tiers)) != len(tiers) or not set(tiers) <= set(DEFAULT_TIERS):
            raise ConfigError("intensity.tiers", list(tiers), f"some of {', '.join(DEFAULT_TIERS)}, each once")
        if region_key not in table.regions:
            raise RegionError(f"got region {region_key!r}, expected one of table {table.ref.name}")
        self.ref = table.ref
        self.region: str | None = region_key
        self.gas = table.gas
        self.tiers = tuple(tiers)
        self.source = f"{table.ref.title}, {region_key} ({table.ref.name})"
        self.sha256 = sha256_hex(
            canonical({"region": region_key, "table_sha256": table.ref.sha256, "tiers": list(tiers)})
        )
        self._segments = _compile(table.regions[region_key], self.tiers)
        self._starts = [segment.start_ns for segment in self._segments]
        self._last = self._segments[-1]

    def segment_at(self, start_ns: int, end_ns: int) -> Segment | None:
        """The one segment that covers ``[start_ns, end_ns)`` whole; None where a boundary cuts it."""
        last = self._last
        if last.start_ns <= start_ns < last.end_ns and end_ns <= last.end_ns:
            return last
        index = bisect_right(self._starts, start_ns) - 1
        if index < 0:
            return None
        found = self._segments[index]
        if start_ns >= found.end_ns or end_ns > found.end_ns:
            return None
        self._last = found
        return found

    def segments(self, start_ns: int, end_ns: int) -> list[Segment]:
        """The span cut at every boundary, in order; see `IntensityProvider`."""
        _check_order(start_ns, end_ns)
        pieces = []
        at = start_ns
        for index in range(max(bisect_right(self._starts, start_ns) - 1, 0), len(self._segments)):
            segment = self._segments[index]
            if not segment.start_ns <= at < segment.end_ns:
                break
            pieces.append(_cut(segment, at, min(end_ns, segment.end_ns)))
            at = segment.end_ns
            if at >= end_ns:
                return pieces
        raise TableError(
            f"got instant {at} of span {start_ns} to {end_ns}, expected one that {self.region} of "
            f"{self.ref.name} covers under {', '.join(self.tiers)}"
        )


def _check_order(start_ns: int, end_ns: int) -> None:
    if end_ns < start_ns:
        raise WireError(f"got a span from {start_ns} to {end_ns}, expected an end at or after its start")


def _cut(segment: Segment, start_ns: int, end_ns: int) -> Segment:
    return Segment(start_ns, end_ns, segment.mg_per_kwh, segment.resolution, segment.upper_bound)


def _compile(rows: Sequence[Row], tiers: Sequence[str]) -> list[Segment]:
    annual = [row for row in rows if row.tier is Tier.ANNUAL]
    newest = max(annual, key=lambda row: row.end_ns, default=None)
    declared = [row for row in rows if row.tier.value in tiers]
    covered_until = max((row.end_ns for row in (*declared, *annual)), default=END_NS)
    candidates: list[Segment] = []
    ranks: list[int] = []
    for rank, tier in enumerate(tiers):
        added = []
        if tier == WORST_CASE:
            worst = max(row.mg_per_kwh for row in rows)
            added = [Segment(BEGINNING_NS, END_NS, worst, Tier.STATIC.value, upper_bound=True)]
        elif tier == LATEST and newest is not None:
            added = [Segment(covered_until, END_NS, newest.mg_per_kwh, Tier.STATIC.value, upper_bound=False)]
        elif tier != LATEST:
            added = [
                Segment(row.start_ns, row.end_ns, row.mg_per_kwh, tier, upper_bound=False)
                for row in declared
                if row.tier == tier
            ]
        candidates += added
        ranks += [rank] * len(added)
    return _overlay(candidates, ranks)


def _overlay(candidates: Sequence[Segment], ranks: Sequence[int]) -> list[Segment]:
    """At each instant the candidate of lowest rank; candidates of one rank are sorted and do not overlap."""
    edges = sorted({edge for segment in candidates for edge in (segment.start_ns, segment.end_ns)})
    by_rank: dict[int, list[Segment]] = {}
    for segment, rank in zip(candidates, ranks, strict=True):
        by_rank.setdefault(rank, []).append(segment)
    queues = [iter(by_rank[rank]) for rank in sorted(by_rank)]
    heads = [next(queue, None) for queue in queues]
    out: list[Segment] = []
    winner: Segment | None = None
    for start_ns, end_ns in pairwise(edges):
        best = None
        for index, queue in enumerate(queues):
            head = heads[index]
            while head is not None and head.end_ns <= start_ns:
                head = heads[index] = next(queue, None)
            if best is None and head is not None and head.start_ns <= start_ns:
                best = head
        if best is not None and best is winner:
            out[-1] = _cut(best, out[-1].start_ns, end_ns)
        elif best is not None:
            out.append(_cut(best, start_ns, end_ns))
        winner = best
    return out
