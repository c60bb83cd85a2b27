"""Package energy through amd_energy: sockets alone, 64 bits, and never a board's sensor."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.hwmon_energy import HwmonReader
from joulegram_agent.sampler import Sampler
from joulegram_agent.sources import open_reader
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method
from simulators.hwmon import SensorTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000
S = 1_000_000_000


def test_sockets_alone_are_packages(tmp_path: Path) -> None:
    """D-03, D-07: of 64 cores and 2 sockets the sockets are read; the cores lie inside."""
    SensorTree(tmp_path).amd_energy(64, 900 * J, 40 * J)
    reader = HwmonReader(tmp_path)
    assert reader.domains() == (Domain("package-0", DomainKind.CPU), Domain("package-1", DomainKind.CPU))
    assert reader.read().counters_uj == {"package-0": 900 * J, "package-1": 40 * J}
    assert (reader.method, reader.reason, reader.source) == (Method.MEASURED, None, "hwmon")
    reader.close()
    assert [gap.reason for gap in reader.read().gaps] == ["read_failed: closed"] * 2


def test_a_node_that_mirrors_a_socket_is_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """D-47: the driver numbers NUMA nodes: with four on two sockets, two counters come twice."""
    SensorTree(tmp_path).amd_energy(4, 900 * J, 900 * J, 40 * J, 40 * J)
    reader = HwmonReader(tmp_path)
    assert reader.read().counters_uj == {"package-0": 900 * J, "package-1": 40 * J}
    assert caplog.messages == [
        "Esocket1 shows the counter of package-0: not counted",
        "Esocket3 shows the counter of package-1: not counted",
    ]


@pytest.mark.parametrize("end_uj", [2**32, 2**32 * J // 2**16, 2**48], ids=["32 bits of uJ", "of its units", "2^48 uJ"])
def test_the_counter_has_64_bits(tmp_path: Path, end_uj: int) -> None:
    """D-01, D-45: past 2^32 uJ and past 65 kJ nothing is lost; a driver loaded anew is a gap, not a wrap."""
    chip, clock = SensorTree(tmp_path).amd_energy(1, end_uj - 5 * J), ManualClock()
    sampler = Sampler(HwmonReader(tmp_path), proc_root=FakeProc(tmp_path / "proc").root, clock=clock)
    sampler.sample()
    ticks = []
    for energy_uj in (end_uj + 7 * J, end_uj + 777 * J, 12 * J, 15 * J):
        (chip / "energy2_input").write_text(f"{energy_uj}\n")
        clock.advance(S)
        ticks.append(sampler.sample())
    assert [tick.energy_uj.get("package-0") for tick in ticks if tick] == [
        12 * J,
        770 * J,
        None,
        3 * J,
    ]
    assert ticks[2] is not None
    assert ticks[2].gaps == (Gap("package-0", "counter_reset"),)


def test_a_board_is_never_a_measured_domain(tmp_path: Path) -> None:
    """D-04: a board's meter and another chip's energy are no package energy: no domain, and the reason."""
    tree = SensorTree(tmp_path)
    tree.chip("power_meter", "ACPI000D:00", power1_average=5, energy1_input=5, energy1_label="Esocket0")
    tree.chip("ina226", "1-0040", energy1_input=5)
    reader = open_reader("hwmon", sysfs_root=tmp_path, proc_root=tmp_path)
    assert reader.domains() == ()
    assert reader.reason == (
        f"no_hwmon: {tmp_path}/class/hwmon shows no chip amd_energy, expected a driver of package energy"
    )


def test_a_driver_without_sockets_is_a_reason(tmp_path: Path) -> None:
    """D-03: cores alone are not added up to a package."""
    SensorTree(tmp_path).amd_energy(8)
    assert HwmonReader(tmp_path).reason == (
        f"no_hwmon: {tmp_path}/class/hwmon shows no socket, expected a driver of package energy"
    )


def test_refusals_are_reasons(tmp_path: Path) -> None:
    """D-06, D-10: since CVE-2020-12912 the files are root's: refused, with the chip; one socket is a gap."""
    tree = SensorTree(tmp_path)
    chip = tree.amd_energy(1, 7 * J, 9 * J)
    tree.faults[chip / "energy3_input"] = errno.EACCES
    partly = HwmonReader(tmp_path, open_counter=tree.open_file)
    assert partly.method is Method.MEASURED
    assert partly.read().gaps == (Gap("package-1", "permission_denied"),)
    tree.faults[chip / "energy2_input"] = errno.EACCES
    refused = HwmonReader(tmp_path, open_counter=tree.open_file)
    assert refused.method is Method.UNAVAILABLE
    assert refused.reason == f"permission_denied: {tmp_path}/class/hwmon: amd_energy"
