"""The node's energy over time: rows of ticks, each split into pots, and who has a pot of their own.

Invariants:
    * rows never overlap and are kept in order of time; `watermark_ns` is the end of the last one;
    * a container, pod or board has a pot of its own from the moment a span names it, and for the lookback before, so
      that its first span, which comes before the tick that counted it, finds it; until then it lies in another's pot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from joulegram_processor.rows import ZERO, Row, Triple, cut, split_tick
from joulegram_processor.scopes import BY_HOST, BY_PROCESS, HOST, candidates, label_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_pipeline.energy import TickBatch
    from joulegram_pipeline.records import Json

__all__ = ["HOST", "ZERO", "EnergyStore", "Row", "Triple", "cut", "split_tick"]

MAX_KNOWN = 4_096
"""Containers, pods and boards with a pot of their own; beyond these what is named stays in the host's pot."""


BEFORE_FIRST = "before_first_tick"
TOO_OLD = "older_than_retention"

Given = Callable[[int, int, int], bool]
"""Whether any energy of a scope was given to spans between two instants."""


class EnergyStore:
    """Rows of ticks, and cumulative energy over them.

    Args:
        retention_ns: rows older than this before the watermark are forgotten.
        share_idle: policy ``share`` instead of ``bucket``.
        lookback_ns: for how long rows keep what nobody has named.
    """

    def __init__(self, *, retention_ns: int, share_idle: bool = False, lookback_ns: int = 120_000_000_000) -> None:
        self._retention_ns = retention_ns
        self._lookback_ns = lookback_ns
        self._share_idle = share_idle
        self.rows: list[Row] = []
        self._ends: list[int] = []
        self.named_from: dict[int, int] = {}
        self.last_reason: str | None = None
        self._scopes: dict[str, int] = {}
        self._labels: dict[int, int] = {}
        self._leaves: dict[str, tuple[str, ...]] = {}
        """The scopes that what rows keep by key may be counted in."""
        self._seen: dict[str, int] = {}
        """The last row that counted for each of those scopes, by its start."""
        self._kept: dict[int, set[int]] = {}
        """Rows, by their start, that were not parted for a scope because something of them had been given."""
        self._next_scope = -1
        self._folded_ns = 0

    @property
    def watermark_ns(self) -> int:
        """Energy before this instant is known, or known to be missing; 0 before the first tick."""
        return self._ends[-1] if self._ends else 0

    @property
    def horizon_ns(self) -> int:
        """Nothing is kept from before this instant."""
        return self.rows[0].start_ns if self.rows else 0

    def add(self, batch: TickBatch) -> list[Row]:
        """Take in ticks; of one that begins before the watermark only the part after it, energy in proportion.

        A tick that ends at or before the watermark is a repetition and is dropped.
        """
        domains = {domain.id: domain for domain in batch.domains}
        self.last_reason = batch.reason
        added = []
        for tick in batch.ticks:
            watermark = self.watermark_ns
            if tick.end_ns <= watermark:
                continue
            row = split_tick(tick, domains, batch.method, batch.reason, share_idle=self._share_idle)
            row = self._apart(row)
            if row.start_ns < watermark:
                row = row.after(watermark)
            for scope in row.processes:
                self.named_from.setdefault(scope, row.start_ns)
            self.rows.append(row)
            self._ends.append(row.end_ns)
            added.append(row)
        self._fold()
        self._forget()
        return added

    # -- scopes ----------------------------------------------------------------------------------------------

    def resolve(self, key: str, given: Given) -> int:
        """The scope a key is counted in; `HOST` where no tick knows it.

        Args:
            key: as a resource or a span names it.
            given: a row of which anything was given stays as it is, so that no microjoule is given twice.
        """
        for candidate in candidates(key):
            scope = self._scopes.get(candidate)
            if scope is not None:
                return scope
            if candidate in self._seen and len(self._scopes) < MAX_KNOWN:
                return self._know(candidate, given)
        return HOST

    def label(self, scope: int) -> int:
        """The number of a scope's label."""
        return BY_PROCESS if scope > HOST else self._labels.get(scope, BY_HOST)

    def _know(self, candidate: str, given: Given) -> int:
        """Give a scope a pot of its own in every row that still tells what was whose."""
        scope, self._next_scope = self._next_scope, self._next_scope - 1
        leaves = {leaf: scopes.index(candidate) for leaf, scopes in self._leaves.items() if candidate in scopes}
        since_ns = self.watermark_ns
        for at in range(len(self.rows) - 1, self.index(self._folded_ns) - 1, -1):
            row = self.rows[at]
            # What is nearer has taken its own out of the detail: the rest lies farther out than the candidate.
            mine = {leaf: self._owner(leaf, row.start_ns) for leaf in leaves.keys() & row.detail.keys()}
            if any(given(source, row.start_ns, row.end_ns) for source in set(mine.values())):
                self._kept.setdefault(scope, set()).add(row.start_ns)
                continue
            for leaf in sorted(mine):
                row = row.moved(leaf, mine[leaf], scope, final=leaves[leaf] == 0)
                since_ns = row.start_ns
            self.rows[at] = row
        self._register(candidate, scope, since_ns)
        return scope

    def _register(self, candidate: str, scope: int, since_ns: int) -> None:
        self._scopes[candidate] = scope
        self._labels[scope] = label_of(candidate)
        self.named_from[scope] = since_ns

    def _owner(self, leaf: str, at_ns: int) -> int:
        """The scope in whose pot a key's energy lies in the row that begins at an instant."""
        for candidate in self._leaves[leaf]:
            scope = self._scopes.get(candidate)
            if scope is not None and self.named_from[scope] <= at_ns and at_ns not in self._kept.get(scope, ()):
                return scope
        return HOST

    def _apart(self, row: Row) -> Row:
        """The row with the pots of all that were named."""
        for leaf in row.detail:
            scopes = self._leaves.get(leaf)
            if scopes is None:
                scopes = self._leaves[leaf] = candidates(leaf)
            for scope in scopes:
                self._seen[scope] = row.start_ns
            owner = self._owner(leaf, row.start_ns)
            if owner != HOST:
                row = row.moved(leaf, HOST, owner, final=owner == self._scopes.get(scopes[0]))
        return row

    def _fold(self) -> None:
        """Let rows older than the lookback forget what nobody named."""
        until_ns = self.watermark_ns - self._lookback_ns
        for at in range(self.index(self._folded_ns), self.index(until_ns)):
            if self.rows[at].detail:
                self.rows[at] = replace(self.rows[at], detail={})
        if until_ns <= self._folded_ns:
            return
        self._folded_ns = until_ns
        for scope in [scope for scope, start_ns in self._seen.items() if start_ns < until_ns]:
            del self._seen[scope]
        for leaf in [leaf for leaf, scopes in self._leaves.items() if self._seen.keys().isdisjoint(scopes)]:
            del self._leaves[leaf]

    def dump_scopes(self) -> Json:
        """The scopes that have a pot of their own, as JSON."""
        return {
            "next": self._next_scope,
            "known": [[key, scope, str(self.named_from[scope])] for key, scope in self._scopes.items()],
            "kept": {str(scope): [str(start_ns) for start_ns in sorted(rows)] for scope, rows in self._kept.items()},
        }

    def load_scopes(self, raw: Json) -> None:
        """What `dump_scopes` wrote, before the ticks up to then are added again."""
        self._next_scope = raw["next"]
        for key, scope, since_ns in raw["known"]:
            self._register(key, scope, int(since_ns))
        self._kept = {int(scope): set(map(int, rows)) for scope, rows in raw["kept"].items()}

    # -- energy ----------------------------------------------------------------------------------------------

    def index(self, at_ns: int) -> int:
        """Index of the first row that ends after `at_ns`."""
        return bisect_right(self._ends, at_ns)

    def overlapping(self, start_ns: int, end_ns: int) -> Iterator[Row]:
        """The rows that share time with a window, in order."""
        for at in range(self.index(start_ns), len(self.rows)):
            row = self.rows[at]
            if row.start_ns >= end_ns:
                return
            yield row

    def covered_ns(self, start_ns: int, end_ns: int) -> int:
        """How much of a window lies in rows that have energy."""
        return sum(
            min(end_ns, row.end_ns) - max(start_ns, row.start_ns)
            for row in self.overlapping(start_ns, end_ns)
            if row.has_energy
        )

    def energy(self, start_ns: int, end_ns: int, scope: int | None = None) -> Triple:
        """The energy of a window in one pot, or in all of them where `scope` is None."""
        totals = [0, 0, 0]
        for row in self.overlapping(start_ns, end_ns):
            pots = [row.pot(scope)] if scope is not None else [row.idle, row.host, *row.processes.values()]
            for pot in pots:
                for kind, uj in enumerate(cut(row, pot, start_ns, end_ns)):
                    totals[kind] += uj
        return totals[0], totals[1], totals[2]

    def measured(self, start_ns: int, end_ns: int) -> int:
        """What the node spent in a window, all pots and kinds, cut as one sum."""
        total = 0
        for row in self.overlapping(start_ns, end_ns):
            whole, width = sum(row.measured), row.end_ns - row.start_ns
            high, low = min(end_ns, row.end_ns) - row.start_ns, max(start_ns, row.start_ns) - row.start_ns
            total += whole * high // width - whole * low // width
        return total

    def idle(self, start_ns: int, end_ns: int) -> int:
        """The idle energy of a window, all kinds."""
        return sum(sum(cut(row, row.idle, start_ns, end_ns)) for row in self.overlapping(start_ns, end_ns))

    def scopes(self) -> list[int]:
        """The host and every process that was ever named in the rows kept."""
        return [HOST, *sorted(self.named_from)]

    def missing_reason(self, start_ns: int, end_ns: int) -> str:
        """Why a window, or part of it, has no energy."""
        if not self.rows:
            return self.last_reason or BEFORE_FIRST
        before = TOO_OLD if start_ns < self.watermark_ns - self._retention_ns else BEFORE_FIRST
        if end_ns <= self.horizon_ns:
            return before
        for row in self.overlapping(start_ns, end_ns):
            if row.reason is not None:
                return row.reason
        if end_ns > self.watermark_ns:
            return "after_last_tick"
        return before if start_ns < self.horizon_ns else "gap_between_ticks"

    def _forget(self) -> None:
        cut_ns = self.watermark_ns - self._retention_ns
        old = bisect_right(self._ends, cut_ns)
        if old > 64:  # in portions: deleting from the front of a list moves all of it
            del self.rows[:old]
            del self._ends[:old]
            alive = {scope for row in self.rows for scope in row.processes}
            begin_ns = self.rows[0].start_ns  # a scope that was loaded may have its rows still to come
            for scope in [at for at, since in self.named_from.items() if at not in alive and since < begin_ns]:
                del self.named_from[scope]
                self._labels.pop(scope, None)
                self._kept.pop(scope, None)
            for key in [key for key, scope in self._scopes.items() if scope not in self.named_from]:
                del self._scopes[key]
