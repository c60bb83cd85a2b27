"""Traps of RAPL that no test of one reader stands for: ranges, units, other drivers' names, and who may read."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest

from joulegram_agent.msr import MsrReader
from joulegram_agent.msr_registers import DRAM_SHIFT
from joulegram_agent.perf import PerfReader
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sensor_sources import open_sensors
from joulegram_pipeline.energy import Gap, Method
from simulators.agent_days import Days
from simulators.msr import AMD_MACHINE, MsrMachine
from simulators.perf import PowerPmu
from simulators.powercap import DRAM_RANGE_UJ, INTEL_RANGE_UJ, PowercapTree
from simulators.procfs import ManualClock

J = 1_000_000
S = 1_000_000_000
UNITS = 2**32 - 1
PSYS_RANGE_UJ = 4_294_967_295_000_000
OLD_RANGE_UJ = 262_143_999_938
SOURCES = (Path(__file__).resolve().parents[2] / "docs/sources.md").read_text()

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NEEDS_SETPRIV = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv of util-linux is not installed")


def test_psys_in_whole_joules_is_counted(tmp_path: Path) -> None:
    """energy.md 3.2: psys of Sapphire Rapids counts in 1 J up to 4.29 GJ: 0.5 W are 0, 1, 0, 1 J, and no gap."""
    tree, clock = PowercapTree(tmp_path, psys=True), ManualClock()
    (tree.zone_path("psys") / "max_energy_range_uj").write_text(f"{PSYS_RANGE_UJ}\n")
    spent_uj = PSYS_RANGE_UJ - 6 * J
    tree.reset("psys", spent_uj)
    sensors = open_sensors(tmp_path, tmp_path, clock)
    sensors.sample()
    for half_joules in range(1, 11):
        clock.advance(S)
        tree.reset("psys", spent_uj + half_joules * J // 2 // J * J)
        sensors.sample()
    (psys,) = sensors.totals
    assert (psys.sensor.max_range_uj, psys.energy_uj, dict(psys.gaps)) == (PSYS_RANGE_UJ, 5 * J, {})
    # Past its end: 2 J, of which the file does not tell the one between its largest value and 0.
    clock.advance(S)
    tree.reset("psys", 0)
    sensors.sample()
    (psys,) = sensors.totals
    assert (psys.energy_uj, dict(psys.gaps)) == (6 * J + 1, {})
    assert 5 * J + 2 * J - psys.energy_uj < J
    sensors.close()


@pytest.mark.parametrize("range_uj", [INTEL_RANGE_UJ, OLD_RANGE_UJ], ids=["now", "older kernels"])
def test_each_kernel_wraps_at_its_own_range(tmp_path: Path, range_uj: int) -> None:
    """energy.md 3.2: older kernels say 262143999938 uJ of the same register: the file's, never a constant's."""
    tree = PowercapTree(tmp_path / "sys", dram=False, package_range_uj=range_uj, start_uj=range_uj - 150 * J)
    node = Days(tree, tmp_path)
    node.run(3, {"package-0": 100}, millis=100)
    assert tree.counter_uj("package-0") == 150 * J - 1
    assert node.sampler.totals.energy_uj == {"package-0": 300 * J}
    assert node.sampler.totals.gaps == {}


@pytest.mark.parametrize(
    ("range_uj", "shift", "said"),
    [(INTEL_RANGE_UJ, 14, r"([0-9.]+) ppm low"), (DRAM_RANGE_UJ, DRAM_SHIFT, r"([0-9.]+) % high")],
    ids=["package", "dram"],
)
def test_what_powercap_loses_by_its_unit_is_said(range_uj: int, shift: int, said: str) -> None:
    """energy.md 3.2: powercap's unit is whole nanojoules: docs/sources.md has by how much that is off, as it is."""
    off = Fraction(range_uj, UNITS) / Fraction(J, 2**shift) - 1
    match = re.search(said, SOURCES)
    assert match is not None
    scale = -1_000_000 if "ppm" in said else 100
    assert float(match[1]) == round(float(off * scale), len(match[1].partition(".")[2]))


