"""What happens to a machine's counters in two minutes, told so that every reader can be shown the same.

Invariants:
    * time is simulated: a scenario moves on when it is told to, and by nothing else;
    * the tree holds the truth: what was spent is known to the microjoule, whatever can be read of it;
    * no reader is told anything: a failing read is one that fails for every program, a zone that is gone is gone.

A read is made to fail without a kernel: the counter becomes empty under those who hold it open, and a directory for
those who open it, so that the one gets nothing that is a number and the other an error (EISDIR).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_pipeline.exact import div_half_even
from simulators.powercap import INTEL_RANGE_UJ, PowercapTree, SimZone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DURATION_MS = 120_000
PACKAGE_W, DRAM_W = 400, 30
J = 1_000_000
_SPREAD_UJ = 1_234_567_891


@dataclass(frozen=True)
class Scenario:
    """A machine and what befalls it.

    Args:
        name: short, as a column's head.
        says: what happens, in a sentence.
        machine: makes the tree.
        events: by the millisecond at which they happen.
    """

    name: str
    says: str
    machine: Callable[[Path], PowercapTree]
    events: Mapping[int, Callable[[PowercapTree], None]] = field(default_factory=dict)


@dataclass
class Playback:
    """A scenario that runs.

    Args:
        scenario: which.
        root: an empty folder; ``root/sys`` becomes what a program should see as ``/sys``.
    """

    scenario: Scenario
    root: Path
    at_ms: int = 0

    def __post_init__(self) -> None:
        self.tree = self.scenario.machine(self.root / "sys")
        _lay_out(self.tree)
        self._to_come = sorted(self.scenario.events)

    @property
    def sysfs(self) -> Path:
        return self.tree.root

    @property
    def over(self) -> bool:
        return self.at_ms >= DURATION_MS

    def pass_ms(self, millis: int) -> None:
        """Let time pass; what happens at its beginning or within it happens then."""
        until_ms = min(self.at_ms + millis, DURATION_MS)
        while self._to_come and self._to_come[0] < until_ms:
            self._spend_until(self._to_come[0])
            self.scenario.events[self._to_come.pop(0)](self.tree)
        self._spend_until(until_ms)

    def _spend_until(self, until_ms: int) -> None:
        watts = {domain: _watts(domain) for domain in self.tree.domain_ids}
        self.tree.advance_watts(watts, until_ms - self.at_ms)
        self.at_ms = until_ms

    def truth_j(self, *, dram: bool) -> int:
        """What was spent so far, whole joules; the packages' alone where a reader sets out to measure no more."""
        spent = self.tree.truth_uj
        return div_half_even(sum(uj for domain, uj in spent.items() if dram or "dram" not in domain), J)


def _watts(domain: str) -> int:
    return DRAM_W if domain.endswith("dram") else PACKAGE_W


def _spread(tree: PowercapTree) -> PowercapTree:
    """Start every counter somewhere else, as on a machine that has run; equal ones look like mirrors."""
    for number, domain in enumerate(tree.domain_ids):
        tree.reset(domain, (number + 1) * _SPREAD_UJ)
    if tree.mmio:
        tree.reset("mmio", _SPREAD_UJ)
    return tree


def _lay_out(tree: PowercapTree) -> None:
    """What else of sysfs some readers look at: a zone's class, and how many sockets there are (one CPU on each)."""
    zones = tree.root / "class" / "powercap"
    controls = tree.root / "devices" / "virtual" / "powercap"
    for control in controls.iterdir():
        if not (zones / control.name).exists():
            (zones / control.name).symlink_to(os.path.relpath(control, zones))
        for folder in (control, *control.rglob("intel-rapl*")):
            (folder / "subsystem").symlink_to(os.path.relpath(zones, folder))
    cpus = tree.root / "devices" / "system" / "cpu"
    for number in range(tree.packages):
        topology = cpus / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{number}\n")
    for name in ("present", "online", "possible"):
        (cpus / name).write_text(f"0-{tree.packages - 1}\n" if tree.packages > 1 else "0\n")


def _two_sockets(root: Path) -> PowercapTree:
    return _spread(PowercapTree(root, packages=2))


def _near_the_wrap(root: Path) -> PowercapTree:
    tree = _two_sockets(root)
    tree.reset("package-0", INTEL_RANGE_UJ - 20_000 * J)  # at 400 W it wraps after 50 s
    return tree


def _twenty_zones(root: Path) -> PowercapTree:
    return _spread(PowercapTree(root, packages=20, core=False, dram=False))


def _laptop(root: Path) -> PowercapTree:
    return _spread(PowercapTree(root, psys=True, mmio=True, uncore=True))


class _Unseen(SimZone):
    """A counter that goes on and shows nothing."""

    def write(self) -> None:
        pass


def _hide(tree: PowercapTree, domain: str) -> None:
    """Leave nothing to read for those who hold the counter open."""
    tree.garble(domain, b"")
    zone = tree._zones[domain]
    tree._zones[domain] = _Unseen(zone.path, zone.entry, zone.max_range_uj, zone.counter_uj)


def _break(tree: PowercapTree) -> None:
    _hide(tree, "package-0")
    counter = tree.zone_path("package-0") / "energy_uj"
    counter.rename(counter.with_name(".energy_uj"))
    counter.mkdir()


def _mend(tree: PowercapTree) -> None:
    zone = tree._zones["package-0"]
    counter = zone.path / "energy_uj"
    counter.rmdir()
    counter.with_name(".energy_uj").rename(counter)
    tree._zones["package-0"] = SimZone(zone.path, zone.entry, zone.max_range_uj, zone.counter_uj)
    tree._zones["package-0"].write()


def _vanish(tree: PowercapTree) -> None:
    zone = tree.zone_path("package-1")
    for domain in ("package-1", "package-1/dram", "package-1/core"):
        _hide(tree, domain)
    for link in (tree.root / "class" / "powercap").glob(f"{zone.name}*"):
        link.unlink()
    zone.rename(tree.root.parent / "gone")


def _reset(tree: PowercapTree) -> None:
    tree.reset("package-0", 0)


SCENARIOS = (
    Scenario("two sockets", "Two sockets at 400 W and their DRAM at 30 W each; nothing happens.", _two_sockets),
    Scenario("wrap", "The same; after 50 s the counter of one package passes its range.", _near_the_wrap),
    Scenario(
        "failed read",
        "The same; from 50 s to 70 s the counter of one package cannot be read.",
        _two_sockets,
        {50_000: _break, 70_000: _mend},
    ),
    Scenario("20 zones", "Twenty packages at 400 W, `intel-rapl:0` to `intel-rapl:13`, no DRAM.", _twenty_zones),
    Scenario(
        "psys and mirror",
        "One socket with DRAM, core and uncore; a psys zone before it and its `intel-rapl-mmio` mirror.",
        _laptop,
    ),
    Scenario("zone gone", "Two sockets; after 70 s the second has no zones any more.", _two_sockets, {70_000: _vanish}),
    Scenario(
        "reset", "Two sockets; after 70 s the counter of one package starts from 0.", _two_sockets, {70_000: _reset}
    ),
)
