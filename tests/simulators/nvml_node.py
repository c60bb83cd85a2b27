"""A sampler over simulated boards, with clocks that only move when told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_agent.nvml import NvmlReader
from joulegram_agent.nvml_library import NOT_SUPPORTED
from joulegram_agent.sampler import Sampler
from simulators.nvml import NvmlSim, SimBoard, uuid
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from joulegram_pipeline.energy import Tick

J = 1_000_000
MS = 1_000_000
S = 1_000_000_000
TIMEOUT, UNKNOWN = 10, 999


@dataclass
class Node:
    """A sampler over simulated boards; `ticks` are all it published."""

    sim: NvmlSim
    clock: ManualClock
    reader: NvmlReader
    sampler: Sampler
    ticks: list[Tick] = field(default_factory=list)

    def sample(self, watts: Mapping[SimBoard, int] | None = None, *, millis: int = 100) -> Tick | None:
        """Let the boards spend, and read them once."""
        for board in self.sim.boards:
            board.spend((watts or {}).get(board, 0) * millis)
        self.sim.write()
        self.clock.advance(millis * MS)
        tick = self.sampler.sample()
        self.ticks += [tick] if tick is not None else []
        return tick

    def run(self, seconds: int, watts: Mapping[SimBoard, int] | None = None) -> list[Tick]:
        """Ten reads a second; the ticks that were published."""
        before = len(self.ticks)
        for _ in range(seconds * 10):
            self.sample(watts)
        return self.ticks[before:]

    def published(self, board: SimBoard) -> int:
        """Microjoules of a board in all ticks."""
        return sum(tick.energy_uj.get(board.domain, 0) for tick in self.ticks)


def node_over(sim: NvmlSim, root: Path) -> Node:
    """A node whose first window is open; `root` becomes its /proc."""
    clock = ManualClock()
    reader = NvmlReader(sim.library, clock)
    sampler = Sampler(reader, proc_root=FakeProc(root).root, clock=clock)
    assert sampler.sample() is None
    return Node(sim, clock, reader, sampler)


def make_node(root: Path, *boards: SimBoard) -> Node:
    """A node with these boards."""
    return node_over(NvmlSim(root / "nvml", *boards), root / "proc")


def old_board(power_mw: int, *, number: int = 0, power_code: int = 0) -> SimBoard:
    """A board from before Volta: no counter."""
    name = "Tesla P100-PCIE-16GB"
    return SimBoard(uuid(number), power_mw=power_mw, energy_code=NOT_SUPPORTED, power_code=power_code, name=name)
