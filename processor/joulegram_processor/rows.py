"""One tick of the node's energy, split into pots: idle, named processes, containers and pods, and the host's rest.

Invariants:
    * per tick and kind: idle + Σ pots + the host's pot = measured, in whole microjoules;
    * inside a tick energy is uniform in time, cut by flooring a cumulative count, so that the energy of adjoining
      pieces adds up to the energy of the whole, to the microjoule.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import KINDS, OTHERS, DomainKind, Method
from joulegram_pipeline.exact import apportion
from joulegram_processor.scopes import HOST, board_key

if TYPE_CHECKING:
    from joulegram_pipeline.energy import Domain, Tick

Triple = tuple[int, int, int]
"""Microjoules by kind, in the order of `KINDS`: cpu, dram, gpu."""

ZERO: Triple = (0, 0, 0)

Pot = tuple[Triple, int]
"""Energy, and the CPU time in nanoseconds that it was given for."""

_GPU = KINDS.index(DomainKind.GPU)


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
        host: the pot of everything that no scope of its own spent.
        processes: the pot of each scope of its own: named processes, and containers, pods and boards that a span named.
        cpu_ns: CPU time by scope, the host's rest under `HOST`.
        detail: pots by key that lie in another's: what nobody has named yet, and containers of a pod that is named.
    """

    start_ns: int
    end_ns: int
    method: Method
    reason: str | None
    kinds: tuple[bool, bool, bool]
    idle: Triple
    host: Triple
    processes: dict[int, Triple] = field(default_factory=dict)
    cpu_ns: dict[int, int] = field(default_factory=dict)
    detail: dict[str, Pot] = field(default_factory=dict)

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

    def moved(self, key: str, source: int, target: int, *, final: bool) -> Row:
        """The row with what lies under a key moved from the pot it is in to one of its own.

        Args:
            key: in `detail`; the row itself where it is not.
            source: the scope in whose pot it lies.
            target: the scope it goes to.
            final: whether nothing can be taken out of it later.
        """
        part = self.detail.get(key)
        if part is None:
            return self
        energy, spent_ns = part
        detail = {name: pot for name, pot in self.detail.items() if name != key} if final else self.detail
        if energy == ZERO and not spent_ns:  # a pot is there where there is something in it, however it got there
            return replace(self, detail=detail)
        host, processes, cpu_ns = self.host, dict(self.processes), dict(self.cpu_ns)
        cpu_ns[source] -= spent_ns
        if source == HOST:
            host = _minus(host, energy)
        else:
            processes[source] = _minus(processes[source], energy)
            if processes[source] == ZERO and not cpu_ns[source]:
                del processes[source], cpu_ns[source]
        processes[target] = _plus(processes.get(target, ZERO), energy)
        cpu_ns[target] = cpu_ns.get(target, 0) + spent_ns
        return replace(self, host=host, processes=processes, cpu_ns=cpu_ns, detail=detail)

    def after(self, start_ns: int) -> Row:
        """The part of the row from an instant inside it; what nobody has named yet stays where it lies."""
        width, past = self.end_ns - self.start_ns, start_ns - self.start_ns
        return replace(
            self,
            start_ns=start_ns,
            idle=cut(self, self.idle, start_ns, self.end_ns),
            host=cut(self, self.host, start_ns, self.end_ns),
            processes={scope: cut(self, pot, start_ns, self.end_ns) for scope, pot in self.processes.items()},
            cpu_ns={scope: spent - spent * past // width for scope, spent in self.cpu_ns.items()},
            detail={},  # parts of a pot that are cut one by one may add up to more than the pot that is cut
        )


def split_tick(tick: Tick, domains: dict[str, Domain], method: Method, reason: str | None, *, share_idle: bool) -> Row:
    """Split one tick into its pots.

    1. Add the domains of a kind up.
    2. Idle: the static part where the source knows it; else the part of the CPU time that nobody used; else nothing.
       Policy ``share`` has no idle pot: what is left is split among those who ran.
    3. The rest by CPU time of the same tick: to each named process tree, to each container and pod, and what remains of
       the busy time to the host.
    4. GPU energy by board: by the time that named processes kept it busy, where the driver counts it; what is not a
       named process's is the board's.
    5. Containers, pods and boards lie in the host's pot until a span names them.
    """
    reasons = [f"{gap.domain}: {gap.reason}" for gap in tick.gaps]
    if reason is not None and not tick.energy_uj:
        reasons.insert(0, reason)
    named = sorted(tick.process_cpu_ns.keys() | _on_gpu(tick))
    leaves = sorted(tick.container_cpu_ns)
    shares = [tick.process_cpu_ns.get(pid, 0) for pid in named] + [tick.container_cpu_ns[key] for key in leaves]
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
        if kind is DomainKind.GPU:
            idle.append(0)
            continue
        if busy == 0:
            # Nothing ran, or no CPU time is known: all of it is idle where CPU time is known, else the host's.
            quiet = energy if tick.cpu_total_ns else 0
            idle.append(quiet)
            pots.append([*([0] * (len(shares) - 1)), energy - quiet])
            continue
        if share_idle:
            still = 0
        elif ids and all(name in tick.static_uj for name in ids):
            still = min(energy, sum(tick.static_uj[name] for name in ids))
        else:
            still = apportion(energy, (unused, busy))[0]
        idle.append(still)
        pots.append(apportion(energy - still, shares))
    gpu, boards = _split_boards(tick, domains, named)
    processes = {pid: (pots[0][at], pots[1][at], gpu[pid]) for at, pid in enumerate(named)}
    detail = {
        key: ((pots[0][at], pots[1][at], 0), tick.container_cpu_ns[key]) for at, key in enumerate(leaves, len(named))
    }
    detail |= {key: ((0, 0, energy), 0) for key, energy in boards.items()}
    return Row(
        start_ns=tick.start_ns,
        end_ns=tick.end_ns,
        method=method if any(kinds) else Method.UNAVAILABLE,
        reason="; ".join(reasons) or (None if any(kinds) else reason or "no_energy_in_tick"),
        kinds=(kinds[0], kinds[1], kinds[2]),
        idle=(idle[0], idle[1], idle[_GPU]),
        host=(sum(pots[0][len(named) :]), sum(pots[1][len(named) :]), sum(boards.values())),
        processes=processes,
        cpu_ns={HOST: sum(shares[len(named) :]), **{pid: shares[at] for at, pid in enumerate(named)}},
        detail=detail,
    )


def _on_gpu(tick: Tick) -> set[int]:
    """The named processes that kept a board busy."""
    return {pid for times in tick.process_gpu_ns.values() for pid in times if pid != OTHERS}


def _split_boards(tick: Tick, domains: dict[str, Domain], named: list[int]) -> tuple[dict[int, int], dict[str, int]]:
    """GPU energy of each named process, and what is left on each board by its key."""
    gpu = dict.fromkeys(named, 0)
    boards: dict[str, int] = {}
    for name, energy in tick.energy_uj.items():
        if name not in domains or domains[name].kind is not DomainKind.GPU:
            continue
        times = tick.process_gpu_ns.get(name, {})
        pids = sorted(times.keys() - {OTHERS})
        parts = apportion(energy, [*(times[pid] for pid in pids), times.get(OTHERS, 0)]) if any(times.values()) else []
        for pid, part in zip(pids, parts, strict=False):  # the last part is that of the others
            gpu[pid] += part
        key = board_key(name)
        boards[key] = boards.get(key, 0) + (parts[-1] if parts else energy)
    return gpu, boards


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


def _plus(one: Triple, other: Triple) -> Triple:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _minus(one: Triple, other: Triple) -> Triple:
    return one[0] - other[0], one[1] - other[1], one[2] - other[2]
