"""The modelled source, and which source is taken when."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_agent.cpu import JIFFY_NS, CpuCounter, CpuReading, CpuTimes, MachineCpu
from joulegram_agent.model import ModelReader
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.reader import NoEnergyReader
from joulegram_agent.sources import open_reader
from joulegram_pipeline.energy import Gap, Method
from joulegram_pipeline.errors import ConfigError
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

S = 1_000_000_000


def test_idle_and_busy_watts(tmp_path: Path) -> None:
    """D-12: two idle CPUs for 10 s spend 2 x 0.74 W; 5 s of CPU time adds 5 x (3.5 - 0.74) W."""
    proc, clock = FakeProc(tmp_path), ManualClock()
    reader = ModelReader(tmp_path, tmp_path / "sys", "no_powercap", clock=clock)
    first = reader.read()
    clock.advance(10 * S)
    proc.spend(5 * S // JIFFY_NS)
    second = reader.read()
    assert second.counters_uj["model/cpu"] - first.counters_uj["model/cpu"] == 14_800_000 + 13_800_000
    assert second.static_uj["model/cpu"] - first.static_uj["model/cpu"] == 14_800_000
    assert (reader.method, reader.source) == (Method.MODELLED, "model")
    assert reader.reason == (
        "no_powercap; modelled: 0.74 to 3.5 W a logical CPU by CPU time, row 'general mean' of "
        "https://www.cloudcarbonfootprint.org/docs/methodology/, error 60 %"
    )


def test_watts_can_be_given(tmp_path: Path) -> None:
    """D-12: whoever knows the machine gives its watts."""
    FakeProc(tmp_path, cpus=4)
    clock = ManualClock()
    reader = ModelReader(tmp_path, tmp_path / "sys", watts_idle=10, watts_max=20, clock=clock)
    reader.read()
    clock.advance(S)
    assert reader.read().counters_uj == {"model/cpu": 40_000_000}
    assert reader.reason == "modelled: 10 to 20 W a logical CPU, as given"


BAD_WATTS = [
    (-0.1, 3.5, "watts_idle"),
    (float("nan"), 3.5, "watts_idle"),
    (2.0, 1.0, "watts_max"),
    (1.0, float("inf"), "watts_max"),
]


@pytest.mark.parametrize(("idle", "maximum", "key"), BAD_WATTS)
def test_impossible_watts_are_refused(tmp_path: Path, idle: float, maximum: float, key: str) -> None:
    """D-08: watts that would give negative or endless energy are an error that names the key."""
    with pytest.raises(ConfigError, match=key) as caught:
        ModelReader(tmp_path, watts_idle=idle, watts_max=maximum)
    assert caught.value.key == key


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 30)), min_size=1, max_size=40))
def test_model_carries_what_is_below_a_microjoule(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    """D-12: however often it is read, the sum is the floor of the exact sum, static and dynamic each."""
    root = tmp_path_factory.mktemp("proc")
    proc, clock = FakeProc(root), ManualClock()
    reader = ModelReader(root, root / "sys", clock=clock)
    reader.read()
    for nanos, jiffies in steps:
        clock.advance(nanos)
        proc.spend(jiffies)
        reading = reader.read()
    static = Fraction("0.74") * 2 * sum(nanos for nanos, _ in steps) / 1_000
    dynamic = Fraction("2.76") * JIFFY_NS * sum(jiffies for _, jiffies in steps) / 1_000
    assert reading.static_uj["model/cpu"] == int(static)
    assert reading.counters_uj["model/cpu"] == int(static) + int(dynamic)


BAD_STATS = ["", "cpu\n", "cpu 1 2 3\n", "cpu a b c d e f g\ncpu0 1\n", "intr 5\n", "cpu 1 2 3 4 5 6 7\n"]


@pytest.mark.parametrize("text", BAD_STATS)
def test_unreadable_stat_is_a_gap(tmp_path: Path, text: str) -> None:
    """D-10: without CPU time there is no modelled energy: a gap, not 0 J."""
    FakeProc(tmp_path)
    (tmp_path / "stat").write_text(text)
    reading = ModelReader(tmp_path, tmp_path / "sys").read()
    assert reading.counters_uj == {}
    assert reading.gaps == (Gap("model/cpu", f"read_failed: {tmp_path / 'stat'}"),)


def test_busy_leaves_out_idle_iowait_and_steal(tmp_path: Path) -> None:
    """D-12: a stolen CPU spent nothing here."""
    proc = FakeProc(tmp_path)
    machine = MachineCpu(tmp_path)
    before = machine.read()
    proc.steal = 500
    proc.spend(3, idle_jiffies=90)
    after = machine.read()
    assert before is not None
    assert after == CpuReading(before.busy_jiffies + 3, 2)


def test_a_count_that_falls_adds_nothing() -> None:
    """D-12: and counting goes on from where it fell to."""
    counter = CpuCounter()
    for jiffies in (1_000, 1_003, 1_001, 1_001, 1_005):
        counter.add(CpuReading(jiffies, 2), S)
    assert counter.times == CpuTimes(7 * JIFFY_NS, 0)


@given(readings=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 8), st.integers(0, S)), max_size=30))
def test_machine_counters_never_fall(readings: list[tuple[int, int, int]]) -> None:
    """Whatever the kernel shows, neither the time spent nor the time there was does."""
    counter, at_ns, last = CpuCounter(), 0, CpuTimes(0, 0)
    for jiffies, cpus, step_ns in readings:
        at_ns += step_ns
        counter.add(CpuReading(jiffies, cpus), at_ns)
        times = counter.times
        assert times.busy_ns >= last.busy_ns
        assert times.total_ns >= last.total_ns
        last = times


def test_auto_takes_counters_where_they_are(tmp_path: Path) -> None:
    """S0-20, S1-18: counters come before the model."""
    PowercapTree(tmp_path)
    reader = open_reader(sysfs_root=tmp_path)
    assert isinstance(reader, PowercapReader)
    assert (reader.source, reader.method, reader.reason) == ("powercap", Method.MEASURED, None)


def test_auto_models_and_keeps_the_reason(tmp_path: Path) -> None:
    """D-12, S1-18: without counters energy is modelled, says so, and says why."""
    reader = open_reader("auto", sysfs_root=tmp_path)
    assert isinstance(reader, ModelReader)
    assert reader.reason is not None
    assert reader.reason.startswith("no_powercap: ")


@pytest.mark.parametrize(("source", "reason"), [("powercap", "no_powercap: "), ("none", "disabled")])
def test_no_energy_is_no_error(tmp_path: Path, source: str, reason: str) -> None:
    """D-10: asked for counters that are not there, or for none: no domains and a reason."""
    reader = open_reader(source, sysfs_root=tmp_path)
    assert isinstance(reader, NoEnergyReader)
    assert (reader.source, reader.method) == ("none", Method.UNAVAILABLE)
    assert reader.reason is not None
    assert reader.reason.startswith(reason)
    assert reader.read().counters_uj == {}


def test_unknown_source_is_refused() -> None:
    """S0-20: the error quotes what was got and lists what may be."""
    with pytest.raises(ConfigError, match=r"'rapl'.*auto, powercap, msr, perf, hwmon, nvml, model, none"):
        open_reader("rapl")
