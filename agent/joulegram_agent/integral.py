"""From readings of power to a counter of energy, for a source that has no counter of its own.

    energy = sum of (power before + power after) / 2 x time between

Invariants:
    * whole numbers only: the counter is the floor of the exact sum in microjoules. What is below a microjoule is
      carried on, so that any number of windows together is less than 1 uJ off the trapezoids;
    * it never falls;
    * a hole of more than `MAX_STEP_NS` is not bridged: what was drawn in it is not known and not counted. The
      limit lies above a published window, so the edge of a window lies in such a hole, and the gap is seen.
"""

from __future__ import annotations

MAX_STEP_NS = 2_000_000_000
"""Two readings of power further apart than this say nothing of the time between them."""

UNSAMPLED = "unsampled"

_TWICE_UW_NS_PER_UJ = 2_000_000_000


class PowerIntegral:
    """Counts the energy of one domain by trapezoids."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        # Twice the sum in uW x ns, which is femtojoules: half of an odd number would not be whole.
        self._twice_fj = 0

    def add(self, power_uw: int, at_ns: int) -> int | str:
        """Take a reading of power.

        Args:
            power_uw: what is drawn, microwatts, 0 or more.
            at_ns: when, on a clock that never steps back.

        Returns:
            The energy since the first reading in microjoules, or the reason why it is not known any more. After
            a reason counting goes on from this reading.
        """
        last = self._last
        self._last = (power_uw, at_ns)
        if last is not None:
            last_uw, last_ns = last
            step_ns = at_ns - last_ns
            if step_ns > MAX_STEP_NS:
                return f"{UNSAMPLED}: got {step_ns} ns between two readings of power, expected at most {MAX_STEP_NS}"
            self._twice_fj += (last_uw + power_uw) * step_ns
        return self._twice_fj // _TWICE_UW_NS_PER_UJ
