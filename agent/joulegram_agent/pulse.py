"""How the sampling goes: what was sampled, missed and published, and how long a sweep over the counters took."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
"""Upper bounds of the histogram, in seconds; a sweep of a machine's counters takes some tens of microseconds."""

_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS_S)


class Pulse:
    """Counts since the agent began."""

    def __init__(self) -> None:
        self.samples = 0
        self.missed_samples = 0
        self.ticks = 0
        self.read_ns = 0
        self.reads_by_bound = [0] * (len(BOUNDS_S) + 1)

    def sampled(self, read_ns: int) -> None:
        """A sweep over the counters took so long."""
        self.samples += 1
        self.read_ns += read_ns
        self.reads_by_bound[bisect_left(_BOUNDS_NS, read_ns)] += 1

    def missed(self, deadlines: int) -> None:
        """So many deadlines passed while a read was slow or the process did not run."""
        self.missed_samples += deadlines

    def published(self) -> None:
        """A tick was published."""
        self.ticks += 1
