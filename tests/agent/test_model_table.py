"""Watts by microarchitecture: which row a processor gets, what its reason says, and what frequency makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent import model_table
from joulegram_agent.cpu import JIFFY_NS
from joulegram_agent.cpu_frequency import MAX_CPUS, CpuFrequency
from joulegram_agent.model import ModelReader
from joulegram_agent.model_table import GENERAL, GENERAL_ERROR_PERCENT, ROWS, SANDY_BRIDGE
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

S = 1_000_000_000

CPUS = {
    "Skylake": ("GenuineIntel", 6, 85, 4, "Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz"),
    "Cascade Lake": ("GenuineIntel", 6, 85, 7, "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz"),
    "Ice Lake": ("GenuineIntel", 6, 106, 6, "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz"),
    "Sapphire Rapids": ("GenuineIntel", 6, 143, 8, "Intel(R) Xeon(R) Platinum 8488C"),
    "Coffee Lake": ("GenuineIntel", 6, 158, 10, "Intel(R) Xeon(R) E-2176G CPU @ 3.70GHz"),
    "EPYC 2nd Gen": ("AuthenticAMD", 23, 49, 0, "AMD EPYC 7R32"),
    "EPYC 4th Gen": ("AuthenticAMD", 25, 17, 1, "AMD EPYC 9R14"),
}
UNKNOWN = {
    "Cooper Lake": ("GenuineIntel", 6, 85, 11, "Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz"),
    "a desktop of a server's model": ("AuthenticAMD", 25, 17, 1, "AMD Ryzen Threadripper 7980X 64-Cores"),
    "a laptop": ("GenuineIntel", 6, 158, 10, "Intel(R) Core(TM) i7-8750H CPU @ 2.20GHz"),
    "EPYC 5th Gen, whose figures are left out": ("AuthenticAMD", 26, 2, 1, "AMD EPYC 9575F"),
}


def cpuinfo(root: Path, cpu: tuple[str, int, int, int, str], flags: str = "fpu vme") -> None:
    vendor, family, model, stepping, name = cpu
    (root / "cpuinfo").write_text(
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {name}\nstepping\t: {stepping}\nflags\t\t: {flags}\n\nprocessor\t: 1\nstepping\t: 99\n\n"
    )


def frequencies(root: Path, *khz: tuple[object, object]) -> None:
    """The current and highest frequency of each CPU, under the sysfs root `root`."""
    cpus = root / "devices/system/cpu"
    cpus.mkdir(parents=True, exist_ok=True)
    (cpus / "online").write_text(f"0-{len(khz) - 1}\n")
    for number, (now_khz, most_khz) in enumerate(khz):
        folder = cpus / f"cpu{number}/cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling_cur_freq").write_text(f"{now_khz}\n")
        (folder / "cpuinfo_max_freq").write_text(f"{most_khz}\n")


def reason(root: Path) -> str:
    made = ModelReader(root, root / "sys").reason
    assert made is not None
    return made


@pytest.mark.parametrize(("name", "cpu"), CPUS.items(), ids=CPUS)
def test_a_known_processor_has_its_row(tmp_path: Path, name: str, cpu: tuple[str, int, int, int, str]) -> None:
    """Issue 5, D-12: vendor, family, model and stepping choose the watts; the reason names row, source and error."""
    FakeProc(tmp_path)
    cpuinfo(tmp_path, cpu)
    (row,) = [row for row in ROWS if row.name == name]
    assert reason(tmp_path) == (
        f"modelled: {row.idle_mw / 1000} to {row.max_mw / 1000} W a logical CPU by CPU time, row {name!r} of "
        f"{model_table.SOURCE}, error 40 %"
    )


@pytest.mark.parametrize("cpu", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_processor_has_the_mean(tmp_path: Path, cpu: tuple[str, int, int, int, str]) -> None:
    """Issue 5: what no row is of gets the general mean and its larger error, not a neighbour's figures."""
    FakeProc(tmp_path)
    cpuinfo(tmp_path, cpu)
    assert "row 'general mean' of " in reason(tmp_path)
    assert reason(tmp_path).endswith("error 60 %")


def test_virtual_machines_and_laptops_are_said(tmp_path: Path) -> None:
    """Issue 5: the table is of whole servers: where that is not what runs, the reason says so."""
    FakeProc(tmp_path)
    cpuinfo(tmp_path, CPUS["Skylake"], flags="fpu hypervisor vme")
    assert reason(tmp_path).endswith(
        "error 40 %, and more: a virtual machine, whose host may share a CPU among several"
    )
    cpuinfo(tmp_path, UNKNOWN["a laptop"])
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "chassis_type").write_text("10\n")
    assert reason(tmp_path).endswith("error 60 %, and more: a laptop, and the table is of servers")
    (dmi / "chassis_type").write_text("23\n")
    assert reason(tmp_path).endswith("error 60 %")


