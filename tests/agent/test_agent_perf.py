"""What the perf reader finds in the kernel's power PMU, and what it says where it finds nothing."""

from __future__ import annotations

import errno
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.counters import MAX_POWER_W, Accumulator
from joulegram_agent.perf import PerfReader
from joulegram_agent.perf_event import READ_FORMAT, PerfCounter, PerfEvent
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method
from simulators.msr import MsrMachine
from simulators.perf import PMU_TYPE, PowerPmu
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000
S = 1_000_000_000
RANGE_UJ = 65_536 * J - 1
PARANOID_AND_MORE = (
    "perf_event_paranoid is 2, expected 0 or less, or the capability CAP_PERFMON, and no filter of system calls "
    "against perf_event_open"
)


def made(root: Path, *, cpus: str = "0", **options: Any) -> PowerPmu:
    return PowerPmu(MsrMachine(root, **options), cpus)


def reading(pmu: PowerPmu, **options: Any) -> PerfReader:
    root = pmu.machine.root
    return PerfReader(root / "sys", root / "proc", open_counter=pmu.open_counter, **options)


def ids(reader: PerfReader) -> list[str]:
    return [domain.id for domain in reader.domains()]


def test_packages_and_dram_alone(tmp_path: Path) -> None:
    """D-03, D-04, D-07: of five events two are counted, on the one CPU of each socket that the PMU names."""
    pmu = made(tmp_path, cpus="0-1", packages=2, cpus_per_die=8)
    reader = reading(pmu)
    assert (reader.source, reader.method, reader.reason) == ("perf", Method.MEASURED, None)
    assert reader.domains() == (
        Domain("package-0", DomainKind.CPU, RANGE_UJ),
        Domain("package-0/dram", DomainKind.DRAM, RANGE_UJ),
        Domain("package-1", DomainKind.CPU, RANGE_UJ),
        Domain("package-1/dram", DomainKind.DRAM, RANGE_UJ),
    )
    assert pmu.opened == [PerfEvent(PMU_TYPE, config, cpu) for cpu in (0, 1) for config in (2, 3)]
    pmu.machine.advance({"package-0": 2**14 * 3, "package-1": 2**14 * 5, "package-1/dram": 2**16 * 7})
    assert reader.read().counters_uj == {
        "package-0": 3 * J,
        "package-0/dram": 0,
        "package-1": 5 * J,
        "package-1/dram": 7 * J,
    }


def test_amd_has_no_dram_and_one_counter_a_package(tmp_path: Path) -> None:
    """D-04, D-47: older kernels name a CPU of each AMD die, whose counters are the same: one of them is opened."""
    pmu = made(
        tmp_path, cpus="0-3", vendor="AuthenticAMD", family=0x17, packages=2, dies=2, by_die=False, dram=False, shift=16
    )
    assert ids(reading(pmu)) == ["package-0", "package-1"]
    assert [event.cpu for event in pmu.opened] == [0, 2]


def test_dies_of_intel_count_on_their_own(tmp_path: Path) -> None:
    """D-07: a counter for each die, named as powercap names its zones."""
    pmu = made(tmp_path, cpus="0,1", dies=2, dram=False)
    assert ids(reading(pmu)) == ["package-0-die-0", "package-0-die-1"]


