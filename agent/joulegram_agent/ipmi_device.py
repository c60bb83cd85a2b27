"""The kernel's device of a management controller, ``/dev/ipmi0``: a request goes out, a message is taken.

Told by include/uapi/linux/ipmi.h and drivers/char/ipmi/ipmi_devintf.c.

Invariants:
    * nothing here waits: the kernel queues a request, and a message is taken where one lies ready;
    * it is opened for reading and writing. The driver asks for neither, but whoever has it open may send the controller
      any command: a capability that opens everything for reading is not to open this by the way.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SYSTEM_INTERFACE = 0x0C
_BMC_CHANNEL = 0x0F
_RESPONSE = 1
_ADDRESS_BYTES = 40
_MESSAGE_BYTES = 272


class _SystemInterface(ctypes.Structure):
    """``ipmi_system_interface_addr``; the unit number 0 is the controller's own."""

    _fields_ = (("addr_type", ctypes.c_int), ("channel", ctypes.c_short), ("lun", ctypes.c_ubyte))


class _Message(ctypes.Structure):
    """``ipmi_msg``."""

    _fields_ = (
        ("netfn", ctypes.c_ubyte),
        ("cmd", ctypes.c_ubyte),
        ("data_len", ctypes.c_ushort),
        ("data", ctypes.c_void_p),
    )


class _Request(ctypes.Structure):
    """``ipmi_req``."""

    _fields_ = (
        ("addr", ctypes.c_void_p),
        ("addr_len", ctypes.c_uint),
        ("msgid", ctypes.c_long),
        ("msg", _Message),
    )


class _Received(ctypes.Structure):
    """``ipmi_recv``."""

    _fields_ = (
        ("recv_type", ctypes.c_int),
        ("addr", ctypes.c_void_p),
        ("addr_len", ctypes.c_uint),
        ("msgid", ctypes.c_long),
        ("msg", _Message),
    )


def _number(direction: int, number: int, argument: type[ctypes.Structure]) -> int:
    """The number of an ioctl, asm-generic/ioctl.h; 1 writes, 2 reads."""
    return direction << 30 | ctypes.sizeof(argument) << 16 | ord("i") << 8 | number


_SEND_COMMAND = _number(2, 13, _Request)
_RECEIVE_MSG_TRUNC = _number(3, 11, _Received)


@dataclass(frozen=True, slots=True)
class Response:
    """What came for a request.

    Args:
        msgid: of the request.
        data: completion code first.
    """

    msgid: int
    data: bytes


class IpmiDevice:
    """One management controller, opened once.

    Args:
        path: ``/dev/ipmi0``.

    Raises:
        OSError: it cannot be opened.
    """

    _fd = -1

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def fileno(self) -> int:
        """For `select`: readable while a message lies ready."""
        return self._fd

    def send(self, msgid: int, netfn: int, cmd: int, data: bytes) -> None:
        """Queue a request for the controller itself.

        Raises:
            OSError: as the kernel refuses.
        """
        address = _SystemInterface(_SYSTEM_INTERFACE, _BMC_CHANNEL, 0)
        payload = ctypes.create_string_buffer(data, len(data))
        message = _Message(netfn, cmd, len(data), ctypes.addressof(payload))
        request = _Request(ctypes.addressof(address), ctypes.sizeof(address), msgid, message)
        fcntl.ioctl(self._fd, _SEND_COMMAND, request)

    def receive(self) -> Response | None:
        """Take the next message; None where it is an event, or a command, and answers nothing.

        Raises:
            OSError: as the kernel refuses; EAGAIN where none lies ready.
        """
        address, payload = ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.create_string_buffer(_MESSAGE_BYTES)
        message = _Message(data_len=_MESSAGE_BYTES, data=ctypes.addressof(payload))
        received = _Received(addr=ctypes.addressof(address), addr_len=_ADDRESS_BYTES, msg=message)
        fcntl.ioctl(self._fd, _RECEIVE_MSG_TRUNC, received)
        if received.recv_type != _RESPONSE:
            return None
        return Response(received.msgid, payload.raw[: received.msg.data_len])

    def __del__(self) -> None:
        """Whoever forgets to close gives back what is open all the same, as with files."""
        self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
