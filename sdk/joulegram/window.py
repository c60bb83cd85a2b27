"""The energy of a window, from the ticks that touch it: the host's, or this process tree's part of it.

Numbered procedure:
    1. A tick's energy is the sum of its domains, each a whole number of microjoules; a domain that is a gap in a
       tick adds nothing there, and its reason is kept.
    2. For the scope `process`, the tick's energy is split as the sidecar splits it: what would have been spent idle
       (where the source knows it, else the part of the CPU time that nobody used) is taken off; the rest is given
       by CPU time, ours over all that ran. GPU energy has no CPU time to go by and stays the host's.
    3. Power is uniform inside a tick, so of a tick at an end of the window the part inside counts: energy x overlap
       / length, floored.
    4. Time of the window that no tick with energy covers is reported beside the sum. It is never filled in.

Invariants:
    * cutting a window in two never adds energy: the parts are at most the whole, and short of it by at most a
      microjoule a tick;
    * ticks of two epochs are not mixed into one count: each tick stands for itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import DomainKind, Method

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_pipeline.energy import Tick, TickBatch

NO_TICKS = "no_ticks_in_window"


@dataclass(frozen=True, slots=True)
class TickEnergy:
    """One tick, split.

    Args:
        start_ns: wall clock.
        end_ns: exclusive.
        host_uj: of all domains that were read; None where none was.
        process_uj: our part; None where the CPU time it would be split by is not known.
        gpu_uj: what of `host_uj` is of GPUs; None where there is none.
        process_cpu_ns: our CPU time in it; None where it is not known.
        method: how its energy came about.
        gaps: why something is missing.
    """

    start_ns: int
    end_ns: int
    host_uj: int | None
    process_uj: int | None
    gpu_uj: int | None
    process_cpu_ns: int | None
    method: Method
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WindowEnergy:
    """What is known of a window.

    Args:
        start_ns: as asked, wall clock.
        end_ns: as asked, exclusive.
        covered_ns: time in it of which energy is known.
        host_uj: of the covered time; None where nothing is covered.
        process_uj: our part of it, of the ticks in which our CPU time is known; None where it is known in none.
        split_uj: the host's energy in those ticks.
        gpu_uj: the GPUs' part of the host's energy; None where there is none.
        method: how it came about.
        reason: what is missing and why; None where nothing is.
    """

    start_ns: int
    end_ns: int
    covered_ns: int
    host_uj: int | None
    process_uj: int | None
    split_uj: int
    gpu_uj: int | None
    method: Method
    reason: str | None

    @property
    def allocation_ratio(self) -> float | None:
        """Our part of the host's energy (S3-09); None where either is not known."""
        if self.process_uj is None:
            return None
        return self.process_uj / self.split_uj if self.split_uj else 0.0