def test_microjoules_are_whole_and_exact(tmp_path: Path) -> None:
    """S3-07: a unit of 2^-14 J is 61.03515625 uJ; read one by one, 2^14 of them make 1 J and nothing is lost."""
    pmu = made(tmp_path, dram=False)
    reader = reading(pmu)
    seen = []
    for _ in range(2**8):
        pmu.machine.advance({"package-0": 2**6})
        seen.append(reader.read().counters_uj["package-0"])
    assert seen == [2**6 * step * J // 2**14 for step in range(1, 2**8 + 1)]
    assert seen[-1] == J


def test_no_pmu_is_a_reason(tmp_path: Path) -> None:
    """S0-20: no power PMU, as in a virtual machine: no domains, and the file that is missing."""
    MsrMachine(tmp_path)
    reader = PerfReader(tmp_path / "sys", tmp_path / "proc")
    assert (reader.domains(), reader.method) == ((), Method.UNAVAILABLE)
    pmu = tmp_path / "sys/bus/event_source/devices/power"
    assert reader.reason == f"no_perf: {pmu}/type: got ENOENT, expected the kernel's power PMU"
    assert reader.read().counters_uj == {}


NOT_UNDERSTOOD = {
    "a type that is none": ("type", "x", "got 'x', expected a whole number"),
    "a mask without CPUs": ("cpumask", "", "no CPU whose package is known"),
    "a mask of CPUs that are not there": ("cpumask", "9", "no CPU whose package is known"),
    "no event for packages": ("events/energy-pkg", None, "got ENOENT, expected the kernel's power PMU"),
    "an event with more terms": ("events/energy-pkg", "event=0x02,umask=1", "expected event=0xNN"),
    "another place for the event": ("format/event", "config:0-15", "got 'config:0-15', expected 'config:0-7'"),
    "another unit": ("events/energy-pkg.unit", "Watts", "got 'Watts', expected 'Joules'"),
    "no unit": ("events/energy-pkg.unit", None, "got ENOENT, expected the kernel's power PMU"),
    "a scale that is no power of 2": ("events/energy-pkg.scale", "2.3e-10", "got '2.3e-10', expected 2^-n"),
    "a scale above 1": ("events/energy-pkg.scale", "2", "got '2', expected 2^-n"),
    "a scale of 0": ("events/energy-ram.scale", "0", "got '0', expected 2^-n"),
    "a scale too fine": ("events/energy-pkg.scale", "1.7763568394002504646778106689453125e-15", "expected 2^-n"),
    "a scale of words": ("events/energy-pkg.scale", "nan", "got 'nan', expected 2^-n"),
    "a scale without end": ("events/energy-pkg.scale", "1e-99999999", "expected 2^-n"),
}


@pytest.mark.parametrize(("name", "text", "said"), NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
def test_what_is_not_understood_is_refused(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    """D-10: a tree of another form is a reason that quotes it; nothing is guessed and nothing opened."""
    pmu = made(tmp_path)
    pmu.write(name, text)
    reader = reading(pmu)
    assert reader.reason is not None
    assert reader.reason.startswith(f"no_perf: {pmu.path / name}: ")
    assert said in reader.reason
    assert (pmu.opened, reader.domains()) == ([], ())


def test_other_scales_of_a_power_of_two_are_understood(tmp_path: Path) -> None:
    """S3-07: the scale is read, not assumed."""
    pmu = made(tmp_path, dram=False)
    pmu.write("events/energy-pkg.scale", "0.5")
    reader = reading(pmu)
    pmu.machine.advance({"package-0": 1})
    assert reader.read().counters_uj == {"package-0": (2 ** (32 - 14) * J // 2) % (RANGE_UJ + 1)}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_refusals_name_the_setting_and_the_capability(tmp_path: Path, number: int) -> None:
    """D-06: what perf_event_paranoid is, and which capability would do instead."""
    pmu = made(tmp_path, dram=False)
    pmu.refuses = number
    reader = reading(pmu)
    assert reader.method is Method.UNAVAILABLE
    assert reader.reason == (
        f"permission_denied: {pmu.path} on CPU 0: got {errno.errorcode[number]}; {PARANOID_AND_MORE}"
    )
    assert reader.read().gaps == (Gap("package-0", reader.reason),)


def test_a_setting_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """D-06: without the file the refusal is still a refusal."""
    pmu = made(tmp_path, dram=False)
    pmu.refuses = errno.EACCES
    (tmp_path / "proc/sys/kernel/perf_event_paranoid").unlink()
    assert "perf_event_paranoid cannot be read, expected" in str(reading(pmu).reason)


OPENINGS = [(errno.EINVAL, "no_perf"), (errno.ENODEV, "domain_vanished"), (errno.EMFILE, "read_failed")]


@pytest.mark.parametrize(("number", "code"), OPENINGS)
def test_other_errors_of_opening_are_reasons(tmp_path: Path, number: int, code: str) -> None:
    """D-06, D-10: the error's name, and where it came from."""
    pmu = made(tmp_path, dram=False)
    pmu.refuses = number
    assert reading(pmu).reason == f"{code}: {pmu.path} on CPU 0: got {errno.errorcode[number]}"


def test_read_errors_are_gaps(tmp_path: Path) -> None:
    """D-06, D-10: what is refused at a read is a gap with its reason, and the other counter is read."""
    pmu = made(tmp_path)
    reader = reading(pmu)
    pmu.faults = {"package-0": errno.EIO}
    found = reader.read()
    assert found.gaps == (Gap("package-0", "read_failed: EIO"),)
    assert found.counters_uj == {"package-0/dram": 0}


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "domain_vanished: the kernel gave the counter up"), (8, "read_failed: got 8 bytes, expected 16")],
)
def test_short_reads_are_gaps(tmp_path: Path, size: int, reason: str) -> None:
    """D-05, D-10: the kernel answers nothing for a counter it gave up; a part of an answer is none."""
    pmu = made(tmp_path, dram=False)
    reader = reading(pmu)
    pmu.read_bytes = size
    assert reader.read().gaps == (Gap("package-0", reason),)


def test_a_counter_that_no_longer_counts_is_a_gap(tmp_path: Path) -> None:
    """D-10: with its CPUs offline a counter still answers, always the same: a gap, not 0 W."""
    pmu = made(tmp_path, cpus="0,1", packages=2, dram=False)
    reader = reading(pmu)
    assert reader.read().gaps == ()
    pmu.stopped = {0}
    found = reader.read()
    assert found.gaps == (Gap("package-0", "domain_vanished: the kernel does not count"),)
    assert list(found.counters_uj) == ["package-1"]


def test_closed_counters_are_gaps(tmp_path: Path) -> None:
    """S0-20: closing twice does nothing more; a read after it is all gaps."""
    reader = reading(made(tmp_path, dram=False))
    reader.close()
    reader.close()
    assert reader.read().gaps == (Gap("package-0", "read_failed: closed"),)


def test_a_silence_that_could_hide_a_wrap_is_a_gap(tmp_path: Path) -> None:
    """D-01, D-49: the kernel's own timer expects 200 W: after 20 s unread its count may lack a wrap: a gap."""
    pmu = made(tmp_path, dram=False)
    clock = ManualClock()
    sampler = Sampler(reading(pmu), proc_root=FakeProc(tmp_path / "cpu").root, clock=clock)
    sampler.sample()
    for silence_s, known in ((16, True), (20, False), (1, True)):
        pmu.machine.advance({"package-0": 2**14})
        clock.advance(silence_s * S)
        tick = sampler.sample()
        assert tick is not None
        assert dict(tick.energy_uj) == ({"package-0": J} if known else {})
    assert sampler.totals.gaps == {"package-0": {"ambiguous_wrap": 1}}


@given(
    start=st.integers(0, 2**64 - 1),
    steps=st.lists(st.tuples(st.integers(1, 16 * S), st.integers(0, 100)), min_size=1, max_size=30),
)
def test_law_of_wraps(tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[tuple[int, int]]) -> None:
    """D-01, D-45: past the end of its 64 bits too, the deltas of any trace add up to it, less than 1 uJ off."""
    pmu = made(tmp_path_factory.mktemp("perf"), dram=False)
    pmu.start_counts = start
    reader = reading(pmu)
    (domain,) = reader.domains()
    accumulator = Accumulator(domain)
    now_ns = 0
    for nanos, percent in [(0, 0), *steps]:
        now_ns += nanos
        pmu.machine.advance({"package-0": MAX_POWER_W * nanos * percent // 100 * 2**14 // S})
        accumulator.offer(reader.read().counters_uj["package-0"], now_ns)
        accumulator.open() if nanos == 0 else accumulator.close()
    assert accumulator.gaps.total() == 0
    assert abs(accumulator.placed_uj - Fraction(pmu.machine.truth_units["package-0"] * J, 2**14)) < 1


def test_the_kernel_counts() -> None:
    """S3-07: the call itself, with a clock of the kernel's that every machine has, and an event that none has."""
    try:
        counter = PerfCounter(PerfEvent(1, 0, 0))
    except OSError as error:
        pytest.skip(f"perf_event_open: {error}")
    count, counted_ns = READ_FORMAT.unpack(counter.read())
    time.sleep(0.05)
    later, later_ns = READ_FORMAT.unpack(counter.read())
    counter.close()
    assert later - count >= 40_000_000
    assert later_ns - counted_ns >= 40_000_000
    with pytest.raises(FileNotFoundError):
        PerfCounter(PerfEvent(2**31, 0, 0))
