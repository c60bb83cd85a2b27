"""Which model-specific registers hold energy, on whose processors, and in which unit.

Invariants:
    * a register is read only on processors known to have it: Intel's numbers mean something else on AMD (D-50);
    * a unit is 2^-n J with n from 0 to 31, so 2^32 units are a whole number of microjoules: a counter taken as
      ``floor(raw x unit)`` modulo that number differs from the true energy by less than one microjoule, over
      any number of wraps.

Sources: Intel SDM volume 3B, "RAPL Interfaces", and volume 4; AMD PPR of family 17h; Linux
arch/x86/events/rapl.c and drivers/powercap/intel_rapl_common.c, read in the versions of 2024 to 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_agent.cpu_topology import AMD, HYGON, INTEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from joulegram_agent.cpu_topology import Processor

COUNTER_MASK = 0xFFFF_FFFF
"""Bits 31:0 of a register count; the others are reserved. The kernel masks them too (RAPL_MSR_MASK)."""

DRAM_SHIFT = 16
"""The fixed unit of server DRAM, 2^-16 J: what Intel and powercap round to 15.3 uJ."""

FIXED_DRAM_MODELS = frozenset(
    {
        0x3F,  # Haswell-EP
        0x4F,  # Broadwell-EP
        0x56,  # Broadwell-DE: as perf and turbostat have it; powercap takes the unit register for this one
        0x55,  # Skylake-SP, Cascade Lake, Cooper Lake
        0x6A,  # Ice Lake-SP
        0x6C,  # Ice Lake-D
        0x57,  # Knights Landing
        0x85,  # Knights Mill
    }
)
"""Family 6 models whose DRAM counts in `DRAM_SHIFT` whatever the unit register says.

Sapphire and Emerald Rapids (0x8F, 0xCF) are not among them. The kernel had Sapphire Rapids here at first and took it
out in 6.1: "on SPR, Dram RAPL domain follows the standard energy resolution as described in MSR_RAPL_POWER_UNIT"
("perf/x86/rapl: Use standard Energy Unit for SPR Dram RAPL domain", and its like for powercap).
"""

OTHER_UNIT_MODELS = frozenset({0x37, 0x4A, 0x4C, 0x4D, 0x5A, 0x5D, 0x75})
"""Family 6 models of the Silvermont and Airmont line: their unit register means 2^n uJ. They are not measured."""


@dataclass(frozen=True, slots=True)
class Registers:
    """Addresses on one kind of processor.

    Args:
        unit: of the unit register; bits 12:8 are n of 2^-n J.
        package: of the package's counter.
        dram: of the DRAM beside it, None where there is none.
        dram_shift: n of DRAM's own unit, None where it is that of the unit register.
        left_out: known counters that are never measured, with the reason: they overlap the package.
    """

    unit: int
    package: int
    dram: int | None = None
    dram_shift: int | None = None
    left_out: Mapping[int, str] = field(default_factory=dict)


_INTEL_LEFT_OUT = {
    0x639: "cores: inside the package",
    0x641: "uncore or graphics: inside the package",
    0x64D: "platform: contains the packages",
}
_AMD = Registers(0xC0010299, 0xC001029B, left_out={0xC001029A: "one core: inside the package"})

_AMD_FAMILIES = {AMD: frozenset({0x17, 0x19, 0x1A}), HYGON: frozenset({0x18})}

KNOWN = "Intel family 0x6 other than Silvermont and Airmont, AMD family 0x17, 0x19 or 0x1a, or Hygon family 0x18"
"""What `registers_of` knows, for messages."""


def registers_of(processor: Processor) -> Registers | None:
    """The registers of a processor, None where they are not known."""
    if processor.family in _AMD_FAMILIES.get(processor.vendor, ()):
        return _AMD
    if processor.vendor != INTEL or processor.family != 6 or processor.model in OTHER_UNIT_MODELS:
        return None
    dram_shift = DRAM_SHIFT if processor.model in FIXED_DRAM_MODELS else None
    return Registers(0x606, 0x611, 0x619, dram_shift, _INTEL_LEFT_OUT)


def unit_shift(unit_register: int) -> int:
    """Take n of the unit 2^-n J from the value of a unit register."""
    return unit_register >> 8 & 0x1F


def raw_to_uj(raw: int, shift: int) -> int:
    """Microjoules of a raw count in units of 2^-shift J, rounded down."""
    return raw * 1_000_000 >> shift


def range_uj(shift: int) -> int:
    """The largest value of a counter in microjoules: one below 2^32 units, which is a whole number of them."""
    return (1_000_000 << 32 - shift) - 1
