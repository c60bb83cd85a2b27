"""Watts of a logical CPU by its microarchitecture, each with where it is from and how far it errs.

The figures are Cloud Carbon Footprint's usage coefficients (`SOURCE`, the edition of 2026-04-24), which are means over
the servers of each family among the SPECpower_ssj2008 results, divided by their threads: of the whole server, not of
the package alone. Rounded to milliwatts.

Left out of it: EPYC 5th Gen, whose 3.7 W idle is five times that of its forerunners and so no figure to build on; and
Graviton, for which it repeats those of EPYC 2nd Gen as a guess.

Which processor is of which family: vendor, family, model and stepping as in Linux's arch/x86/include/asm/intel-family.h
and AMD's revision guides. What was measured are servers, so only Xeon and EPYC are looked up.

Errors: 40 %, which perf-sentinel states for models on SPECpower (30 to 40 % either way); for the general mean 60 %, as
far as the families' busy watts lie from it, Sandy Bridge aside. A virtual machine or a laptop is further from a server
than that: its reason says so instead of a figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from joulegram_agent.cpu_topology import AMD, INTEL, Processor

SOURCE = (
    "https://github.com/cloud-carbon-footprint/ccf-coefficients/blob/"
    "b0032d928c787cf76cecd7d1d611c5b46f366e29/output/coefficients-aws-use.csv"
)
GENERAL_SOURCE = "https://www.cloudcarbonfootprint.org/docs/methodology/"

ERROR_PERCENT = 40
GENERAL_ERROR_PERCENT = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One microarchitecture.

    Args:
        name: as the source has it.
        idle_mw: of a logical CPU, 0 % busy, milliwatts.
        max_mw: of a logical CPU, 100 % busy, milliwatts.
        source: where the two are from.
        error_percent: either way.
    """

    name: str
    idle_mw: int
    max_mw: int
    source: str = SOURCE
    error_percent: int = ERROR_PERCENT


GENERAL = Row("general mean", 740, 3_500, GENERAL_SOURCE, GENERAL_ERROR_PERCENT)
"""Cloud Carbon Footprint's mean over AWS's servers, for processors that no row knows."""

SANDY_BRIDGE = Row("Sandy Bridge", 2_212, 8_631)
IVY_BRIDGE = Row("Ivy Bridge", 1_707, 5_557)
HASWELL = Row("Haswell", 1_857, 5_595)
BROADWELL = Row("Broadwell", 713, 3_685)
SKYLAKE = Row("Skylake", 613, 4_104)
CASCADE_LAKE = Row("Cascade Lake", 690, 4_063)
ICE_LAKE = Row("Ice Lake", 767, 3_758)
SAPPHIRE_RAPIDS = Row("Sapphire Rapids", 1_036, 4_160)
EMERALD_RAPIDS = Row("Emerald Rapids", 814, 4_482)
COFFEE_LAKE = Row("Coffee Lake", 1_138, 5_422)
GRANITE_RAPIDS = Row("Granite Rapids", 582, 2_527)
EPYC_1 = Row("EPYC 1st Gen", 847, 2_604)
EPYC_2 = Row("EPYC 2nd Gen", 474, 1_693)
EPYC_3 = Row("EPYC 3rd Gen", 456, 1_957)
EPYC_4 = Row("EPYC 4th Gen", 739, 2_282)

_ANY = range(256)

_SERVERS = {INTEL: "Xeon", AMD: "EPYC"}
"""What stands in the ``model name`` of a server's processor; those of desktops and laptops share models with them."""

_KNOWN: dict[tuple[str, int, int], tuple[tuple[range, Row], ...]] = {
    (INTEL, 6, 0x2D): ((_ANY, SANDY_BRIDGE),),
    (INTEL, 6, 0x3E): ((_ANY, IVY_BRIDGE),),
    (INTEL, 6, 0x3F): ((_ANY, HASWELL),),
    (INTEL, 6, 0x4F): ((_ANY, BROADWELL),),
    (INTEL, 6, 0x56): ((_ANY, BROADWELL),),
    # Steppings 10 and 11 are Cooper Lake, of which there is no row.
    (INTEL, 6, 0x55): ((range(5), SKYLAKE), (range(5, 8), CASCADE_LAKE)),
    (INTEL, 6, 0x9E): ((range(10, 14), COFFEE_LAKE),),
    (INTEL, 6, 0x6A): ((_ANY, ICE_LAKE),),
    (INTEL, 6, 0x6C): ((_ANY, ICE_LAKE),),
    (INTEL, 6, 0x8F): ((_ANY, SAPPHIRE_RAPIDS),),
    (INTEL, 6, 0xCF): ((_ANY, EMERALD_RAPIDS),),
    (INTEL, 6, 0xAD): ((_ANY, GRANITE_RAPIDS),),
    (AMD, 0x17, 0x01): ((_ANY, EPYC_1),),
    (AMD, 0x17, 0x31): ((_ANY, EPYC_2),),
    (AMD, 0x19, 0x01): ((_ANY, EPYC_3),),
    (AMD, 0x19, 0x11): ((_ANY, EPYC_4),),
    (AMD, 0x19, 0xA0): ((_ANY, EPYC_4),),
}

ROWS: tuple[Row, ...] = tuple({row.name: row for kinds in _KNOWN.values() for _, row in kinds}.values())


def row_of(processor: Processor, name: str, stepping: int) -> Row:
    """The row of a processor, or the general mean.

    Args:
        processor: of ``/proc/cpuinfo``.
        name: its ``model name``.
        stepping: its ``stepping``.
    """
    if processor.vendor in _SERVERS and _SERVERS[processor.vendor] in name:
        for steppings, row in _KNOWN.get((processor.vendor, processor.family, processor.model), ()):
            if stepping in steppings:
                return row
    return GENERAL
