"""From raw counter readings of one domain to the energy of each published window.

Invariants:
    * energy is counted in integer microjoules, modulo ``max_range_uj + 1``, the number of values the file can
      show; there is no mask of any other width (D-45, D-46);
    * ``placed_uj + unplaced_uj +`` what the open window holds = all that was counted; nothing is counted
      twice;
    * a window's energy is published only if the domain was read at both its ends and nothing between is
      unknown; otherwise it is a gap with a reason, and what was counted in it goes to `unplaced_uj` (S0-23,
      D-05).

The hardware's own modulus is one *unit* (up to 61 uJ) above the largest value the file shows, and the file
truncates units, so the file's modulus is known to a unit only. ``max + 1`` is at most that unit short per
wrap, 0.2 parts per billion of it, always to the low side.

What a failed read does: if the domain is read again before its window closes, the counter's difference holds
the whole energy and the window is complete. If the window closes first, it is a gap; the difference found at
recovery straddles windows, cannot be said to belong to either, and is counted in `unplaced_uj` while that
window is a gap named ``unplaced``.

What a suspended machine does: its counters may have gone on, or begun anew. A rise is believed as far as the power
limit allows it for the time awake, and `ASLEEP_W` for the time asleep; so a counter that fell to 0 in a short sleep is
a reset, and not a wrap that would have taken a full load to reach.

What a counter without a range does: it does not wrap, so one that falls began anew, and a silence is never too long.
What it rises by since it last moved is held against the power limit as well: NVML's moves each 10 to 100 ms, and may be
read several times between. Above the limit it is no energy: a gap named ``implausible_power``, counted nowhere (D-13).
One that stood still for long and catches up rose by what was spent, only not now: a window that would then hold more
than the limit is a gap named ``unplaced``. A modelled domain has no limit, as no counter is behind it.

What a restart of the agent does: `resume` takes the counts where the agent before left them. The rise across the time
without an agent is known as far as that across any silence is, and is counted in `unplaced_uj`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_pipeline.energy import Gap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from joulegram_pipeline.energy import Domain

MAX_POWER_W = 2_000
"""More than a domain draws today: the largest sockets are rated 500 W and boards 1200 W, bursts below twice that."""

HIGHEST_POWER_W = 100_000
"""Most that the limit can be set to: a whole rack draws it, and above it wraps of small ranges could not be told."""

JITTER_NS = 50_000_000
"""How far a counter's update and our stamp may lie apart before a rise is implausible."""

ASLEEP_W = 20
"""More than a domain draws while the machine sleeps."""

COUNTER_RESET = "counter_reset"
AMBIGUOUS = "ambiguous_wrap"
IMPLAUSIBLE = "implausible_power"
UNPLACED = "unplaced"


