"""Shows every scenario to a reader and says what it reported beside what is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from peers.energy.readers import ReaderError
from peers.energy.scenarios import DURATION_MS, STEP_MS, Playback
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_agent.sampler import Totals
    from peers.energy.readers import Reader
    from peers.energy.scenarios import Scenario

STEP_NS = STEP_MS * 1_000_000
SAME = 1e-5
"""One part in 100 000 is how far a reader's own constants round."""


@dataclass(frozen=True)
class Outcome:
    """What one reader made of one scenario.

    Args:
        truth_j: what was spent in what the reader sets out to measure, whole joules.
        reported_j: what it says was; None where it raised instead.
        raised: the first that it raised, in the middle or at the end.
    """

    truth_j: int
    reported_j: float | None
    raised: str | None = None

    @property
    def cell(self) -> str:
        """As the table has it."""
        kind = None if self.raised is None else self.raised.partition(":")[0].strip()
        if self.reported_j is None:
            return f"raises `{kind}`"
        off = self.reported_j / self.truth_j - 1
        shown = f"{self.reported_j:,.0f}".replace(",", " ")
        if abs(off) > SAME:
            shown += f" ({100 * off:+.1f} %)"
        return shown if kind is None else f"{shown}, raises `{kind}`"


def compare(reader: Reader, scenario: Scenario, root: Path) -> Outcome:
    """Show a scenario to a reader.

    Raises:
        PeerMissingError: the reader cannot be had.
    """
    play = Playback(scenario, root)
    raised: list[str] = []
    reported_j: float | None = None
    try:
        with reader.session(play.sysfs) as session:
            while play.at_ms < DURATION_MS:
                play.step()
                due = reader.every_ms is not None and play.at_ms % reader.every_ms == 0
                try:
                    if due:
                        session.read()
                except ReaderError as error:
                    raised.append(str(error))
            reported_j = session.end()
    except ReaderError as error:
        raised.append(str(error))
    while play.at_ms < DURATION_MS:
        play.step()
    return Outcome(play.truth_j(dram=reader.dram), reported_j, raised[0] if raised else None)


@dataclass(frozen=True)
class Ours:
    """What joulegram's agent makes of a scenario: what it placed in time, what it could not, and what it says is missing."""

    truth_uj: int
    totals: Totals

    @property
    def placed_uj(self) -> int:
        return sum(self.totals.energy_uj.values())

    @property
    def unplaced_uj(self) -> int:
        return sum(self.totals.unplaced_uj.values())

    @property
    def gaps(self) -> dict[str, int]:
        """Windows of a second that were a gap, by domain and reason."""
        return {
            f"{domain} {reason}": count
            for domain, reasons in sorted(self.totals.gaps.items())
            for reason, count in sorted(reasons.items())
        }

    @property
    def cell(self) -> str:
        """As the table has it."""
        shown = f"{self.placed_uj / 1e6:,.0f}".replace(",", " ")
        if self.unplaced_uj:
            shown += f" + {self.unplaced_uj / 1e6:,.0f} unplaced".replace(",", " ")
        missing = self.truth_uj - self.placed_uj - self.unplaced_uj
        if missing:
            shown += f" ({100 * -missing / self.truth_uj:+.1f} %)"
        return shown + (f", {sum(self.gaps.values())} gaps" if self.gaps else "")


def ours(scenario: Scenario, root: Path) -> Ours:
    """The agent's reader and sampler at 10 Hz, in the scenario's time."""
    play = Playback(scenario, root)
    reader, clock = PowercapReader(play.sysfs), ManualClock()
    sampler = Sampler(reader, proc_root=FakeProc(root / "proc").root, clock=clock)
    try:
        sampler.sample()
        while play.at_ms < DURATION_MS:
            play.step()
            clock.advance(STEP_NS)
            sampler.sample()
    finally:
        reader.close()
    return Ours(sum(play.tree.truth_uj.values()), sampler.totals)
