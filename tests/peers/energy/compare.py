"""Shows every scenario to a reader and says what it reported beside what is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from peers.energy.scenarios import DURATION_MS, J, Playback
from peers.energy.sessions import ReaderError
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_agent.sampler import Totals
    from peers.energy.readers import Reader
    from peers.energy.scenarios import Scenario

SAMPLE_MS = 100
NS_PER_MS = 1_000_000
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
        shown = spaced(self.reported_j) + difference(self.reported_j, self.truth_j)
        return shown if kind is None else f"{shown}, raises `{kind}`"


def spaced(joules: float) -> str:
    """Whole joules with a space at the thousands."""
    return f"{joules:,.0f}".replace(",", " ")


def difference(joules: float, truth_j: float) -> str:
    """How far off it is, in brackets; nothing where it is not."""
    off_j = joules - truth_j
    if abs(off_j) <= SAME * truth_j:
        return ""
    return f" ({off_j:+.0f} J)" if abs(off_j) < truth_j / 1_000 else f" ({100 * off_j / truth_j:+.1f} %)"


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
            while not play.over:
                play.pass_ms(reader.every_ms or DURATION_MS)
                try:
                    if reader.every_ms is not None:
                        session.read()
                except ReaderError as error:
                    raised.append(str(error))
            reported_j = session.end()
    except ReaderError as error:
        raised.append(str(error))
    play.pass_ms(DURATION_MS)
    return Outcome(play.truth_j(dram=reader.dram), reported_j, raised[0] if raised else None)


@dataclass(frozen=True)
class Ours:
    """What joulegram's agent makes of a scenario: what it placed in time, what it could not, and its gaps."""

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
        shown = spaced(self.placed_uj / J)
        if self.unplaced_uj:
            shown += f" + {spaced(self.unplaced_uj / J)} unplaced"
        shown += difference((self.placed_uj + self.unplaced_uj) / J, self.truth_uj / J)
        return shown + (f"; gaps: {sum(self.gaps.values())}" if self.gaps else "")


def ours(scenario: Scenario, root: Path) -> Ours:
    """The agent's reader and sampler at 10 Hz, in the scenario's time."""
    play = Playback(scenario, root)
    reader, clock = PowercapReader(play.sysfs), ManualClock()
    sampler = Sampler(reader, proc_root=FakeProc(root / "proc").root, clock=clock)
    try:
        sampler.sample()
        while not play.over:
            play.pass_ms(SAMPLE_MS)
            clock.advance(SAMPLE_MS * NS_PER_MS)
            sampler.sample()
    finally:
        reader.close()
    return Ours(sum(play.tree.truth_uj.values()), sampler.totals)
