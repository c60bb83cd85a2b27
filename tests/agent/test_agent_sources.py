"""Which of several sources is taken, and that they mean the same by the same domain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from joulegram_agent.main import open_agent
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.reader import NoEnergyReader
from joulegram_agent.sources import COUNTERS, SOURCES
from joulegram_pipeline.energy import DomainKind, Method
from simulators.energy_machine import Machine
from simulators.nvml import NvmlSim, SimBoard, uuid


@pytest.mark.parametrize(("packages", "dies"), [(1, 1), (2, 1), (2, 2), (11, 1)])
def test_a_domain_has_one_id_whatever_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: int, dies: int
) -> None:
    """D-05, D-07: every source finds the same packages, dies and DRAM under the same ids, in the same order."""
    machine = Machine(tmp_path, monkeypatch, packages=packages, dies=dies)
    *found, sockets = [[(each.id, each.kind) for each in machine.open(source).domains()] for source in COUNTERS]
    assert len(found[0]) == 2 * packages * dies
    assert found[0] == found[1] == found[2]
    if dies == 1:  # of sockets alone does the last one know
        assert sockets == [(name, kind) for name, kind in found[0] if kind is DomainKind.CPU]


@pytest.mark.parametrize("source", COUNTERS)
def test_a_source_that_is_named_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """S0-20: it measures, and has nothing to explain."""
    reader = Machine(tmp_path, monkeypatch).open(source)
    assert (reader.source, reader.method, reader.reason) == (source, Method.MEASURED, None)


def test_auto_takes_powercap_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-20: where all can be read it is powercap; no register and no counter is opened beside it."""
    machine = Machine(tmp_path, monkeypatch)
    reader = machine.open()
    assert isinstance(reader, PowercapReader)
    assert reader.reason is None
    assert (machine.registers.opened, machine.pmu.opened) == ([], [])


def test_auto_takes_msr_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-20, D-06: without powercap it is msr, measured; the reason names powercap's."""
    reader = Machine(tmp_path, monkeypatch).without_powercap().open()
    assert (reader.source, reader.method) == ("msr", Method.MEASURED)
    assert reader.reason == f"no_powercap: {tmp_path}/sys/class/powercap: No such file or directory"


def test_auto_takes_perf_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-20, D-06: without both it is perf; the reason names each before it, in order."""
    reader = Machine(tmp_path, monkeypatch).without_powercap().without_msr().open()
    assert (reader.source, reader.method) == ("perf", Method.MEASURED)
    assert reader.reason == (
        f"no_powercap: {tmp_path}/sys/class/powercap: No such file or directory; "
        f"permission_denied: {tmp_path}/dev/cpu/0/msr: got EPERM, expected the capability CAP_SYS_RAWIO"
    )


def test_auto_models_and_says_why_not_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """D-06, D-12: without any counter it is the model, with all reasons, and no warning: most machines are such."""
    reader = Machine(tmp_path, monkeypatch).without_powercap().without_msr().without_perf().without_hwmon().open()
    assert (reader.source, reader.method) == ("model", Method.MODELLED)
    assert caplog.messages == []
    assert reader.reason is not None
    one, two, rest = reader.reason.split("; ", 2)
    three, modelled = rest.split("; no_hwmon: ")
    assert one.startswith("no_powercap: ")
    assert "CAP_SYS_RAWIO" in two
    assert "CAP_PERFMON" in three
    assert modelled.startswith(
        f"{tmp_path}/sys/class/hwmon shows no chip amd_energy, expected a driver of package energy; modelled: "
    )


@pytest.mark.parametrize(("source", "missing"), [("msr", "CAP_SYS_RAWIO"), ("perf", "CAP_PERFMON")])
def test_a_named_source_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, missing: str
) -> None:
    """D-10: asked for one that cannot be read, it is no energy and the reason, though powercap could be read."""
    reader = Machine(tmp_path, monkeypatch).without_msr().without_perf().open(source)
    assert isinstance(reader, NoEnergyReader)
    assert reader.reason is not None
    assert missing in reader.reason


@pytest.mark.parametrize("source", ["powercap", "model"])
def test_auto_puts_the_boards_beside_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """S0-20: whatever measures or models the CPUs; the method is mixed where one is modelled."""
    machine = Machine(tmp_path, monkeypatch)
    if source == "model":
        machine.without_powercap().without_msr().without_perf().without_hwmon()
    board = SimBoard(uuid(1))
    reader = machine.open(nvml_library=NvmlSim(tmp_path / "nvml", board).library)
    assert reader.source == f"{source}+nvml"
    assert reader.method is (Method.MEASURED if source == "powercap" else Method.MIXED)
    assert [domain.id for domain in reader.domains()][-1] == board.domain
    assert board.domain in reader.read().counters_uj
    reader.close()


def test_the_boards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--source nvml`; and where there is no library it is no energy and the reason."""
    machine = Machine(tmp_path, monkeypatch)
    board = SimBoard(uuid(1))
    reader = machine.open("nvml", NvmlSim(tmp_path / "nvml", board).library)
    assert (reader.source, [domain.id for domain in reader.domains()]) == ("nvml", [board.domain])
    reader.close()
    none = machine.open("nvml")
    assert isinstance(none, NoEnergyReader)
    assert none.reason is not None
    assert none.reason.startswith("no_nvml: ")


def test_the_agent_takes_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-20: dev, sys and proc may be mounted elsewhere, as in a container."""
    machine = Machine(tmp_path, monkeypatch)
    agent = open_agent("msr", sysfs_root=tmp_path / "sys", proc_root=tmp_path / "proc", dev_root=tmp_path / "dev")
    assert agent.reader.source == "msr"
    assert machine.registers.opened == [0, 1]
    agent.reader.close()


def test_the_page_lists_the_sources() -> None:
    """docs/sources.md: a row for each source that reads something, in the order in which they are tried."""
    rows = re.findall(r"^\| `(\w+)` \|", (Path(__file__).parents[2] / "docs" / "sources.md").read_text(), re.MULTILINE)
    assert rows == [source for source in SOURCES if source not in {"auto", "none"}]
