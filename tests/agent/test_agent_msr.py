"""What the MSR reader finds on a machine, and what it says where it finds nothing."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.cpu_topology import Processor
from joulegram_agent.msr import MsrReader
from joulegram_agent.msr_registers import registers_of
from joulegram_pipeline.energy import DomainKind, Gap, Method
from simulators.msr import AMD_MACHINE, MsrMachine, reading

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000


def ids(reader: MsrReader) -> list[str]:
    return [domain.id for domain in reader.domains()]


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
    machine = MsrMachine(tmp_path, packages=2, dies=2, **AMD_MACHINE)
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
    machine = MsrMachine(tmp_path, **AMD_MACHINE)
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
