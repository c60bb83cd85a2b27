"""`joulegram agent doctor`: what it finds on machines of each kind, and the least privilege it asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from joulegram_agent.doctor import Diagnosis, examine
from joulegram_agent.nvml_library import NO_PERMISSION
from joulegram_pipeline.energy import Method
from joulegram_service.cli_agent import app
from simulators.cgroupfs import IDS, UID, CgroupTree, in_docker, in_pod
from simulators.energy_machine import NO_LIBRARY, Machine
from simulators.hwmon import SensorTree
from simulators.nvml import NvmlSim, SimBoard, uuid

ROOT = Path(__file__).resolve().parents[2]


def examined(machine: Machine, nvml_library: str = NO_LIBRARY) -> Diagnosis:
    return examine(machine.root / "sys", machine.root / "proc", machine.root / "dev", nvml_library)


def test_a_machine_that_measures_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-20: every domain of every source by its name, what auto takes, and no advice."""
    diagnosis = examined(Machine(tmp_path, monkeypatch))
    assert diagnosis.measures
    assert (diagnosis.takes, diagnosis.method, diagnosis.advice) == ("powercap", Method.MEASURED, None)
    domains = ("package-0", "package-0/dram", "package-1", "package-1/dram")
    assert [sorted(each.domains) for each in diagnosis.found[:3]] == [list(domains)] * 3
    assert diagnosis.found[3].domains == ("package-0", "package-1")
    assert diagnosis.found[4].reason is not None
    assert "powercap  package-0" in diagnosis.text()
    assert "to do" not in diagnosis.text()


NEEDS = {
    "powercap that only root reads": (
        lambda machine: machine.with_powercap_refused().without_msr().without_perf().without_hwmon(),
        "CAP_DAC_READ_SEARCH",
    ),
    "perf that is not permitted, nor are registers, which would allow more; no powercap": (
        lambda machine: machine.without_powercap().without_msr().without_perf().without_hwmon(),
        "CAP_PERFMON",
    ),
    "registers alone, and they want a capability": (
        lambda machine: machine.without_powercap().without_msr().without_pmu().without_hwmon(),
        "CAP_SYS_RAWIO",
    ),
    "amd_energy that only root reads": (
        lambda machine: machine.without_powercap().without_msr().without_perf().with_hwmon_refused(),
        "CAP_DAC_READ_SEARCH",
    ),
    "powercap that a container's runtime hides": (
        lambda machine: machine.with_powercap_masked().without_msr().without_perf().without_hwmon(),
        "--sysfs-root",
    ),
}

WANTED = (
    "CAP_DAC_READ_SEARCH",
    "CAP_PERFMON",
    "CAP_SYS_RAWIO",
    "--sysfs-root",
    "NVreg_DeviceFileMode",
    "intel_rapl_msr",
)


@pytest.mark.parametrize(("prepare", "wanted"), NEEDS.values(), ids=NEEDS)
def test_the_least_privilege_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: object, wanted: str
) -> None:
    """D-06, D-10: one thing to do, the one that allows the least beside reading energy."""
    assert callable(prepare)
    diagnosis = examined(prepare(Machine(tmp_path, monkeypatch)))
    assert not diagnosis.measures
    assert diagnosis.takes == "model"
    assert diagnosis.advice is not None
    assert [name for name in WANTED if name in diagnosis.advice] == [wanted]
    assert diagnosis.text().endswith(diagnosis.advice)


def test_what_it_says_to_do_in_a_container_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """energy.md 3.6: no module is missing there: the reason says what hides the zones; the host's /sys shows them."""
    machine = Machine(tmp_path, monkeypatch).with_powercap_masked().without_msr().without_pmu().without_hwmon()
    found = examined(machine).found[0]
    assert found.reason is not None
    assert found.reason.startswith(f"masked: {tmp_path}/sys/class/powercap/intel-rapl leads nowhere, as in a container")
    mended = examine(tmp_path / "host", tmp_path / "proc", tmp_path / "dev", NO_LIBRARY)
    assert (mended.measures, mended.takes, mended.advice) == (True, "powercap", None)


