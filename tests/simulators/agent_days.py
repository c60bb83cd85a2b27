"""Agents that follow each other on one machine, with the truth of every window beside what they say of it.

Invariants:
    * a published energy is compared with the truth when it is published, per domain, to the microjoule;
    * `zero_uj` is the truth when the first agent started whose counts were left to the next;
    * `gap_uj` is the truth of the windows that were declared gaps, and of the time without an agent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from joulegram_agent.state import AgentState, StateFile
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from joulegram_pipeline.energy import Tick
    from simulators.powercap import PowercapTree

MS = 1_000_000
S = 1_000_000_000


@dataclass
class Days:
    """See the module.

    Args:
        tree: of the machine.
        root: for /proc and the state file.
        save_s: how often the state is saved.
    """

    tree: PowercapTree
    root: Path
    save_s: int = 10
    clock: ManualClock = field(default_factory=ManualClock)
    told_uj: Counter[str] = field(default_factory=Counter)
    gap_uj: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    ticks: int = 0
    restarts: int = 0

    def __post_init__(self) -> None:
        self.proc = FakeProc(self.root / "proc")
        self.state = StateFile(self.root / "agent-state.json")
        self._truth = dict(self.tree.truth_uj)
        self.zero_uj = dict(self._truth)
        self._saved_ns = 0
        self.start()

    def start(self) -> None:
        """An agent starts on what the one before left; what was spent without one is a gap."""
        reader = PowercapReader(self.tree.root, self.tree.open_counter)
        self.sampler = Sampler(reader, proc_root=self.proc.root, clock=self.clock)
        left = self.state.load()
        if left is not None:
            self.sampler.resume(left)
            self.restarts += 1
        else:
            self.zero_uj = dict(self.tree.truth_uj)
        self.sampler.sample()
        self.gap_uj.update(self._window())
        self._epoch = self.sampler.about.epoch

    def stop(self) -> None:
        """It stops in order; without this it is killed."""
        self._save()

    def run(self, seconds: float, watts: Mapping[str, int], *, millis: int = 1_000) -> None:
        """Samples for a time, so far apart."""
        for _ in range(round(seconds * 1_000 / millis)):
            self.spend(watts, millis)
            self.sample()

    def spend(self, watts: Mapping[str, int], millis: int) -> None:
        """Time passes without a sample."""
        self.tree.advance_watts(watts, millis)
        self.clock.advance(millis * MS)

    def suspend(self, seconds: int, watts: Mapping[str, int]) -> None:
        """The machine sleeps, its counters go on."""
        self.tree.advance_watts(watts, seconds * 1_000)
        self.clock.suspend(seconds * S)

    def sample(self) -> Tick | None:
        """One sample, and what its tick says against the truth."""
        tick = self.sampler.sample()
        epoch = self.sampler.about.epoch
        if tick is None:
            if epoch != self._epoch:
                self._epoch = epoch
                self.gap_uj.update(self._window())
            return None
        self.ticks += 1
        missing = {gap.domain: gap.reason for gap in tick.gaps}
        self.reasons.update(reason.partition(":")[0] for reason in missing.values())
        measured = {domain.id for domain in self.sampler.about.domains}
        for domain, energy_uj in self._window().items():
            if domain not in measured or domain in missing or "*" in missing:
                assert domain not in tick.energy_uj
                self.gap_uj[domain] += energy_uj
            else:
                assert tick.energy_uj[domain] == energy_uj
                self.told_uj[domain] += energy_uj
        if self.clock.mono_ns() - self._saved_ns >= self.save_s * S:
            self._save()
        return tick

    def counted(self, domain: str) -> int:
        """Placed and not: what the totals hold."""
        totals = self.sampler.totals
        return totals.energy_uj[domain] + totals.unplaced_uj[domain]

    def _save(self) -> None:
        state = self.sampler.state
        if state is not None:
            self.state.save(state)
            assert self.state.load() == state
            assert AgentState.from_bytes(state.to_bytes()) == state
            self._saved_ns = self.clock.mono_ns()

    def _window(self) -> dict[str, int]:
        before, self._truth = self._truth, dict(self.tree.truth_uj)
        return {domain: self._truth[domain] - before[domain] for domain in self._truth}
