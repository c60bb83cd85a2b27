"""The units of energy registers, and their wraps, to the microjoule."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.counters import MAX_POWER_W, Accumulator
from joulegram_agent.msr_registers import raw_to_uj, unit_shift
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.energy import Domain, DomainKind, Method
from simulators.msr import AMD_MACHINE, MsrMachine, reading
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

J = 1_000_000
S = 1_000_000_000
WRAP = 2**32

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


def test_two_sockets_wrap_on_their_own(tmp_path: Path) -> None:
    """D-01, D-02, D-45: two sockets at 400 W wrap ten times each in half an hour; 0 uJ are lost."""
    machine = MsrMachine(tmp_path, packages=2, start_units=WRAP - 5, **AMD_MACHINE)
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
    machine = MsrMachine(tmp_path, **AMD_MACHINE)
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
