"""RAPL through ``/dev/cpu/N/msr``: the registers themselves, for kernels without powercap (S3-07, D-47, D-50).

Invariants:
    * one CPU of each package (or die) is read, never each CPU; if it goes offline, another one of the same
      place is read, whose register is the same (D-47);
    * a counter is handed on as ``floor(raw x unit)`` with the exact modulus of 2^32 units, a whole number of
      microjoules; so `Accumulator` takes wraps, and doubts a silence too long, as it does for powercap, and
      over any number of wraps less than one microjoule is off (D-01);
    * only packages and the DRAM beside them are counted; cores, uncore and platform overlap them (D-03, D-04);
    * a counter that is 0 when the reader is made is not there, as for the kernel: a virtual machine may answer
      0 for every register, and that is no measurement (D-10).
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from joulegram_agent.counters import reason_code
from joulegram_agent.cpu_topology import Place, online_list, places, read_cpu_list, read_processor
from joulegram_agent.descriptor import Descriptor
from joulegram_agent.msr_registers import COUNTER_MASK, KNOWN, range_uj, raw_to_uj, registers_of, unit_shift
from joulegram_agent.reader import Reading
from joulegram_agent.reasons import NO_MSR, PERMISSION_DENIED, READ_FAILED, errno_name, is_gone, why
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_agent.msr_registers import Registers

log = logging.getLogger(__name__)

_REGISTER_BYTES = 8


class Msr(Protocol):
    """The open registers of one CPU; the seam at which a test can refuse what root is never refused."""

    def read(self, address: int) -> bytes:
        """The 8 bytes of a register, little-endian; OSError where the kernel refuses."""

    def close(self) -> None:
        """Close it."""


class MsrFile(Descriptor):
    """The registers of one CPU, ``/dev/cpu/N/msr``, opened once.

    Raises:
        OSError: EPERM without CAP_SYS_RAWIO, EACCES without read access, ENXIO where the CPU is offline.
    """

    def read(self, address: int) -> bytes:
        return os.pread(self.fd, _REGISTER_BYTES, address)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where one domain is read, and in which unit; a refused one has a reason instead of a unit."""

    domain: Domain
    place: _OpenPlace
    address: int
    shift: int = 0
    refused: str | None = None


class MsrReader:
    """Reads packages and DRAM of the processors that `registers_of` knows.

    Args:
        dev_root: ``/dev``, or where the host's is mounted.
        sysfs_root: ``/sys``, or where the host's is mounted; for the topology of the CPUs.
        proc_root: ``/proc``, or where the host's is mounted; for vendor, family and model.
        instead_of: why a better source was not taken; becomes the `reason` where this one measures.
        open_msr: opens the registers of a CPU.

    `method` is MEASURED if at least one domain can be read; else UNAVAILABLE, and `reason` says why.
    """

    source = "msr"

    def __init__(
        self,
        dev_root: Path = Path("/dev"),
        sysfs_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        *,
        instead_of: str | None = None,
        open_msr: Callable[[Path], Msr] = MsrFile,
    ) -> None:
        self._places: list[_OpenPlace] = []
        self._sources: list[_Source] = []
        nothing = self._find(dev_root, sysfs_root, proc_root, open_msr)
        readable = any(source.refused is None for source in self._sources)
        self.method = Method.MEASURED if readable else Method.UNAVAILABLE
        self.reason: str | None = instead_of if readable else nothing or self._sources[0].refused
        # Where nothing can be read the reason says so, once.
        for source in self._sources if readable else ():
            if source.refused is not None:
                log.warning("domain %s: %s", source.domain.id, source.refused)

    def domains(self) -> tuple[Domain, ...]:
        return tuple(source.domain for source in self._sources)

    def read(self) -> Reading:
        counters: dict[str, int] = {}
        gaps: list[Gap] = []
        for source in self._sources:
            if source.refused is not None:
                gaps.append(Gap(source.domain.id, source.refused))
                continue
            try:
                raw = source.place.read(source.address) & COUNTER_MASK
            except OSError as error:
                gaps.append(Gap(source.domain.id, why(error)))
            except ValueError as error:
                gaps.append(Gap(source.domain.id, f"{READ_FAILED}: {error}"))
            else:
                counters[source.domain.id] = raw_to_uj(raw, source.shift)
        return Reading(counters, tuple(gaps))

    def lasting(self) -> dict[str, str]:
        """See `Lasting`: the registers count, whoever reads."""
        return {source.domain.id: self.source for source in self._sources}

    def close(self) -> None:
        for place in self._places:
            place.close()

    def _find(self, dev_root: Path, sysfs_root: Path, proc_root: Path, open_msr: Callable[[Path], Msr]) -> str | None:
        """Find the domains; why there are none, where there are none."""
        processor = read_processor(proc_root)
        registers = registers_of(processor)
        if registers is None:
            return f"{NO_MSR}: got {processor}, expected {KNOWN}"
        online = online_list(sysfs_root)
        found = places(sysfs_root, read_cpu_list(online), by_die=processor.energy_by_die)
        if not found:
            return f"{NO_MSR}: {online}: no CPU whose package is known"
        for place in found:
            opened = _OpenPlace(place, dev_root, open_msr)
            self._places.append(opened)
            self._sources += _sources(opened, registers)
        for address, meaning in registers.left_out.items():
            log.debug("register %#x is not counted: %s", address, meaning)
        return None