class TickLog:
    """The ticks that touch a window that is still open, taken from a source that keeps them for some minutes only.

    Args:
        pid: the process whose tree is named at the source.
        since_ns: ticks that end before are left out.
    """

    def __init__(self, pid: int, since_ns: int) -> None:
        self._pid = pid
        self._since_ns = since_ns
        self._epoch = ""
        self._seq = 0
        self._ticks: list[TickEnergy] = []
        self._unavailable: str | None = None

    @property
    def after(self) -> int:
        """What to ask the source for next."""
        return self._seq

    @property
    def end_ns(self) -> int:
        """The end of the last tick; 0 before the first."""
        return self._ticks[-1].end_ns if self._ticks else 0

    def add(self, batch: TickBatch) -> bool:
        """Take new ticks in; False if they are of another epoch than the last, so all of it must be asked for."""
        if batch.epoch != self._epoch:
            again = self._epoch != "" and self._seq != 0
            self._epoch, self._seq = batch.epoch, 0
            if again:
                return False
        kinds = {domain.id: domain.kind for domain in batch.domains}
        self._unavailable = batch.reason if batch.method is Method.UNAVAILABLE else None
        for tick in batch.ticks:
            self._seq = tick.seq
            if tick.end_ns > self._since_ns:
                self._ticks.append(_split(tick, kinds, batch.method, self._pid))
        return True

    def forget(self, before_ns: int) -> None:
        """Drop ticks that end before an instant; the last one stays, because it says how far the log goes."""
        self._since_ns = max(self._since_ns, before_ns)
        self._ticks = [tick for tick in self._ticks if tick.end_ns > before_ns] or self._ticks[-1:]

    def between(self, start_ns: int, end_ns: int) -> list[TickEnergy]:
        """The ticks that touch a window."""
        return [tick for tick in self._ticks if tick.start_ns < end_ns and tick.end_ns > start_ns]

    def energy(self, start_ns: int, end_ns: int, missing: str | None = None) -> WindowEnergy:
        """The energy of a window.

        Args:
            start_ns: wall clock.
            end_ns: exclusive.
            missing: why the source gave no more, where it did not.
        """
        host = process = split = gpu = covered_ns = 0
        knows_process, has_gpu = False, False
        methods: set[Method] = set()
        gaps: Counter[str] = Counter()
        last_ns = start_ns
        for tick in self.between(start_ns, end_ns):
            gaps.update(tick.gaps)
            # Where the wall clock fell back two epochs may overlap: no instant is counted twice.
            low, high = max(last_ns, tick.start_ns), min(end_ns, tick.end_ns)
            if tick.host_uj is None or high <= low:
                continue
            last_ns = high
            part_ns, length_ns = high - low, tick.end_ns - tick.start_ns
            covered_ns += part_ns
            host += tick.host_uj * part_ns // length_ns
            methods.add(tick.method)
            if tick.gpu_uj is not None:
                has_gpu, gpu = True, gpu + tick.gpu_uj * part_ns // length_ns
            if tick.process_uj is not None:
                knows_process, split = True, split + tick.host_uj * part_ns // length_ns
                process += tick.process_uj * part_ns // length_ns
        return WindowEnergy(
            start_ns=start_ns,
            end_ns=end_ns,
            covered_ns=covered_ns,
            host_uj=host if covered_ns else None,
            process_uj=process if knows_process else None,
            split_uj=split,
            gpu_uj=gpu if has_gpu else None,
            method=_method(methods),
            reason=self._reason(end_ns - start_ns, covered_ns, gaps, missing),
        )

    def _reason(self, window_ns: int, covered_ns: int, gaps: Counter[str], missing: str | None) -> str | None:
        parts = [f"{gap} in {count} ticks" if count > 1 else gap for gap, count in gaps.most_common(3)]
        if covered_ns < window_ns:
            if not parts:
                parts.append(missing or self._unavailable or NO_TICKS)
            parts.append(f"{(window_ns - covered_ns) / 1e9:.3g} s of {window_ns / 1e9:.3g} s not covered")
        return "; ".join(parts) or None


def _split(tick: Tick, kinds: dict[str, DomainKind], method: Method, pid: int) -> TickEnergy:
    known = [name for name in tick.energy_uj if name in kinds]
    gpu = [name for name in known if kinds[name] is DomainKind.GPU]
    cpu = [name for name in known if kinds[name] is not DomainKind.GPU]
    cpu_uj, gpu_uj = (sum(tick.energy_uj[name] for name in names) for names in (cpu, gpu))
    process_uj: int | None = None
    ours_ns = tick.process_cpu_ns.get(pid)
    if cpu and ours_ns is not None and tick.cpu_busy_ns is not None and tick.cpu_total_ns:
        busy_ns = max(tick.cpu_busy_ns, sum(tick.process_cpu_ns.values()))
        if all(name in tick.static_uj for name in cpu):
            idle_uj = min(cpu_uj, sum(tick.static_uj[name] for name in cpu))
        else:
            idle_uj = cpu_uj * max(0, tick.cpu_total_ns - busy_ns) // max(tick.cpu_total_ns, busy_ns)
        process_uj = (cpu_uj - idle_uj) * ours_ns // busy_ns if busy_ns else 0
    return TickEnergy(
        start_ns=tick.start_ns,
        end_ns=tick.end_ns,
        host_uj=cpu_uj + gpu_uj if known else None,
        process_uj=process_uj,
        gpu_uj=gpu_uj if gpu else None,
        process_cpu_ns=ours_ns,
        method=method if known else Method.UNAVAILABLE,
        gaps=tuple(f"{gap.domain}: {gap.reason}" for gap in tick.gaps),
    )


def _method(methods: Iterable[Method]) -> Method:
    found = set(methods)
    if len(found) > 1:
        return Method.MIXED
    return found.pop() if found else Method.UNAVAILABLE
