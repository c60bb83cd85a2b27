"""Whether the processor blurs its counters: what the registers and the flag of the kernel tell of it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.doctor import examine
from joulegram_agent.energy_filter import FilterState, energy_filter
from simulators.energy_machine import NO_LIBRARY
from simulators.msr import AMD_MACHINE, MsrMachine

if TYPE_CHECKING:
    from pathlib import Path

SWITCH = 1 << 11
OTHERS = ~SWITCH & 0xFFFF_FFFF

CASES = {
    "no switch, no SGX": (OTHERS, None, False, FilterState.OFF),
    "a switch that is off": (SWITCH, 0xFFFF_FFFE, False, FilterState.OFF),
    "a switch that is on": (SWITCH, 1, False, FilterState.ON),
    "a switch that is on, and SGX": (SWITCH, 1, True, FilterState.ON),
    "no switch, and SGX": (0, 1, True, FilterState.MAYBE),
    "a switch that is off, and SGX": (SWITCH, 0, True, FilterState.MAYBE),
    "no such registers": (None, None, False, FilterState.UNKNOWN),
}


def with_flags(root: Path, flags: str) -> None:
    path = root / "proc/cpuinfo"
    path.write_text(path.read_text().replace("\nmodel", f"\nflags\t\t: {flags}\nmodel", 1))


@pytest.mark.parametrize(("capabilities", "control", "sgx", "state"), CASES.values(), ids=CASES)
def test_what_can_be_read_is_said(
    tmp_path: Path, capabilities: int | None, control: int | None, sgx: bool, state: FilterState
) -> None:
    """energy.md 3.5: the register of the filter, where there is one, and else SGX, which acts by itself."""
    machine = MsrMachine(tmp_path)
    for address, value in ((0x10A, capabilities), (0xBC, control)):
        if value is not None:
            machine.set_register("package-0", address, value)
    with_flags(tmp_path, "fpu sgx vme" if sgx else "fpu sgx_lc vme")
    found, told_by = energy_filter(tmp_path / "proc", tmp_path / "dev", machine.open_msr)
    assert found is state
    assert str(tmp_path) in told_by


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOENT])
def test_registers_that_are_refused_leave_the_flag(tmp_path: Path, number: int) -> None:
    """energy.md 3.5: without the capability SGX is still known; without either it is unknown, never `off`."""
    machine = MsrMachine(tmp_path, faults={(0, None): number})
    found = energy_filter(tmp_path / "proc", tmp_path / "dev", machine.open_msr)
    assert found == (FilterState.UNKNOWN, f"{tmp_path}/dev/cpu/0/msr: got {errno.errorcode[number]}")
    with_flags(tmp_path, "sgx")
    found = energy_filter(tmp_path / "proc", tmp_path / "dev", machine.open_msr)
    assert found == (FilterState.MAYBE, f"{tmp_path}/proc/cpuinfo shows sgx")


def test_another_vendor_has_none(tmp_path: Path) -> None:
    """energy.md 3.5: no register is read on AMD, where Intel's numbers mean something else (D-50)."""
    machine = MsrMachine(tmp_path, **AMD_MACHINE)
    found = energy_filter(tmp_path / "proc", tmp_path / "dev", machine.open_msr)
    assert (found[0], machine.opened) == (FilterState.OFF, [])
    assert energy_filter(tmp_path / "none", tmp_path / "dev")[0] is FilterState.UNKNOWN


def test_doctor_says_it(tmp_path: Path) -> None:
    """energy.md 3.5: it is recorded where one looks before one believes a short window."""
    MsrMachine(tmp_path)
    with_flags(tmp_path, "sgx")
    diagnosis = examine(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev", NO_LIBRARY, tmp_path)
    shown = f"{tmp_path}/proc/cpuinfo shows sgx"
    assert f"filter    maybe: {shown}\n" in diagnosis.text()
    assert diagnosis.to_json()["energy_filter"] == {"state": "maybe", "told_by": shown}