class _OpenPlace:
    """The registers of one package or die, read on whichever of its CPUs is online."""

    def __init__(self, place: Place, dev_root: Path, open_msr: Callable[[Path], Msr]) -> None:
        self.id = place.id
        self._paths = [dev_root / "cpu" / str(cpu) / "msr" for cpu in place.cpus]
        self.path = self._paths[0]
        self._open_msr = open_msr
        self._msr: Msr | None = None
        self._closed = False

    def read(self, address: int) -> int:
        """The value of a register.

        Raises:
            OSError: as the kernel refused; ENODEV once closed.
            ValueError: the device gave another number of bytes.
        """
        if self._closed:
            raise OSError(errno.ENODEV, "closed")
        try:
            return self._read(address)
        except OSError as error:
            if not is_gone(error):
                raise
            gone = error
        # The CPU went offline: any other CPU of the place shows the same register.
        for path in self._paths:
            self._drop()
            self.path = path
            try:
                return self._read(address)
            except OSError as error:
                if not is_gone(error):
                    raise
        self._drop()
        self.path = self._paths[0]
        raise gone

    def close(self) -> None:
        self._drop()
        self._closed = True

    def _read(self, address: int) -> int:
        if self._msr is None:
            self._msr = self._open_msr(self.path)
        data = self._msr.read(address)
        if len(data) != _REGISTER_BYTES:
            raise ValueError(f"{self.path} at {address:#x}: got {len(data)} bytes, expected {_REGISTER_BYTES}")
        return int.from_bytes(data, "little")

    def _drop(self) -> None:
        if self._msr is not None:
            self._msr.close()
            self._msr = None


def _sources(place: _OpenPlace, registers: Registers) -> list[_Source]:
    """The domains of one place: its package, refused or not, and its DRAM unless it has none."""
    unit = _value(place, registers.unit)
    counter = unit if isinstance(unit, str) else _value(place, registers.package)
    if isinstance(unit, str) or isinstance(counter, str):
        return [_Source(Domain(place.id, DomainKind.CPU), place, registers.package, refused=str(counter))]
    shift = unit_shift(unit)
    sources = [_Source(_ranged(place.id, DomainKind.CPU, shift), place, registers.package, shift)]
    if registers.dram is None:
        return sources
    dram_id = f"{place.id}/dram"
    shift = shift if registers.dram_shift is None else registers.dram_shift
    counter = _value(place, registers.dram)
    if not isinstance(counter, str):
        sources.append(_Source(_ranged(dram_id, DomainKind.DRAM, shift), place, registers.dram, shift))
    elif reason_code(counter) != NO_MSR:
        sources.append(_Source(Domain(dram_id, DomainKind.DRAM), place, registers.dram, refused=counter))
    return sources


def _ranged(domain_id: str, kind: DomainKind, shift: int) -> Domain:
    return Domain(domain_id, kind, range_uj(shift))


def _value(place: _OpenPlace, address: int) -> int | str:
    """The low half of a register that is there and not 0, or why it is not."""
    try:
        value = place.read(address) & COUNTER_MASK
    except OSError as error:
        return _why_not(error, f"{place.path}: got {errno_name(error)}", address)
    except ValueError as error:
        return f"{READ_FAILED}: {error}"
    if value == 0:
        return f"{NO_MSR}: {place.path}: register {address:#x} is 0, as where a hypervisor passes no energy on"
    return value


def _why_not(error: OSError, got: str, address: int) -> str:
    # A CPU that is online has its device as soon as the module is there; the device checks the capability when it is
    # opened, after the permissions of its file; a register that the processor has not is EIO.
    if error.errno == errno.ENOENT:
        return f"{NO_MSR}: {got}, expected the device of the kernel's msr module (modprobe msr)"
    if error.errno == errno.EPERM:
        return f"{PERMISSION_DENIED}: {got}, expected the capability CAP_SYS_RAWIO"
    if error.errno == errno.EACCES:
        return f"{PERMISSION_DENIED}: {got}, expected read access to the file, and the capability CAP_SYS_RAWIO"
    if error.errno == errno.EIO:
        return f"{NO_MSR}: {got}, expected a register {address:#x}"
    return f"{reason_code(why(error))}: {got}"
