"""What one can and cannot see of a machine's energy from outside: four readers of one counter, beside the truth.

    python examples/aliasing_demo.py --duration 120
    python examples/aliasing_demo.py --speed 100                the same in a hundredth of the time
    python examples/aliasing_demo.py --source powercap          this machine's own counter, where it has one

A package draws 80 W, and 400 W in bursts, each of them a span of some job. Its counter is read

    at 10 Hz                  by joulegram's agent
    every second              as finely as the agent publishes it, lest it betray other programs
    every 15 s                by a scraper that knows the counter's range
    every 15 s, 32 bits       by one that keeps the lower 32 bits of the microjoules

Three things come out. A scraper loses nothing of the sum, for a counter wraps after minutes, not seconds; what it
cannot say is which part of its 15 s the energy belongs to, so a burst gets its neighbours' average. The mask loses
2**32 uJ (4 295 J, 10.7 s at 400 W) whenever that much is spent between two reads: the "11-second anomaly" is made by
the program that masks, and no hardware has it. And 10 Hz is not needed for the wraps: it tells spans apart. (Between
two ticks a sidecar knows more than is shown here: it splits a second by the CPU time of those who ran in it.)

The picture needs matplotlib: `pip install matplotlib`, or `pip install --group examples` in a checkout.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from joulegram_agent.counters import Accumulator
from joulegram_agent.powercap import PowercapReader
from joulegram_pipeline.energy import DomainKind, Gap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RANGE_UJ = 262_143_328_850
"""`max_energy_range_uj` of most Intel packages."""
START_UJ = RANGE_UJ - 10_000_000_000
"""So that the counter passes its range within the two minutes."""
MASK = 2**32
IDLE_W, BURST_W = 80, 400
SAMPLE_MS = 100
BURSTS_MS = ((5_330, 7_090), (18_420, 19_170), (26_040, 29_510), (41_730, 43_080), (52_210, 52_890), (63_460, 108_920))
PERIOD_MS = 120_000
COUNTERS_J = {
    "32 bits of microjoules, as a program may keep them": MASK / 1e6,
    "Intel DRAM and AMD, units of 15.3 uJ": 65_536.0,
    "Intel packages, units of 61.04 uJ": 262_144.0,
}


class Burst(NamedTuple):
    """A span of the job, in milliseconds since the beginning."""

    start_ms: int
    end_ms: int


def bursts(duration_ms: int) -> list[Burst]:
    """Every burst that ends in time; the pattern comes again every two minutes."""
    every = (
        Burst(begin + start, begin + end) for begin in range(0, duration_ms, PERIOD_MS) for start, end in BURSTS_MS
    )
    return [burst for burst in every if burst.end_ms <= duration_ms]


def energy_uj(wanted: Sequence[Burst], start_ms: int, end_ms: int) -> int:
    """What the package spends in a time, exactly: 1 W is 1 000 uJ a millisecond."""
    bursting = sum(max(0, min(end_ms, burst.end_ms) - max(start_ms, burst.start_ms)) for burst in wanted)
    return 1_000 * (IDLE_W * (end_ms - start_ms) + (BURST_W - IDLE_W) * bursting)


class Supply:
    """A package's counter as the kernel lays it out, in a folder of ours."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._spent_uj = START_UJ
        zone = root / "devices" / "virtual" / "powercap" / "intel-rapl" / "intel-rapl:0"
        entry = root / "class" / "powercap" / "intel-rapl:0"
        zone.mkdir(parents=True)
        entry.parent.mkdir(parents=True)
        entry.symlink_to(os.path.relpath(zone, entry.parent))
        (zone / "name").write_text("package-0\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        self._counter = zone / "energy_uj"
        self.spend(0)

    def spend(self, uj: int) -> None:
        """Move the counter on; it wraps as the file says."""
        self._spent_uj += uj
        self._counter.write_text(f"{self._spent_uj % (RANGE_UJ + 1)}\n")


@dataclass
class Counted:
    """Energy counted from the beginning to each of some instants; between two of them power is taken as constant."""

    points: list[tuple[int, int]] = field(default_factory=list)
    """Milliseconds since the beginning, and microjoules."""

    def between(self, start_ms: int, end_ms: int) -> float:
        """The microjoules of a time."""
        return self._until(end_ms) - self._until(start_ms)

    def _until(self, ms: int) -> float:
        for (from_ms, low), (to_ms, high) in pairwise(self.points):
            if ms <= to_ms:
                return low + (high - low) * (ms - from_ms) / (to_ms - from_ms)
        return self.points[-1][1]


@dataclass
class Scraper(Counted):
    """Adds up the rises of a counter modulo what it takes the counter's size to be; it keeps nothing above that."""

    modulus: int = RANGE_UJ + 1
    last_uj: int = 0

    def scrape(self, at_ms: int, counter_uj: int) -> None:
        """Take a reading."""
        seen_uj = counter_uj % self.modulus
        rise_uj = (seen_uj - self.last_uj) % self.modulus
        self.points.append((at_ms, self.points[-1][1] + rise_uj if self.points else 0))
        self.last_uj = seen_uj


@dataclass
class Seen:
    """What the four made of it. Of a real machine nobody knows the truth; what the agent counted stands for it."""

    duration_ms: int
    bursts: list[Burst]
    simulated: bool
    agent: Counted = field(default_factory=Counted)
    scraper: Scraper = field(default_factory=Scraper)
    masked: Scraper = field(default_factory=lambda: Scraper(modulus=MASK))

    @property
    def ticks(self) -> Counted:
        """What the agent publishes of what it counted."""
        return Counted([point for point in self.agent.points if point[0] % 1_000 == 0])

    def truth_uj(self, start_ms: int, end_ms: int) -> float:
        """What was spent."""
        return energy_uj(self.bursts, start_ms, end_ms) if self.simulated else self.agent.between(start_ms, end_ms)


class Machine(NamedTuple):
    """What is measured, and how its time passes."""

    sysfs: Path
    pass_until: Callable[[int], None]
    """Milliseconds since the beginning."""


@contextmanager
def simulated(wanted: Sequence[Burst], speed: float) -> Iterator[Machine]:
    """A package of our own, its time `speed` times as fast as ours."""
    with tempfile.TemporaryDirectory(prefix="joulegram-aliasing-") as directory:
        supply = Supply(Path(directory))
        begun_s, now_ms = time.monotonic(), 0

        def pass_until(ms: int) -> None:
            nonlocal now_ms
            time.sleep(max(0.0, begun_s + ms / 1_000 / speed - time.monotonic()))
            supply.spend(energy_uj(wanted, now_ms, ms))
            now_ms = ms

        yield Machine(supply.root, pass_until)


@contextmanager
def real(wanted: Sequence[Burst], root: Path) -> Iterator[Machine]:
    """This machine; in a burst every CPU is kept busy."""
    begun_s = time.monotonic()
    with ExitStack() as burning:
        busy: list[subprocess.Popen[bytes]] = []

        def pass_until(ms: int) -> None:
            time.sleep(max(0.0, begun_s + ms / 1_000 - time.monotonic()))
            bursting = any(burst.start_ms <= ms < burst.end_ms for burst in wanted)
            while bursting and len(busy) < (os.cpu_count() or 1):
                busy.append(burning.enter_context(burner()))
            while busy and not bursting:
                busy.pop().kill()

        yield Machine(root, pass_until)


@contextmanager
def burner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, as fast as it can."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process
        finally:
            process.kill()


def watch(machine: Machine, seen: Seen, scrape_ms: int) -> None:
    """Read the counter as each of the four does, from the beginning to the end."""
    reader = PowercapReader(machine.sysfs)
    package = next((domain for domain in reader.domains() if domain.kind is DomainKind.CPU), None)
    if reader.reason is not None or package is None or package.max_range_uj is None:
        sys.exit(f"there is no counter of a package here: {reader.reason}; leave out --source to see a simulated one")
    accumulator = Accumulator(package)
    seen.scraper.modulus = package.max_range_uj + 1
    for ms in range(0, seen.duration_ms + 1, SAMPLE_MS):
        machine.pass_until(ms)
        reading = reader.read()
        if package.id not in reading.counters_uj:
            sys.exit(f"{package.id} could not be read: {reading.gaps}")
        counter_uj = reading.counters_uj[package.id]
        accumulator.offer(counter_uj, ms * 1_000_000)
        counted = accumulator.close() if ms else 0
        if isinstance(counted, Gap):
            sys.exit(f"{package.id} at {ms / 1_000:g} s: {counted.reason}")
        seen.agent.points.append((ms, accumulator.placed_uj))
        if ms % scrape_ms == 0:
            seen.scraper.scrape(ms, counter_uj)
            seen.masked.scrape(ms, counter_uj)
    reader.close()


def report(seen: Seen, scrape_ms: int) -> None:
    """Print what the four say of the whole, and of each burst, and when counters wrap."""
    known = "truth" if seen.simulated else "agent"
    every = f"every {scrape_ms / 1_000:g} s"
    print(f"{'all of it':<20} {'until':>7} {'J':>14} {known + ', J':>14} {'error, J':>14}")
    rows = {"at 10 Hz": seen.agent, "every second": seen.ticks, every: seen.scraper, f"{every}, 32 bits": seen.masked}
    for name, counted in rows.items():
        until_ms, uj = counted.points[-1]
        truth_uj = seen.truth_uj(0, until_ms)
        figures = f"{uj / 1e6:>14.6f} {truth_uj / 1e6:>14.6f} {(uj - truth_uj) / 1e6:>+14.6f}"
        print(f"{name:<20} {until_ms / 1e3:>5.0f} s {figures}")
    print(f"\n{'a burst':<20} {known + ', J':>11} {'at 10 Hz':>18} {'every second':>18} {every:>18}")
    for burst in seen.bursts:
        truth_uj = seen.truth_uj(*burst)
        figures = ""
        for counted in (seen.agent, seen.ticks, seen.scraper):
            given_uj = counted.between(*burst)
            off = f"{given_uj / truth_uj - 1:+.1%}" if truth_uj else ""
            figures += f" {given_uj / 1e6:>9.2f} {off:>8}"
        span = f"{burst.start_ms / 1e3:.2f} to {burst.end_ms / 1e3:.2f} s"
        print(f"{span:<20} {truth_uj / 1e6:>11.2f}{figures}")
    print(f"\n{'a counter of':<52} {'wraps after, J':>14} {'at 400 W':>10} {'so read within':>15}")
    for name, joules in COUNTERS_J.items():
        print(f"{name:<52} {joules:>14,.2f} {joules / BURST_W:>8.2f} s {joules / BURST_W / 2:>13.2f} s")


def main() -> None:
    """Read the options, watch, report, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--duration", type=int, default=120, help="seconds, at least one scrape")
    parser.add_argument("--scrape", type=int, default=15, help="seconds between two scrapes")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds a second")
    parser.add_argument("--source", choices=("simulated", "powercap"), default="simulated")
    parser.add_argument("--sysfs-root", type=Path, default=Path("/sys"), help="for --source powercap")
    parser.add_argument("--picture", type=Path, default=Path("aliasing.png"), help="where to draw it")
    args = parser.parse_args()
    if not 1 <= args.scrape <= args.duration:
        parser.error(f"--scrape: got {args.scrape}, expected 1 to --duration, which is {args.duration}")
    if args.speed <= 0 or (args.speed != 1 and args.source != "simulated"):
        parser.error(f"--speed: got {args.speed:g}, expected more than 0, and 1 for --source powercap")
    wanted = bursts(args.duration * 1_000)
    seen = Seen(args.duration * 1_000, wanted, args.source == "simulated")
    with simulated(wanted, args.speed) if seen.simulated else real(wanted, args.sysfs_root) as machine:
        watch(machine, seen, args.scrape * 1_000)
    report(seen, args.scrape * 1_000)
    try:
        from aliasing_picture import draw  # noqa: PLC0415 - matplotlib may be missing
    except ImportError as error:
        print(f"\nno picture: {error}; pip install matplotlib, or pip install --group examples in a checkout")
    else:
        draw(seen, args.picture)
        print(f"\npicture: {args.picture}")


if __name__ == "__main__":
    main()
