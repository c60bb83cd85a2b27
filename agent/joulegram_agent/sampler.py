"""The 10 Hz loop: counters into accumulators, and once a second a published tick.

Invariants:
    * a published window is at least `PUBLISH_S` long on the monotonic clock; nothing finer leaves the agent;
    * ticks of one epoch are contiguous: each starts where the one before ended. Where the wall clock stepped
      against the monotonic one, the tick is a gap named ``clock_step`` and its energy counts as unplaced
      (D-29); where the machine was suspended meanwhile it is a gap named ``suspended``, and likewise;
    * if the wall clock fell back behind the last tick, no window can follow without overlap: a new epoch
      begins;
    * CPU time of the machine, of named processes and of cgroups is read when the energy of the window is, so that no
      share of it goes by what was spent in another. That of the machine and of named processes is read at each sample;
      one at which the machine's could not be read is bridged by the next, but at an edge of a window it is unknown;
    * what is read at a sample is held, and counted in its order when the window closes: between two ticks the counts
      are those of the last one;
    * deadlines are counted from the window's opening. Those that passed while a read was slow or the process
      did not run are skipped, not made up for: what was missed becomes one long tick.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.cgroups import Cgroups
from joulegram_agent.counters import MAX_POWER_W, Accumulator
from joulegram_agent.cpu import CpuCounter, CpuTimes, MachineCpu, cpu_reading
from joulegram_agent.every_process import EveryProcess
from joulegram_agent.pace import pace_of
from joulegram_agent.processes import ProcessTrees
from joulegram_agent.pulse import Pulse
from joulegram_agent.reader import Lasting, SharesBoards
from joulegram_agent.restart import AGENT_RESTART, Restart
from joulegram_agent.ring import TickRing
from joulegram_agent.state import AgentState, Instant
from joulegram_pipeline.clock import BootClock, SystemClock
from joulegram_pipeline.energy import PUBLISH_S, DomainKind, Gap, Tick, TickBatch
from joulegram_pipeline.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from joulegram_agent.reader import Reader, Reading

    Held = tuple[Instant, int, Reading, bytes]
    """A sample not counted yet: when, for how many ns it was read, and ``/proc/stat`` where the reading has no CPU."""

SAMPLE_S = 0.1
RING_S = 600
CLOCK_STEP = "clock_step"
SUSPENDED = "suspended"
CLOCK_STEP_NS = 50_000_000
"""Two clocks may drift this far apart in a window before it counts as a step, or as a suspend."""

_PUBLISH_NS = round(PUBLISH_S * NS_PER_S)


@dataclass(frozen=True, slots=True)
class _Edge:
    """The instant at which one window ends and the next begins."""

    at: Instant
    cpu: CpuTimes | None
    static_uj: Mapping[str, int]

    @property
    def wall_ns(self) -> int:
        return self.at.wall_ns

    @property
    def mono_ns(self) -> int:
        return self.at.mono_ns


@dataclass(frozen=True, slots=True)
class Totals:
    """What was counted by domain since the first agent of this boot started, as of the last published tick.

    Args:
        at_ns: end of that tick, wall clock; None before the first.
        energy_uj: sum of the published ticks.
        unplaced_uj: energy counted in windows that were gaps.
        gaps: windows that were gaps, by reason.
    """

    at_ns: int | None
    energy_uj: Mapping[str, int]
    unplaced_uj: Mapping[str, int]
    gaps: Mapping[str, Mapping[str, int]]

    @property
    def known_uj(self) -> dict[str, int]:
        """`energy_uj` without the domains that only ever had gaps: their 0 would be for want of a reading."""
        return {key: uj for key, uj in self.energy_uj.items() if uj or key not in self.gaps}


class Sampler:
    """Turns a reader into ticks. `sample` is one step and never sleeps; `run` takes the steps in real time.

    Args:
        reader: the source; the caller closes it.
        proc_root: ``/proc``, or where the host's is mounted.
        cgroup_root: ``/sys/fs/cgroup``, or where the host's is mounted; None reads no cgroups.
        every_process: every process that spent CPU time has a line in a tick, not only the named.
        clock: the clocks.
        sample_s: seconds between reads of the counters.
        ring_s: for how many seconds published ticks are kept.
        max_power_w: of one domain, see `Accumulator`.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        proc_root: Path = Path("/proc"),
        cgroup_root: Path | None = None,
        every_process: bool = False,
        clock: BootClock | None = None,
        sample_s: float = SAMPLE_S,
        ring_s: int = RING_S,
        max_power_w: int = MAX_POWER_W,
    ) -> None:
        self.cgroups = None if cgroup_root is None else Cgroups(cgroup_root)
        self.trees = ProcessTrees(proc_root, tells_containers=self.reads_containers)
        self.every_process = EveryProcess(proc_root, tells_containers=self.reads_containers) if every_process else None
        self.ring_s = ring_s
        self.pulse = Pulse()
        self._reader = reader
        self._clock = clock or SystemClock()
        self._sample_ns = round(sample_s * NS_PER_S)
        self._domains = reader.domains()
        self._accumulators = {domain.id: Accumulator(domain, max_power_w) for domain in self._domains}
        self._machine = MachineCpu(proc_root)
        self._cpu = CpuCounter()
        self._is_cpu_known = False
        self.ring = TickRing(max(1, round(ring_s / PUBLISH_S)))
        self._boot_id = _boot_id(proc_root)
        self.epoch = ""
        """Names the run of ticks that count from 1."""
        self._seq = 0
        self._edge: _Edge | None = None
        self._held: list[Held] = []
        self._is_counting = False
        self._sampled: Instant | None = None
        self._longest_ns = 0
        self._boards = reader if isinstance(reader, SharesBoards) else None
        self._restart = Restart(
            self._boot_id, self._accumulators, reader.lasting() if isinstance(reader, Lasting) else {}
        )
        self._left: AgentState | None = None
        self.counted_at: Instant | None = None
        """End of the last window that was counted, by this agent or the one before; None before the first."""
        self._state: AgentState | None = None

    @property
    def totals(self) -> Totals:
        """Counts as of the last published tick, so that asking often shows nothing finer than it."""
        state = self.state
        return Totals(None, {}, {}, {}) if state is None else _totals(state)

    @property
    def reads_containers(self) -> bool:
        """Whether there are cgroups to read, so that ticks may hold `container_cpu_ns`."""
        return self.cgroups is not None and self.cgroups.hierarchy is not None

    @property
    def holds(self) -> tuple[str, ...]:
        """What its ticks may hold beside energy, gaps and the machine's CPU time."""
        static = self._edge is not None and bool(self._edge.static_uj)
        gpus = self._boards is not None and any(domain.kind is DomainKind.GPU for domain in self._domains)
        held = {"static": static, "containers": self.reads_containers, "gpu_processes": gpus}
        return ("processes", *(name for name, is_held in held.items() if is_held))

    @property
    def state(self) -> AgentState | None:
        """What the next agent needs to go on from the last published tick; None before the first."""
        # Where counting failed half way nothing is known that belongs together: what was saved before stands.
        if self._state is None and self.counted_at is not None and not self._is_counting:
            self._state = self._restart.state(self.counted_at, self._longest_ns)
        return self._state

    def resume(self, left: AgentState) -> None:
        """Go on from what an agent before left; before the first sample."""
        self._left = left

    @property
    def published(self) -> tuple[Tick, ...]:
        """The ticks still kept, oldest first; all of one epoch."""
        return tuple(self.ring.above(0))

    @property
    def about(self) -> TickBatch:
        """What a batch says beside its ticks."""
        reader = self._reader
        return TickBatch(self.epoch, reader.source, reader.method, reader.reason, self._domains, ())

    def above(self, after: int) -> Iterator[Tick]:
        """The kept ticks above `after`; all if `after` lies beyond the last, being another epoch's."""
        return self.ring.above(after if after <= self._seq else 0)

    def batch(self, after: int) -> TickBatch:
        """As `above`, with what they are of."""
        return replace(self.about, ticks=tuple(self.above(after)))

    def sample(self) -> Tick | None:
        """Read every counter once; the tick if that closed a window. The first call opens the first one."""
        # Before the reading: a thread that has read may wait long for the interpreter before it can look at a clock.
        now = Instant.now(self._clock)
        reading = self._reader.read()
        took_ns = self._clock.mono_ns() - now.mono_ns
        self.pulse.sampled(took_ns)
        edge = self._edge
        closes = edge is not None and now.mono_ns - edge.mono_ns >= _PUBLISH_NS
        self.trees.read(look=closes)
        self._held.append((now, took_ns, reading, b"" if reading.cpu else self._machine.text()))
        if edge is not None and not closes:
            return None
        going_on = self._resume(now) if edge is None else frozenset()
        self._is_counting = True
        self._count()
        tick = None
        if edge is None:
            for key, accumulator in self._accumulators.items():
                if key in going_on:
                    accumulator.close(AGENT_RESTART)
                else:
                    accumulator.open()
            self._board_times()
            self._begin(self._make_edge(reading, now))
        else:
            tick = self._publish(edge, self._make_edge(reading, now))
        self._is_counting = False
        return tick

    async def run(self, on_tick: Callable[[Tick], None]) -> None:
        """Sample until cancelled, calling `on_tick` for each tick."""
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        pace = pace_of(loop)
        due_ns = self._next_due(self._clock.mono_ns())

        def step() -> bool:
            nonlocal due_ns
            tick = None
            try:
                now_ns = self._clock.mono_ns()
                if due_ns <= now_ns:
                    tick = self.sample()
                    now_ns = self._clock.mono_ns()
                    was_due_ns, due_ns = due_ns, self._next_due(now_ns)
                    self.pulse.missed(max(0, (due_ns - was_due_ns) // self._sample_ns - 1))
                    if tick is not None:
                        on_tick(tick)
                        now_ns = self._clock.mono_ns()
                pace.after(max(0, due_ns - now_ns), step)
            except Exception as error:  # noqa: BLE001 - raised where `run` is awaited
                failed.set_exception(error)
                return True
            return tick is not None

        step()
        try:
            await failed
        finally:
            pace.stop()

    def _next_due(self, now_ns: int) -> int:
        if self._edge is None:
            return now_ns
        passed = (now_ns - self._edge.mono_ns) // self._sample_ns
        return self._edge.mono_ns + (passed + 1) * self._sample_ns

    def _resume(self, now: Instant) -> frozenset[str]:
        """Take up what the agent before left, if it is of this boot; the domains that go on."""
        left, self._left = self._left, None
        going_on = self._restart.resume(left, now, self._longest_ns) if left is not None else frozenset()
        if left is not None and left.boot_id == self._boot_id:
            self._state, self.counted_at = left, left.at
        return going_on

    def _board_times(self) -> Mapping[str, Mapping[int, int]]:
        return {} if self._boards is None else self._boards.process_gpu_ns(self.trees.root_of)

    def _count(self) -> None:
        """Count what was sampled, in its order."""
        held, self._held = self._held, []
        accumulators = self._accumulators
        for sampled, took_ns, reading, cpu_text in held:
            if self._sampled is not None:
                self._longest_ns += sampled.since(self._sampled)
            self._sampled = sampled
            at_ns, mono_ns = self._longest_ns, sampled.mono_ns
            for domain, raw_uj in reading.counters_uj.items():
                accumulators[domain].offer(raw_uj, at_ns, mono_ns, took_ns)
            for gap in reading.gaps:
                accumulators[gap.domain].miss(gap.reason)
            cpu = reading.cpu or cpu_reading(cpu_text)
            self._is_cpu_known = cpu is not None
            if cpu is not None:
                self._cpu.add(cpu, mono_ns)

    def _make_edge(self, reading: Reading, now: Instant) -> _Edge:
        return _Edge(now, self._cpu.times if self._is_cpu_known else None, reading.static_uj)

    def _shares(self) -> tuple[dict[int, int], dict[int, int], dict[str, int]]:
        """CPU time of the window that ends now: by process, of descendants in that, and by container beside both."""
        processes = self.trees.take_spent()
        own = self.trees.take_own()
        below = {pid: spent - own[pid] for pid, spent in processes.items() if spent > own.get(pid, spent)}
        if self.every_process is not None:
            processes |= self.every_process.window(processes, self.trees.take_members())
        if self.cgroups is None:
            return processes, below, {}
        return processes, below, self.cgroups.window(self.trees.take_contained())

    def close(self) -> None:
        """Close the files that are kept open; the reader is its owner's."""
        self.trees.close()
        self._machine.close()
        for part in (self.cgroups, self.every_process):
            if part is not None:
                part.close()

    def _begin(self, edge: _Edge) -> None:
        """Begin an epoch."""
        self.epoch = f"{self._boot_id}-{edge.mono_ns}"
        self._seq = 0
        self.ring.clear()
        self._edge = edge
        self.trees.take_spent()
        self.trees.take_contained()
        self.trees.take_own()
        if self.every_process is not None:
            self.every_process.open()
        if self.cgroups is not None:
            self.cgroups.open()

    def _publish(self, start: _Edge, end: _Edge) -> Tick | None:
        energy, static, gaps = self._close_windows(start, end, _out_of_time(start, end))
        self._state, self.counted_at = None, end.at
        process_gpu_ns = self._board_times()
        if end.wall_ns <= start.wall_ns:
            self._begin(end)
            return None
        cpu_busy_ns, cpu_total_ns = _cpu_between(start, end)
        processes, descendants, containers = self._shares()
        self._seq += 1
        tick = Tick(
            seq=self._seq,
            start_ns=start.wall_ns,
            end_ns=end.wall_ns,
            energy_uj=energy,
            static_uj=static,
            gaps=gaps,
            cpu_busy_ns=cpu_busy_ns,
            cpu_total_ns=cpu_total_ns,
            process_cpu_ns=processes,
            descendant_cpu_ns=descendants,
            container_cpu_ns=containers,
            process_gpu_ns=process_gpu_ns,
        )
        self.pulse.published()
        self.ring.append(tick)
        self._edge = end
        return tick

    def _close_windows(
        self, start: _Edge, end: _Edge, spoilt: str | None
    ) -> tuple[dict[str, int], dict[str, int], tuple[Gap, ...]]:
        energy: dict[str, int] = {}
        static: dict[str, int] = {}
        gaps: list[Gap] = []
        for domain, accumulator in self._accumulators.items():
            window = accumulator.close(spoilt)
            if isinstance(window, Gap):
                gaps.append(window)
                continue
            energy[domain] = window
            if domain in start.static_uj and domain in end.static_uj:
                static[domain] = end.static_uj[domain] - start.static_uj[domain]
        if spoilt is not None:
            return {}, {}, (Gap("*", spoilt),)
        if not self._accumulators and self._reader.reason is not None:
            gaps.append(Gap("*", self._reader.reason))
        return energy, static, tuple(gaps)


def _totals(state: AgentState) -> Totals:
    counted = {key: domain.counted for key, domain in state.domains.items()}
    return Totals(
        at_ns=state.at.wall_ns,
        energy_uj={key: item.placed_uj for key, item in counted.items()},
        unplaced_uj={key: item.unplaced_uj for key, item in counted.items()},
        gaps={key: item.gaps for key, item in counted.items() if item.gaps},
    )


def _out_of_time(start: _Edge, end: _Edge) -> str | None:
    """Why a window's energy has no place on the wall clock, if it has none."""
    if end.at.asleep_since(start.at) > CLOCK_STEP_NS:
        return SUSPENDED
    step_ns = (end.wall_ns - start.wall_ns) - (end.mono_ns - start.mono_ns)
    return CLOCK_STEP if abs(step_ns) > CLOCK_STEP_NS else None


def _cpu_between(start: _Edge, end: _Edge) -> tuple[int | None, int | None]:
    """CPU time spent and there, in nanoseconds; None where either end is unknown.

    The kernel counts whole jiffies, so the time spent may come out a jiffy above the time there was: it is
    capped.
    """
    if start.cpu is None or end.cpu is None:
        return None, None
    total_ns = end.cpu.total_ns - start.cpu.total_ns
    return min(total_ns, end.cpu.busy_ns - start.cpu.busy_ns), total_ns


def _boot_id(proc_root: Path) -> str:
    try:
        text = (proc_root / "sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    return text or os.urandom(16).hex()
