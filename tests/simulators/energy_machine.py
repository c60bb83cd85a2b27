"""A machine on which every source of energy can be read, until a test takes one away."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from joulegram_agent import hwmon_energy, msr, perf, powercap
from joulegram_agent.hwmon_energy import HwmonReader
from joulegram_agent.msr import MsrReader
from joulegram_agent.perf import PerfReader
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sources import open_reader
from simulators.hwmon import SensorTree
from simulators.msr import MsrMachine
from simulators.perf import PowerPmu
from simulators.powercap import PowercapTree

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from joulegram_agent.powercap import Counter
    from joulegram_agent.reader import Reader

NO_LIBRARY = "libnvidia-ml-that-is-not-there.so.1"
"""A machine that has boards shows them beside whatever `auto` takes."""


class Machine:
    """See the module."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, packages: int = 2, dies: int = 1) -> None:
        self.root = root
        self.monkeypatch = monkeypatch
        self.tree = PowercapTree(root / "sys", packages=packages, dies=dies, reverse=True)
        # Dies with the same counter would be mirrors of one.
        self.tree.advance({domain: 10**9 * number for number, domain in enumerate(self.tree.domain_ids)})
        self.registers = MsrMachine(root, packages=packages, dies=dies)
        self.pmu = PowerPmu(self.registers, f"0-{packages * dies - 1}")
        # Drivers that read the same registers: each package twice as far, as the driver began to count elsewhere.
        self.chips = SensorTree(root / "sys")
        self.driver = self.chips.amd_energy(2, *(10**9 * (2 * number + 1) for number in range(packages)))
        monkeypatch.setattr(msr, "MsrReader", partial(MsrReader, open_msr=self.registers.open_msr))
        monkeypatch.setattr(perf, "PerfReader", partial(PerfReader, open_counter=self.pmu.open_counter))

    def open(self, source: str = "auto", nvml_library: str = NO_LIBRARY) -> Reader:
        return open_reader(
            source,
            sysfs_root=self.root / "sys",
            proc_root=self.root / "proc",
            dev_root=self.root / "dev",
            nvml_library=nvml_library,
        )

    def without_powercap(self) -> Machine:
        (self.root / "sys/class/powercap").rename(self.root / "hidden")
        return self

    def with_powercap_masked(self) -> Machine:
        """As in a container; the host's own is at ``root/host``."""
        self.tree.mask(self.root / "host")
        return self

    def without_pmu(self) -> Machine:
        """A kernel without the ``power`` PMU, which is more than one that does not permit it."""
        (self.root / "sys/bus/event_source/devices/power").rename(self.root / "hidden-pmu")
        return self

    def without_msr(self) -> Machine:
        self.registers.faults = dict.fromkeys(((cpu, None) for cpu in self.registers.place_of), errno.EPERM)
        return self

    def with_powercap_refused(self) -> Machine:
        """As for anybody but root."""
        self.monkeypatch.setattr(powercap, "PowercapReader", partial(PowercapReader, open_counter=_refuse))
        return self

    def with_hwmon_refused(self) -> Machine:
        """As for anybody but root, since CVE-2020-12912."""
        self.monkeypatch.setattr(hwmon_energy, "HwmonReader", partial(HwmonReader, open_counter=_refuse))
        return self

    def without_hwmon(self) -> Machine:
        (self.driver / "name").write_text("k10temp\n")
        return self

    def without_perf(self) -> Machine:
        self.pmu.refuses = errno.EACCES
        return self


def _refuse(path: Path) -> Counter:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))
