"""What the MSR reader finds on a machine, and what it says where it finds nothing."""

from __future__ import annotations

import errno
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.counters import MAX_POWER_W, Accumulator
from joulegram_agent.cpu_topology import Processor
from joulegram_agent.msr import MsrReader
from joulegram_agent.msr_registers import raw_to_uj, registers_of, unit_shift
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method
from simulators.msr import MsrMachine
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000
S = 1_000_000_000
WRAP = 2**32
AMD: dict[str, Any] = {
    "vendor": "AuthenticAMD",
    "family": 0x19,
    "model": 0x01,
    "shift": 16,
    "by_die": False,
    "dram": False,
}


def reading(machine: MsrMachine, **options: Any) -> MsrReader:
    return MsrReader(
        machine.root / "dev", machine.root / "sys", machine.root / "proc", open_msr=machine.open_msr, **options
    )


def ids(reader: MsrReader) -> list[str]:
    return [domain.id for domain in reader.domains()]


# name: vendor, family, model, unit register, unit of the package in J, unit of DRAM in J
UNITS = {
    "Sandy Bridge, client": ("GenuineIntel", 6, 0x2A, 0xA1003, Fraction(1, 2**16), Fraction(1, 2**16)),
    "Skylake, client": ("GenuineIntel", 6, 0x5E, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**14)),
    "Haswell-EP": ("GenuineIntel", 6, 0x3F, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Broadwell-EP": ("GenuineIntel", 6, 0x4F, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Broadwell-DE": ("GenuineIntel", 6, 0x56, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Cascade Lake": ("GenuineIntel", 6, 0x55, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Ice Lake-SP": ("GenuineIntel", 6, 0x6A, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Ice Lake-D": ("GenuineIntel", 6, 0x6C, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Knights Landing": ("GenuineIntel", 6, 0x57, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Knights Mill": ("GenuineIntel", 6, 0x85, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**16)),
    "Sapphire Rapids": ("GenuineIntel", 6, 0x8F, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**14)),
    "Emerald Rapids": ("GenuineIntel", 6, 0xCF, 0xA0E03, Fraction(1, 2**14), Fraction(1, 2**14)),
    "Zen 2": ("AuthenticAMD", 0x17, 0x31, 0xA1003, Fraction(1, 2**16), None),
    "Zen 3": ("AuthenticAMD", 0x19, 0x01, 0xA1003, Fraction(1, 2**16), None),
    "Zen 5": ("AuthenticAMD", 0x1A, 0x02, 0xA1003, Fraction(1, 2**16), None),
    "Dhyana": ("HygonGenuine", 0x18, 0x00, 0xA1003, Fraction(1, 2**16), None),
}


@pytest.mark.parametrize(("vendor", "family", "model", "register", "package_j", "dram_j"), UNITS.values(), ids=UNITS)
def test_units(
    tmp_path: Path, vendor: str, family: int, model: int, register: int, package_j: Fraction, dram_j: Fraction | None
) -> None:
    """S3-07, D-50: bits 12:8 of the vendor's unit register, but the fixed unit for DRAM of some servers."""
    machine = MsrMachine(
        tmp_path, vendor=vendor, family=family, model=model, shift=unit_shift(register), dram=dram_j is not None
    )
    reader = reading(machine)
    before = reader.read().counters_uj
    machine.advance(dict.fromkeys(machine.truth_units, 10**9))
    after = reader.read().counters_uj
    spent = {domain: after[domain] - before[domain] for domain in after}
    expected = {"package-0": package_j} | ({} if dram_j is None else {"package-0/dram": dram_j})
    assert spent.keys() == expected.keys()
    for domain, unit_j in expected.items():
        assert before[domain] == machine.start_units * unit_j * J // 1
        assert abs(spent[domain] - unit_j * 10**9 * J) < 1
        assert {item.id: item.max_range_uj for item in reader.domains()}[domain] == unit_j * WRAP * J - 1
    assert (reader.method, reader.reason) == (Method.MEASURED, None)


UNKNOWN = {
    "another architecture": (None, 0, 0, "got no vendor_id family 0x0 model 0x0"),
    "AMD before Zen": ("AuthenticAMD", 0x15, 0x02, "got AuthenticAMD family 0x15 model 0x2"),
    "a vendor unheard of": ("CentaurHauls", 7, 0x3B, "got CentaurHauls family 0x7"),
    "Silvermont, whose unit is 2^n uJ": ("GenuineIntel", 6, 0x37, "got GenuineIntel family 0x6 model 0x37"),
    "Intel of another family": ("GenuineIntel", 15, 0x06, "got GenuineIntel family 0xf model 0x6"),
}


@pytest.mark.parametrize(("vendor", "family", "model", "got"), UNKNOWN.values(), ids=UNKNOWN)
def test_processors_that_are_not_known_are_not_read(
    tmp_path: Path, vendor: str | None, family: int, model: int, got: str
) -> None:
    """D-50: registers are gated by vendor, family and model; nothing is opened, and the reason says what was found."""
    machine = MsrMachine(tmp_path, vendor=vendor, family=family, model=model)
    reader = reading(machine)
    assert machine.opened == []
    assert reader.domains() == ()
    assert reader.reason is not None
    assert reader.reason.startswith(f"no_msr: {got}")
    assert "expected Intel family 0x6" in reader.reason


def test_one_cpu_of_each_package(tmp_path: Path) -> None:
    """D-07, D-47: two sockets of eight CPUs are two packages and two DRAMs, each counted once."""
    machine = MsrMachine(tmp_path, packages=2, cpus_per_die=8)
    reader = reading(machine)
    assert ids(reader) == ["package-0", "package-0/dram", "package-1", "package-1/dram"]
    assert [domain.kind for domain in reader.domains()] == [DomainKind.CPU, DomainKind.DRAM] * 2
    assert machine.opened == [0, 1]
    before = reader.read().counters_uj
    machine.advance({"package-0": 2**14 * 3, "package-1": 2**14 * 5, "package-1/dram": 2**16 * 7})
    after = reader.read().counters_uj
    assert {domain: after[domain] - before[domain] for domain in after} == {
        "package-0": 3 * J,
        "package-0/dram": 0,
        "package-1": 5 * J,
        "package-1/dram": 7 * J,
    }


def test_dies_of_intel_count_on_their_own(tmp_path: Path) -> None:
    """D-07: Cascade Lake-AP counts per die; its domains have the names of powercap's zones."""
    machine = MsrMachine(tmp_path, packages=2, dies=2, dram=False)
    assert ids(reading(machine)) == [
        "package-0-die-0",
        "package-0-die-1",
        "package-1-die-0",
        "package-1-die-1",
    ]
    assert len(machine.opened) == 4


def test_dies_of_amd_share_the_package(tmp_path: Path) -> None:
    """D-04, D-47: AMD counts per package: two dies that show one counter are one domain."""
    machine = MsrMachine(tmp_path, packages=2, dies=2, **AMD)
    assert ids(reading(machine)) == ["package-0", "package-1"]
    assert machine.opened == [0, 2]


def test_parts_and_platform_are_left_out(tmp_path: Path) -> None:
    """D-03, D-04, D-48: cores, uncore and psys also counted here; only the package's energy is reported."""
    machine = MsrMachine(tmp_path, dram=False)
    registers = registers_of(Processor("GenuineIntel", 6, 0x55))
    assert registers is not None
    assert set(registers.left_out) == {machine.addresses[kind] for kind in ("core", "uncore", "psys")}
    reader = reading(machine)
    before = sum(reader.read().counters_uj.values())
    machine.advance({"package-0": 2**14 * 100})
    assert sum(reader.read().counters_uj.values()) - before == 100 * J


def test_one_core_of_amd_is_left_out(tmp_path: Path) -> None:
    """D-03: AMD's core register is one core's, inside the package."""
    machine = MsrMachine(tmp_path, **AMD)
    assert ids(reading(machine)) == ["package-0"]
    registers = registers_of(Processor("AuthenticAMD", 0x19, 0x01))
    assert registers is not None
    assert set(registers.left_out) == {0xC001029A}


@pytest.mark.parametrize("shown", [None, 0])
def test_no_dram(tmp_path: Path, shown: int | None) -> None:
    """D-10: a register that is not there, or counts nothing, is no domain: not DRAM of 0 J."""
    machine = MsrMachine(tmp_path, dram=False)
    if shown is not None:
        machine.set_register("package-0", 0x619, shown)
    assert ids(reading(machine)) == ["package-0"]


def test_the_kernels_device_is_read_at_the_address(tmp_path: Path) -> None:
    """S3-07: 8 bytes at the offset that is the register's number; a flat sparse file stands for the device."""
    machine = MsrMachine(tmp_path)
    reader = MsrReader(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc")
    before = reader.read().counters_uj
    machine.advance({"package-0": 2**14, "package-0/dram": 2**16})
    after = reader.read().counters_uj
    assert {domain: after[domain] - before[domain] for domain in after} == {"package-0": J, "package-0/dram": J}
    reader.close()
    reader.close()
    assert reader.read().gaps == (Gap("package-0", "domain_vanished"), Gap("package-0/dram", "domain_vanished"))


def test_missing_module_is_a_reason(tmp_path: Path) -> None:
    """S3-07: without the msr module there are no devices: the reason says what to load."""
    machine = MsrMachine(tmp_path)
    machine.unload()
    reader = reading(machine)
    assert reader.method is Method.UNAVAILABLE
    assert reader.reason == (
        f"no_msr: {tmp_path}/dev/cpu/0/msr: got ENOENT, expected the device of the kernel's msr module (modprobe msr)"
    )
    assert reader.read().counters_uj == {}


REFUSALS = {
    "the file": (errno.EACCES, "got EACCES, expected read access to the file, and the capability CAP_SYS_RAWIO"),
    "the capability": (errno.EPERM, "got EPERM, expected the capability CAP_SYS_RAWIO"),
}


@pytest.mark.parametrize(("number", "said"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_what_is_missing(tmp_path: Path, number: int, said: str) -> None:
    """D-06: a file that may not be opened and a capability that is missing are told apart."""
    machine = MsrMachine(tmp_path, faults={(0, None): number})
    reader = reading(machine)
    assert reader.reason == f"permission_denied: {tmp_path}/dev/cpu/0/msr: {said}"
    assert reader.method is Method.UNAVAILABLE
    assert [gap.domain for gap in reader.read().gaps] == ["package-0"]


def test_one_refused_package_stays_in_the_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """D-05, D-10: of two sockets one is refused: it is a gap with the reason, not 0 and not left out."""
    machine = MsrMachine(tmp_path, packages=2, faults={(1, None): errno.EPERM})
    reader = reading(machine)
    assert (reader.method, reader.reason) == (Method.MEASURED, None)
    assert ids(reader) == ["package-0", "package-0/dram", "package-1"]
    (gap,) = reader.read().gaps
    assert gap.domain == "package-1"
    assert gap.reason.startswith("permission_denied: ")
    assert caplog.messages == [f"domain package-1: {gap.reason}"]


@pytest.mark.parametrize("address", [0x606, 0x611])
def test_registers_of_nothing_are_no_measurement(tmp_path: Path, address: int) -> None:
    """D-10: a hypervisor that answers 0 for a register gives no energy; it is a reason, not 0 J."""
    machine = MsrMachine(tmp_path)
    machine.set_register("package-0", address, 0)
    reader = reading(machine)
    assert reader.method is Method.UNAVAILABLE
    assert reader.reason is not None
    assert reader.reason.startswith(f"no_msr: {tmp_path}/dev/cpu/0/msr: register {address:#x} is 0")


def test_a_register_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    """D-10: a virtual machine without energy registers: EIO at the unit register."""
    machine = MsrMachine(tmp_path, faults={(0, 0x606): errno.EIO})
    assert reading(machine).reason == f"no_msr: {tmp_path}/dev/cpu/0/msr: got EIO, expected a register 0x606"


@pytest.mark.parametrize("text", [None, "", "0-", "x", "7", "0-99999999", "3-1"])
def test_topology_that_is_none_is_a_reason(tmp_path: Path, text: str | None) -> None:
    """D-47: without knowing which CPUs share a package nothing is read, as it might be counted twice."""
    machine = MsrMachine(tmp_path)
    path = tmp_path / "sys/devices/system/cpu/online"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert reading(machine).reason == f"no_msr: {path}: no CPU whose package is known"


def test_a_cpu_that_goes_offline_is_replaced(tmp_path: Path) -> None:
    """D-05, D-47: another CPU of the package shows the same register: no gap, nothing lost, nothing twice."""
    machine = MsrMachine(tmp_path, packages=2)
    reader = reading(machine)
    before = reader.read().counters_uj
    machine.advance({"package-0": 2**14})
    machine.set_online([1, 2, 3])
    machine.advance({"package-0": 2**14})
    after = reader.read()
    assert after.gaps == ()
    assert after.counters_uj["package-0"] - before["package-0"] == 2 * J
    assert set(machine.opened) == {0, 1, 2}


def test_a_package_that_goes_offline_is_a_gap_until_it_is_back(tmp_path: Path) -> None:
    """D-05, D-10: with its last CPU a package vanishes: a gap, and the other package is read."""
    machine = MsrMachine(tmp_path, packages=2, dram=False)
    reader = reading(machine)
    machine.set_online([1, 3])
    vanished = reader.read()
    assert vanished.gaps == (Gap("package-0", "domain_vanished"),)
    assert list(vanished.counters_uj) == ["package-1"]
    machine.faults.clear()
    machine.set_online([0, 1, 2, 3])
    assert sorted(reader.read().counters_uj) == ["package-0", "package-1"]


READ_ERRORS = [(errno.EIO, "read_failed: EIO"), (errno.EPERM, "permission_denied"), (errno.EACCES, "permission_denied")]


@pytest.mark.parametrize(("number", "reason"), READ_ERRORS)
def test_read_errors_are_gaps(tmp_path: Path, number: int, reason: str) -> None:
    """D-06, D-10: what is refused at a read is a gap with its reason, and the other register is read."""
    machine = MsrMachine(tmp_path)
    reader = reading(machine)
    machine.faults[0, 0x611] = number
    found = reader.read()
    assert found.gaps == (Gap("package-0", reason),)
    assert list(found.counters_uj) == ["package-0/dram"]


def test_half_a_register_is_a_gap(tmp_path: Path) -> None:
    """D-10: what is not 8 bytes is no register, at a read and at the start."""
    machine = MsrMachine(tmp_path, dram=False)
    reader = reading(machine)
    machine.read_bytes = 3
    (gap,) = reader.read().gaps
    assert gap.reason == f"read_failed: {tmp_path}/dev/cpu/0/msr at 0x611: got 3 bytes, expected 8"
    assert reading(machine).method is Method.UNAVAILABLE


def test_two_sockets_wrap_on_their_own(tmp_path: Path) -> None:
    """D-01, D-02, D-45: two sockets at 400 W wrap ten times each in half an hour; 0 uJ are lost."""
    machine = MsrMachine(tmp_path, packages=2, start_units=WRAP - 5, **AMD)
    clock = ManualClock()
    proc = FakeProc(tmp_path / "cpu")
    sampler = Sampler(reading(machine), proc_root=proc.root, clock=clock)
    sampler.sample()
    seconds = 1_800
    for _ in range(seconds):
        machine.advance({"package-0": 400 * 2**16, "package-1": 399 * 2**16 + 1})
        clock.advance(S)
        sampler.sample()
    assert dict(sampler.totals.energy_uj) == {
        domain: raw_to_uj(WRAP - 5 + units, 16) - raw_to_uj(WRAP - 5, 16)
        for domain, units in machine.truth_units.items()
    }
    assert sampler.totals.energy_uj["package-0"] == 400 * seconds * J
    assert sampler.totals.gaps == {}


def test_a_silence_that_could_hide_a_wrap_is_a_gap(tmp_path: Path) -> None:
    """D-01, D-49: after 20 s unread an AMD counter may have wrapped at 2 kW: a gap, though nothing was out of order."""
    machine = MsrMachine(tmp_path, **AMD)
    clock = ManualClock()
    sampler = Sampler(reading(machine), proc_root=FakeProc(tmp_path / "cpu").root, clock=clock)
    sampler.sample()
    for silence_s, known in ((16, True), (20, False), (1, True)):
        machine.advance({"package-0": 2**16})
        clock.advance(silence_s * S)
        tick = sampler.sample()
        assert tick is not None
        assert dict(tick.energy_uj) == ({"package-0": J} if known else {})
    assert sampler.totals.gaps == {"package-0": {"ambiguous_wrap": 1}}


@given(data=st.data(), shift=st.integers(0, 24), start=st.integers(0, WRAP - 1))
def test_law_of_wraps(data: st.DataObject, shift: int, start: int) -> None:
    """D-01, D-02, D-45: read often enough, the deltas of any trace add up to its units, 0 uJ lost beyond one floor."""
    modulus_uj = J * WRAP >> shift
    accumulator = Accumulator(Domain("package-0", DomainKind.CPU, modulus_uj - 1))
    accumulator.offer(raw_to_uj(start, shift), 0)
    accumulator.open()
    longest_ns = 1_000 * modulus_uj // (2 * MAX_POWER_W)
    units, now_ns = start, 0
    for _ in range(data.draw(st.integers(1, 30))):
        nanos = data.draw(st.integers(1, longest_ns))
        units += data.draw(st.integers(0, MAX_POWER_W * nanos * 2**shift // S))
        now_ns += nanos
        accumulator.offer(raw_to_uj(units % WRAP, shift), now_ns)
        if data.draw(st.booleans()):
            assert isinstance(accumulator.close(), int)
    accumulator.close()
    assert accumulator.gaps.total() == 0
    assert accumulator.placed_uj == raw_to_uj(units, shift) - raw_to_uj(start, shift)
    assert abs(accumulator.placed_uj - Fraction((units - start) * J, 2**shift)) < 1
