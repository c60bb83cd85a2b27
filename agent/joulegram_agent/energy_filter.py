"""Whether the processor blurs its energy counters over short times, as far as this machine lets it be read.

Intel's answer to PLATYPUS (CVE-2020-8694): while SGX is in use, or where the register says so, counters of RAPL are
randomised over short times. Told by Intel's guidance "Running Average Power Limit Energy Reporting"; a case study at
green-coding.io/case-studies/rapl-and-sgx found values of single windows off by up to 50 %.

1. A processor that is not Intel's has no such filter.
2. IA32_ARCH_CAPABILITIES (0x10A), bit 11, says whether there is a switch; IA32_MISC_PACKAGE_CTLS (0xBC), bit 0, whether
   it is on. Both need `/dev/cpu/N/msr`, as the source `msr` does.
3. The kernel shows the flag `sgx` in ``/proc/cpuinfo`` where the firmware allows SGX: then the filter may act whatever
   the switch says.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from joulegram_agent.cpu_topology import INTEL, read_cpuinfo
from joulegram_agent.msr import MsrFile
from joulegram_agent.reasons import errno_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from joulegram_agent.msr import Msr

ARCH_CAPABILITIES = 0x10A
MISC_PACKAGE_CTLS = 0xBC
_HAS_SWITCH = 1 << 11
_SWITCHED_ON = 1


class FilterState(StrEnum):
    """What is known of the filter."""

    ON = "on"
    MAYBE = "maybe"
    """SGX is allowed: it acts while that is in use."""
    OFF = "off"
    UNKNOWN = "unknown"
    """Neither can be read, or the register cannot and the flag is not there."""


def energy_filter(
    proc_root: Path, dev_root: Path, open_msr: Callable[[Path], Msr] = MsrFile
) -> tuple[FilterState, str]:
    """The state, and what it was told by. Never raises.

    Args:
        proc_root: ``/proc``, or where the host's is mounted.
        dev_root: ``/dev``, or where the host's is mounted.
        open_msr: opens the registers of a CPU.
    """
    said = read_cpuinfo(proc_root)
    if not said:
        return FilterState.UNKNOWN, f"{proc_root / 'cpuinfo'} cannot be read"
    if said.get("vendor_id") != INTEL:
        return FilterState.OFF, "not a processor of Intel's"
    path = dev_root / "cpu" / "0" / "msr"
    try:
        switched_on = _switched_on(path, open_msr)
    except OSError as error:
        state, by = FilterState.UNKNOWN, f"{path}: got {errno_name(error)}"
    else:
        if switched_on:
            return FilterState.ON, f"{path}: register {MISC_PACKAGE_CTLS:#x} has bit 0"
        state, by = FilterState.OFF, f"{path}: " + ("no switch" if switched_on is None else "switched off")
    if "sgx" in said.get("flags", "").split():
        return FilterState.MAYBE, f"{proc_root / 'cpuinfo'} shows sgx"
    return state, by


def _switched_on(path: Path, open_msr: Callable[[Path], Msr]) -> bool | None:
    """Whether the switch is on, None where there is none.

    Raises:
        OSError: the registers cannot be read.
    """
    registers = open_msr(path)
    try:
        if not int.from_bytes(registers.read(ARCH_CAPABILITIES), "little") & _HAS_SWITCH:
            return None
        return bool(int.from_bytes(registers.read(MISC_PACKAGE_CTLS), "little") & _SWITCHED_ON)
    finally:
        registers.close()