def reason_code(reason: str) -> str:
    """The part of a reason before its details: few values, fit to count by."""
    return reason.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a domain up to an instant, and where its counter stood.

    Args:
        placed_uj: see `Accumulator`.
        unplaced_uj: see `Accumulator`.
        gaps: windows that were gaps, by the code of their reason.
        raw_uj: the counter at the last good reading; None where there was none.
        silent_ns: how long before the instant that reading was; of a counter without a range, the one it moved at.
    """

    placed_uj: int = 0
    unplaced_uj: int = 0
    gaps: Mapping[str, int] = field(default_factory=dict)
    raw_uj: int | None = None
    silent_ns: int = 0


class Accumulator:
    """Counts one domain.

    Args:
        domain: whose `max_range_uj` says how the counter wraps; None is a counter that does not.
        max_power_w: above this a rise is implausible; also sets how long two readings of a counter with a range may
            lie apart, which is the time in which half the range could be spent at this power.
    """

    def __init__(self, domain: Domain, max_power_w: int = MAX_POWER_W) -> None:
        self.domain = domain
        self.placed_uj = 0
        self.unplaced_uj = 0
        self.gaps: Counter[str] = Counter()
        self._max_power_w = max_power_w
        self._is_modelled = domain.modelled
        self._modulus = None if domain.max_range_uj is None else domain.max_range_uj + 1
        # 1 W is 1 nJ/ns. In more than this half the range could have been spent.
        self._silent_ns = 0 if self._modulus is None else 1_000 * self._modulus // (2 * max_power_w)
        self._last: tuple[int, int, int] | None = None
        self._read_ns = 0
        self._took_ns = 0
        self._opened_ns = 0
        self._window_uj = 0
        self._spoilt: str | None = None
        self._unknown = False
        self._failing: str | None = None
        self._carried: str | None = None

    def offer(self, raw_uj: int, at_ns: int, awake_ns: int | None = None, took_ns: int = 0) -> None:
        """Take a good reading of the counter.

        Args:
            raw_uj: what it showed.
            at_ns: when it began to be read, on a clock that never runs slow.
            awake_ns: when, on a clock that stands still while the machine is suspended; `at_ns` if not given.
            took_ns: how much later it may have been that the counter showed this: what else was read took its time.
        """
        awake_ns = at_ns if awake_ns is None else awake_ns
        known: int | str = 0
        if self._last is not None:
            known = self._rise(raw_uj, at_ns + took_ns, awake_ns + took_ns, *self._last)
        if isinstance(known, str):
            # Energy that is not known says more of a window than energy that is counted and has no place.
            if not self._unknown:
                self._spoilt, self._unknown = known, True
        else:
            self._window_uj += known
            if self._carried is not None:
                self._spoil(f"{UNPLACED}: {self._carried}")
        # A counter without a range may repeat itself: what it rises by next was spent since it last moved.
        if self._modulus is not None or self._last is None or raw_uj != self._last[0]:
            self._last = (raw_uj, at_ns, awake_ns)
        self._read_ns, self._took_ns = at_ns, took_ns
        self._failing = None
        self._carried = None

    def miss(self, reason: str) -> None:
        """Take note that the counter could not be read."""
        self._failing = reason

    def resume(self, counted: Counted, at_ns: int, awake_ns: int) -> None:
        """Go on from what another accumulator of this domain had counted; before the first reading.

        Args:
            counted: as `counted` gave it. Without `raw_uj` the totals go on, and the rise since then is not known.
            at_ns: the instant of `counted` on the clock of `offer`.
            awake_ns: the same on its other clock.
        """
        self.placed_uj, self.unplaced_uj = counted.placed_uj, counted.unplaced_uj
        self.gaps = Counter(counted.gaps)
        if counted.raw_uj is not None:
            self._last = (counted.raw_uj, at_ns - counted.silent_ns, awake_ns - counted.silent_ns)
            self._read_ns = at_ns - counted.silent_ns

    def counted(self, at_ns: int) -> Counted:
        """What was counted up to the end of the window that has just closed, at `at_ns` on the clock of `offer`."""
        raw_uj, silent_ns = (None, 0) if self._last is None else (self._last[0], at_ns - self._last[1])
        return Counted(self.placed_uj, self.unplaced_uj, dict(self.gaps), raw_uj, silent_ns)

    def open(self) -> None:
        """Begin a window at the reading just offered or missed."""
        self._window_uj = 0
        self._opened_ns = self._read_ns
        self._spoilt = None
        self._unknown = False
        self._carried = self._failing

    def close(self, spoilt: str | None = None) -> int | Gap:
        """End the window at the reading just offered or missed, and begin the next.

        Args:
            spoilt: a reason from outside why this window's energy cannot be placed in time.

        Returns:
            The energy of the window in microjoules, or the gap that stands for it.
        """
        for reason in (spoilt, self._failing):
            if reason is not None:
                self._spoil(reason)
        long_ns = self._read_ns + self._took_ns - self._opened_ns
        if self._modulus is None and self._is_too_much(self._window_uj, long_ns, long_ns):
            self._spoil(f"{UNPLACED}: {self._implausible()}")
        energy_uj, gap = self._window_uj, self._spoilt
        self.open()
        if gap is None:
            self.placed_uj += energy_uj
            return energy_uj
        self.unplaced_uj += energy_uj
        self.gaps[reason_code(gap)] += 1
        return Gap(self.domain.id, gap)

    def _spoil(self, reason: str) -> None:
        if self._spoilt is None:
            self._spoilt = reason

    def _rise(
        self, raw_uj: int, at_ns: int, awake_ns: int, last_uj: int, last_ns: int, last_awake_ns: int
    ) -> int | str:
        """Energy between two readings, the later of which was done by `at_ns`, or why it is not known."""
        elapsed_ns, up_ns = at_ns - last_ns, awake_ns - last_awake_ns
        if self._modulus is None:
            if raw_uj < last_uj:
                return COUNTER_RESET
            rise = raw_uj - last_uj
            return self._implausible() if self._is_too_much(rise, elapsed_ns, up_ns) else rise
        # The guard stands before the sign of the difference: whole wraps hide behind a rise as well.
        if elapsed_ns > self._silent_ns:
            return AMBIGUOUS
        rise = (raw_uj - last_uj) % self._modulus
        return COUNTER_RESET if self._is_too_much(rise, elapsed_ns, up_ns) else rise

    def _is_too_much(self, energy_uj: int, elapsed_ns: int, up_ns: int) -> bool:
        """Whether no domain spends this in that time, of which the machine was up for a part."""
        if self._is_modelled:
            return False
        most_nj = self._max_power_w * (up_ns + JITTER_NS)
        if elapsed_ns > up_ns:
            most_nj += ASLEEP_W * (elapsed_ns - up_ns)
        return 1_000 * energy_uj > most_nj

    def _implausible(self) -> str:
        return f"{IMPLAUSIBLE}: above {self._max_power_w} W"
