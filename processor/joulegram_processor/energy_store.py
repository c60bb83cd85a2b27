"""The node's energy over time, split in each tick into pots: idle, one per named process tree, and the host's rest.

Invariants:
    * per tick and kind: idle + Σ process pots + host pot = measured, in whole microjoules;
    * inside a tick energy is uniform in time, cut by flooring a cumulative count, so that the energy of adjoining
      pieces adds up to the energy of the whole, to the microjoule;
    * rows never overlap and are kept in order of time; `watermark_ns` is the end of the last one.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import KINDS, Method
from joulegram_pipeline.exact import apportion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_pipeline.energy import Domain, Tick, TickBatch

Triple = tuple[int, int, int]
"""Microjoules by kind, in the order of `KINDS`: cpu, dram, gpu."""

ZERO: Triple = (0, 0, 0)

HOST = 0
"""The scope of spans that no named process speaks for; pid 0 is no process."""


@dataclass(frozen=True, slots=True)
class Row:
    """One tick, split.

    Args:
        start_ns: wall clock.
        end_ns: exclusive.
        method: of its energy; UNAVAILABLE where it has none.
        reason: why energy is missing, wholly or in part.
        kinds: which of `KINDS` it has energy of.
        idle: the idle pot.
        host: the pot of everything no named process spent.
        processes: the pot of each named process tree.
    """

    start_ns: int
    end_ns: int
    method: Method
    reason: str | None
    kinds: tuple[bool, bool, bool]
    idle: Triple
    host: Triple
    processes: dict[int, Triple] = field(default_factory=dict)

    def pot(self, scope: int) -> Triple:
        """What the spans of a scope may share of this tick."""
        return self.host if scope == HOST else self.processes.get(scope, ZERO)

    @property
    def measured(self) -> Triple:
        cpu, dram, gpu = self.host
        for pot in (self.idle, *self.processes.values()):
            cpu, dram, gpu = cpu + pot[0], dram + pot[1], gpu + pot[2]
        return cpu, dram, gpu

    @property
    def has_energy(self) -> bool:
        return True in self.kinds


def split_tick(tick: Tick, domains: dict[str, Domain], method: Method, reason: str | None, *, share_idle: bool) -> Row:
    """Split one tick into its pots.

    1. Add the domains of a kind up.
    2. Idle: the static part where the source knows it; else the part of the CPU time that nobody used; else nothing.
       Policy ``share`` has no idle pot: what is left is split among those who ran.
    3. The rest by CPU time of the same tick: to each named process tree, and what remains of the busy time to the host.
    4. GPU energy has no CPU key: it stays in the host's pot.
    """
    reasons = [f"{gap.domain}: {gap.reason}" for gap in tick.gaps]
    if reason is not None and not tick.energy_uj:
        reasons.insert(0, reason)
    named = sorted(tick.process_cpu_ns)
    shares = [tick.process_cpu_ns[pid] for pid in named]
    busy = max(tick.cpu_busy_ns or 0, sum(shares))
    unused = max(0, (tick.cpu_total_ns or 0) - busy)
    shares.append(busy - sum(shares))

    idle: list[int] = []
    pots: list[list[int]] = []
    kinds: list[bool] = []
    for kind in KINDS:
        ids = [name for name in tick.energy_uj if name in domains and domains[name].kind is kind]
        energy = sum(tick.energy_uj[name] for name in ids)
        kinds.append(bool(ids))
        if kind is KINDS[2] or busy == 0:
            # Nothing ran, or no CPU time is known: all of it is idle where CPU time is known, else the host's.
            quiet = energy if kind is not KINDS[2] and tick.cpu_total_ns else 0
            idle.append(quiet)
            pots.append([*([0] * len(named)), energy - quiet])
            continue
        if share_idle:
            still = 0
        elif ids and all(name in tick.static_uj for name in ids):
            still = min(energy, sum(tick.static_uj[name] for name in ids))
        else:
            still = apportion(energy, (unused, busy))[0]
        idle.append(still)
        pots.append(apportion(energy - still, shares))
    return Row(
        start_ns=tick.start_ns,
        end_ns=tick.end_ns,
        method=method if any(kinds) else Method.UNAVAILABLE,
        reason="; ".join(reasons) or (None if any(kinds) else reason or "no_energy_in_tick"),
        kinds=(kinds[0], kinds[1], kinds[2]),
        idle=(idle[0], idle[1], idle[2]),
        host=(pots[0][-1], pots[1][-1], pots[2][-1]),
        processes={pid: (pots[0][i], pots[1][i], pots[2][i]) for i, pid in enumerate(named)},
    )


class EnergyStore:
    """Rows of ticks, and cumulative energy over them.

    Args:
        retention_ns: rows older than this before the watermark are forgotten.
        share_idle: policy ``share`` instead of ``bucket``.
    """

    def __init__(self, *, retention_ns: int, share_idle: bool = False) -> None:
        self._retention_ns = retention_ns
        self._share_idle = share_idle
        self.rows: list[Row] = []
        self._ends: list[int] = []
        self.named_from: dict[int, int] = {}
        self.last_reason: str | None = None

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
            if row.start_ns < watermark:
                row = _after(row, watermark)
            for pid in row.processes:
                self.named_from.setdefault(pid, row.start_ns)
            self.rows.append(row)
            self._ends.append(row.end_ns)
            added.append(row)
        self._forget()
        return added

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
        if not self.rows or end_ns <= self.horizon_ns:
            return "before_first_tick" if self.rows else self.last_reason or "before_first_tick"
        for row in self.overlapping(start_ns, end_ns):
            if row.reason is not None:
                return row.reason
        if end_ns > self.watermark_ns:
            return "after_last_tick"
        if start_ns < self.horizon_ns:
            return "before_first_tick"
        return "gap_between_ticks"

    def _forget(self) -> None:
        cut_ns = self.watermark_ns - self._retention_ns
        old = bisect_right(self._ends, cut_ns)
        if old > 64:  # in portions: deleting from the front of a list moves all of it
            del self.rows[:old]
            del self._ends[:old]
            alive = {pid for row in self.rows for pid in row.processes}
            for pid in [pid for pid in self.named_from if pid not in alive]:
                del self.named_from[pid]


def _after(row: Row, start_ns: int) -> Row:
    """The part of a row from an instant inside it."""
    return replace(
        row,
        start_ns=start_ns,
        idle=cut(row, row.idle, start_ns, row.end_ns),
        host=cut(row, row.host, start_ns, row.end_ns),
        processes={pid: cut(row, pot, start_ns, row.end_ns) for pid, pot in row.processes.items()},
    )


def cut(row: Row, pot: Triple, start_ns: int, end_ns: int) -> Triple:
    """The part of a row's pot that falls into a window: a difference of floored cumulative counts."""
    low = max(start_ns, row.start_ns) - row.start_ns
    high = min(end_ns, row.end_ns) - row.start_ns
    width = row.end_ns - row.start_ns
    if low <= 0 and high >= width:
        return pot
    cpu, dram, gpu = pot
    return (
        cpu * high // width - cpu * low // width,
        dram * high // width - dram * low // width,
        gpu * high // width - gpu * low // width,
    )