def test_tpmi_zones_are_read_like_any(tmp_path: Path) -> None:
    """energy.md 3.3: intel_rapl_tpmi.c registers the same control type; it has no cores, and may have psys."""
    tree = PowercapTree(tmp_path, packages=2, core=False, psys=True, reverse=True)
    reader = PowercapReader(tmp_path)
    assert [domain.id for domain in reader.domains()] == sorted(tree.truth_uj)
    assert {entry.name.partition(":")[0] for entry in (tmp_path / "class/powercap").iterdir()} == {"intel-rapl"}
    assert reader.method is Method.MEASURED


@pytest.mark.parametrize("register", ["unit", "package"])
def test_a_kernel_that_is_locked_down_is_a_permission(tmp_path: Path, register: str) -> None:
    """energy.md 3.3: the device opens and each read is EPERM, as where lock-down forbids it: the reason, never 0 J."""
    machine = MsrMachine(tmp_path, packages=2)
    machine.faults = {(cpu, machine.addresses[register]): errno.EPERM for cpu in machine.place_of}
    reader = MsrReader(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc", open_msr=machine.open_msr)
    assert reader.method is Method.UNAVAILABLE
    assert reader.reason is not None
    assert reader.reason.startswith(f"permission_denied: {tmp_path}/dev/cpu/0/msr: got EPERM, ")
    reading = reader.read()
    assert (reading.counters_uj, {gap.reason.partition(":")[0] for gap in reading.gaps}) == ({}, {"permission_denied"})


def test_lock_down_while_reading_is_a_gap(tmp_path: Path) -> None:
    """energy.md 3.3: a kernel that is locked down later: a gap for as long as it lasts, and nothing counted twice."""
    machine = MsrMachine(tmp_path, dram=False)
    reader = MsrReader(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc", open_msr=machine.open_msr)
    machine.faults = {(cpu, 0x611): errno.EPERM for cpu in machine.place_of}
    assert reader.read().gaps == (Gap("package-0", "permission_denied"),)


def test_power_core_is_not_added_to_packages(tmp_path: Path) -> None:
    """energy.md 3.4: newer kernels have a PMU of each core beside: its energy lies inside the package's."""
    machine = MsrMachine(tmp_path, **AMD_MACHINE)
    pmu = PowerPmu(machine)
    cores = pmu.path.with_name("power_core")
    shutil.copytree(pmu.path, cores)
    (cores / "type").write_text("19\n")
    (cores / "cpumask").write_text("0-1\n")
    for name in ("energy-pkg", "energy-pkg.scale", "energy-pkg.unit"):
        (cores / "events" / name).rename(cores / "events" / name.replace("pkg", "core"))
    reader = PerfReader(tmp_path / "sys", tmp_path / "proc", open_counter=pmu.open_counter)
    assert [domain.id for domain in reader.domains()] == ["package-0"]
    assert {event.type for event in pmu.opened} == {int((pmu.path / "type").read_text())}


WHO_MAY = """
import os, sys
from joulegram_agent.powercap import PowercapReader
from pathlib import Path
if len(sys.argv) > 2:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
reader = PowercapReader(Path(sys.argv[1]))
sets = dict(line.split(":") for line in open("/proc/self/status").read().splitlines() if line.startswith("Cap"))
print(reader.method.value, int(sets["CapEff"], 16), int(sets["CapBnd"], 16) >> 2 & 1, reader.reason)
"""


@NEEDS_ROOT
@NEEDS_SETPRIV
def test_root_without_a_capability_reads_its_own_files(tmp_path: Path) -> None:
    """energy.md 3.6: uid 0, all capabilities dropped (k8s `drop: [ALL]`), files of mode 0400: they are its own."""
    PowercapTree(tmp_path)
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    run = subprocess.run([*bare, sys.executable, "-c", WHO_MAY, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout.split(maxsplit=3) == ["measured", "0", "0", "None\n"]


@NEEDS_ROOT
def test_a_capability_in_the_bounding_set_alone_reads_nothing() -> None:
    """energy.md 3.6: k8s `capabilities.add` for uid 65534: bounding, not effective: said, not read as success."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        PowercapTree(Path(folder))
        line = [sys.executable, "-c", WHO_MAY, folder, "nobody"]
        run = subprocess.run(line, capture_output=True, text=True, check=True)
    method, effective, bounding, reason = run.stdout.split(maxsplit=3)
    if bounding == "0":
        pytest.skip("this process has not the capability itself")
    assert (method, effective) == ("unavailable", "0")
    assert reason.startswith(f"permission_denied: {folder}/class/powercap/intel-rapl:0")