def test_the_rows_are_sound() -> None:
    """D-13: idle below busy, no row outside what a thread can draw; the mean's error covers the rows it stands for."""
    assert len(ROWS) == 15
    for row in (*ROWS, GENERAL):
        assert 0 < row.idle_mw < row.max_mw < 10_000
        assert row.source.startswith("https://")
    for row in ROWS:
        if row is not SANDY_BRIDGE:
            assert abs(row.max_mw - GENERAL.max_mw) * 100 <= GENERAL_ERROR_PERCENT * GENERAL.max_mw


def test_frequency_scales_the_dynamic_part_alone(tmp_path: Path) -> None:
    """Issue 5: half the highest frequency is half of the busy watts above idle, for the time it was so; idle stays."""
    proc, clock = FakeProc(tmp_path), ManualClock()
    frequencies(tmp_path / "sys", (1_000_000, 4_000_000), (3_000_000, 4_000_000))
    reader = ModelReader(tmp_path, tmp_path / "sys", clock=clock)
    assert reader.reason is not None
    assert "by CPU time and frequency, row" in reader.reason
    before = reader.read().counters_uj["model/cpu"]
    clock.advance(10 * S)
    proc.spend(5 * S // JIFFY_NS)
    half = reader.read()
    assert half.counters_uj["model/cpu"] - before == 14_800_000 + 13_800_000 // 2
    assert half.static_uj["model/cpu"] == 14_800_000
    frequencies(tmp_path / "sys", (4_000_000, 4_000_000), (4_000_000, 4_000_000))
    clock.advance(10 * S)
    proc.spend(5 * S // JIFFY_NS)
    assert reader.read().counters_uj["model/cpu"] - half.counters_uj["model/cpu"] == 14_800_000 + 13_800_000


def test_given_watts_are_not_scaled(tmp_path: Path) -> None:
    """Issue 5: explicit watts win over the table, and were measured at the machine's own frequencies."""
    proc, clock = FakeProc(tmp_path), ManualClock()
    cpuinfo(tmp_path, CPUS["Skylake"])
    frequencies(tmp_path / "sys", (1_000_000, 4_000_000))
    reader = ModelReader(tmp_path, tmp_path / "sys", watts_idle=1, watts_max=5, clock=clock)
    reader.read()
    clock.advance(S)
    proc.spend(S // JIFFY_NS)
    assert reader.read().counters_uj == {"model/cpu": 2_000_000 + 4_000_000}
    partly = ModelReader(tmp_path, tmp_path / "sys", watts_idle=1)
    assert partly.reason == "modelled: 1 to 4.104 W a logical CPU, as given"


SHARES = {
    "above the highest is the highest": ([(5_000_000, 4_000_000)], 1_000_000),
    "next to nothing is a tenth": ([(1, 4_000_000)], 100_000),
    "a CPU that says nothing is left out": ([(2_000_000, 4_000_000), ("<unknown>", 4_000_000)], 500_000),
    "a highest of 0 is none": ([(2_000_000, 0)], None),
}


@pytest.mark.parametrize(("khz", "share"), SHARES.values(), ids=SHARES)
def test_the_share_is_bounded(tmp_path: Path, khz: list[tuple[object, object]], share: int | None) -> None:
    """Issue 5: between a tenth and 1, from the CPUs that say both frequencies; None where none does."""
    frequencies(tmp_path, *khz)
    assert CpuFrequency(tmp_path).share_ppm(0) == share


def test_frequencies_are_read_once_a_second_and_of_few_cpus(tmp_path: Path) -> None:
    """Each read may interrupt its CPU: 16 of 64 at most, spread evenly, and not ten times a second."""
    frequencies(tmp_path, *[(1_000_000, 4_000_000)] * 64)
    frequency = CpuFrequency(tmp_path)
    assert frequency.share_ppm(0) == 250_000
    frequencies(tmp_path, *[(4_000_000 if number % 4 == 0 else 1, 4_000_000) for number in range(64)])
    assert frequency.share_ppm(S - 1) == 250_000
    assert frequency.share_ppm(S) == 1_000_000
    assert MAX_CPUS == 16


def test_a_machine_without_cpufreq_is_not_scaled(tmp_path: Path) -> None:
    """Most virtual machines: the share is left out, and the reason does not speak of frequency."""
    FakeProc(tmp_path)
    assert CpuFrequency(tmp_path / "sys").share_ppm(0) is None
    assert " by CPU time, row" in reason(tmp_path)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 3 * S), st.integers(0, 30), st.integers(1, 5_000_000)), max_size=20))
def test_law_of_the_model(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int]]) -> None:
    """D-08: whatever the load and the frequencies, neither counter falls, and static is never above the whole."""
    root = tmp_path_factory.mktemp("model")
    proc, clock = FakeProc(root), ManualClock()
    frequencies(root / "sys", (4_000_000, 4_000_000))
    reader, last = ModelReader(root, root / "sys", clock=clock), (0, 0)
    for nanos, jiffies, khz in steps:
        frequencies(root / "sys", (khz, 4_000_000))
        clock.advance(nanos)
        proc.spend(jiffies)
        reading = reader.read()
        now = (reading.counters_uj["model/cpu"], reading.static_uj["model/cpu"])
        assert last[0] <= now[0]
        assert last[1] <= now[1] <= now[0]
        assert now[0] - now[1] >= last[0] - last[1] - 1
        last = now