@pytest.mark.parametrize("what", ["init_code", "find_code"])
def test_boards_that_are_refused_are_advised_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Issue 5: the library or a board refuses the user: its devices, after what the CPUs need."""
    board = SimBoard(uuid(1))
    sim = NvmlSim(tmp_path / "nvml", board)
    setattr(sim if what == "init_code" else board, what, NO_PERMISSION)
    sim.write()
    machine = Machine(tmp_path, monkeypatch)
    advice = examined(machine, sim.library).advice
    assert advice is not None
    assert [name for name in WANTED if name in advice] == ["NVreg_DeviceFileMode"]
    machine.with_powercap_refused().without_msr().without_perf().without_hwmon()
    advice = examined(machine, sim.library).advice
    assert advice is not None
    assert [name for name in WANTED if name in advice] == ["CAP_DAC_READ_SEARCH"]


def test_the_boards_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They measure no CPU, so they do not make a machine one that measures."""
    machine = Machine(tmp_path, monkeypatch).without_powercap().without_msr().without_perf().without_hwmon()
    board = SimBoard(uuid(1))
    diagnosis = examined(machine, NvmlSim(tmp_path / "nvml", board).library)
    assert diagnosis.found[4].domains == (board.domain,)
    assert diagnosis.takes == "model+nvml"
    assert not diagnosis.measures


def test_a_machine_without_anything_is_told_so(tmp_path: Path) -> None:
    """A VM, over the command line: exit 1, as people read it and as programs do."""
    plain = CliRunner().invoke(app, ["doctor", "--sysfs-root", str(tmp_path)])
    assert plain.exit_code == 1
    assert "powercap  nothing" in plain.output
    assert f"no_powercap: {tmp_path}/class/powercap" in plain.output
    machine = CliRunner().invoke(app, ["doctor", "--json", "--sysfs-root", str(tmp_path)])
    said = json.loads(machine.output)
    assert [each["source"] for each in said["sources"]] == ["powercap", "msr", "perf", "hwmon", "nvml"]
    assert "intel_rapl_msr" in said["advice"]
    documented = (ROOT / "docs/sources.md").read_text().partition("Its `--json` holds")[2].partition("It exits")[0]
    assert set(said) | set(said["sources"][0]) | set(said["auto"]) == set(re.findall(r"`(\w+)`", documented))


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_it_says_which_cgroups_there_are_and_what_containers_it_sees(tmp_path: Path, version: str) -> None:
    """Issue 5, deliver 6: the version, and whether ids of containers can be read; a node without says why not."""
    cgroups = CgroupTree(tmp_path / "cgroup", version)
    for path in (in_pod(0), in_pod(1), in_docker(2)):
        cgroups.create(path)
    roots = ["--sysfs-root", str(tmp_path), "--proc-root", str(tmp_path), "--cgroup-root"]
    plain = CliRunner().invoke(app, ["doctor", *roots, str(cgroups.root)])
    assert f"cgroups   {version}, {len(cgroups.used_ns)} read, containers: 3, pods: 1\n" in plain.output
    said = json.loads(CliRunner().invoke(app, ["doctor", "--json", *roots, str(cgroups.root)]).output)["cgroups"]
    assert (said["containers"], said["pods"]) == (sorted(IDS[:3]), [UID])
    without = CliRunner().invoke(app, ["doctor", *roots, str(tmp_path / "none")])
    assert "cgroups   no_cgroups: " in without.output


def test_sensors_are_shown_beside(tmp_path: Path) -> None:
    """Issue 5: what a board's meter says, with its kind, or why it says nothing; they measure no CPU."""
    tree = SensorTree(tmp_path)
    tree.chip("power_meter", "ACPI000D:00", power1_average=210_500_000)
    tree.supply("BAT0", type="Battery", status="Full")
    diagnosis = examine(tmp_path, tmp_path, tmp_path, NO_LIBRARY)
    assert not diagnosis.measures
    assert "beside    hwmon/power_meter/ACPI000D:00/power1 (board): 210.5 W" in diagnosis.text()
    assert "beside    battery/BAT0 (battery): not_discharging: got 'Full', expected 'Discharging'" in diagnosis.text()
    assert [each["id"] for each in diagnosis.to_json()["beside"]] == [
        "battery/BAT0",
        "hwmon/power_meter/ACPI000D:00/power1",
    ]
