"""One counter of the kernel's, opened with perf_event_open, which Python has no function for.

Told by man 2 perf_event_open and Linux include/uapi/linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

READ_FORMAT = struct.Struct("=QQ")
"""What a read gives: the count, and the nanoseconds for which the kernel counted."""

_TOTAL_TIME_RUNNING = 1 << 1
_FLAG_FD_CLOEXEC = 1 << 3
_SYSCALLS = {"x86_64": 298, "aarch64": 241}


@dataclass(frozen=True, slots=True)
class PerfEvent:
    """What to count.

    Args:
        type: number of the PMU, from its ``type`` file.
        config: number of the event in it.
        cpu: on which CPU, whatever runs there.
    """

    type: int
    config: int
    cpu: int


class _Attr(ctypes.Structure):
    """``perf_event_attr`` in its first, 64 byte form; all that is not set is 0: count at once, no samples."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
    )


class PerfCounter:
    """A counter that counts from when it is made, from 0.

    Args:
        event: what to count.

    Raises:
        OSError: as the kernel refuses: EACCES by perf_event_paranoid, EPERM by another policy, ENOENT or EINVAL where
            there is no such event, ENODEV where the CPU is offline; ENOSYS on other machines.
    """

    def __init__(self, event: PerfEvent) -> None:
        number = _SYSCALLS.get(os.uname().machine)
        if number is None:
            raise OSError(errno.ENOSYS, f"perf_event_open on {os.uname().machine}")
        attr = _Attr(type=event.type, size=ctypes.sizeof(_Attr), config=event.config, read_format=_TOTAL_TIME_RUNNING)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        every_process, no_group = ctypes.c_long(-1), ctypes.c_long(-1)
        self._fd: int = libc.syscall(
            ctypes.c_long(number),
            ctypes.byref(attr),
            every_process,
            ctypes.c_long(event.cpu),
            no_group,
            ctypes.c_long(_FLAG_FD_CLOEXEC),
        )
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def read(self) -> bytes:
        """`READ_FORMAT`; nothing where the kernel gave the counter up."""
        return os.read(self._fd, READ_FORMAT.size)

    def close(self) -> None:
        os.close(self._fd)
