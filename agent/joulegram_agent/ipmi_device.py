"""The kernel's device of a management controller, ``/dev/ipmi0``: a request goes out, a message is taken.

Told by include/uapi/linux/ipmi.h and drivers/char/ipmi/ipmi_devintf.c.

Invariants:
    * nothing here waits: the kernel queues a request, and a message is taken where one lies ready;
    * it is opened for reading and writing. The driver asks for neither, but whoever has it open may send the controller
      any command: a capability that opens everything for reading is not to open this by the way.
"""

from __future__ import annotations

import fcntl
import os
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_agent.descriptor import Descriptor

if TYPE_CHECKING:
    from pathlib import Path

_SYSTEM_INTERFACE = 0x0C
_BMC_CHANNEL = 0x0F
_RESPONSE = 1
_ADDRESS_BYTES = 40
_MESSAGE_BYTES = 272


_ADDRESS = struct.Struct("ihBx")
"""``ipmi_system_interface_addr``: type, channel, unit number, of which 0 is the controller's own."""

_REQUEST = struct.Struct("PIlBBHP")
"""``ipmi_req``: address, its length, number, and of the ``ipmi_msg`` netfn, cmd, length of the data, data."""

_RECEIVED = struct.Struct("iPIlBBHP")
"""``ipmi_recv``: type, and what a request has."""


def _number(direction: int, number: int, argument: struct.Struct) -> int:
    """The number of an ioctl, asm-generic/ioctl.h; 1 writes, 2 reads."""
    return direction << 30 | argument.size << 16 | ord("i") << 8 | number


_SEND_COMMAND = _number(2, 13, _REQUEST)
_RECEIVE_MSG_TRUNC = _number(3, 11, _RECEIVED)


@dataclass(frozen=True, slots=True)
class Response:
    """What came for a request.

    Args:
        msgid: of the request.
        data: completion code first.
    """

    msgid: int
    data: bytes


class IpmiDevice(Descriptor):
    """One management controller, ``/dev/ipmi0``, opened once.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.O_RDWR)

    def fileno(self) -> int:
        """For `select`: readable while a message lies ready."""
        return self.fd

    def send(self, msgid: int, netfn: int, cmd: int, data: bytes) -> None:
        """Queue a request for the controller itself.

        Raises:
            OSError: as the kernel refuses.
        """
        address = array("B", _ADDRESS.pack(_SYSTEM_INTERFACE, _BMC_CHANNEL, 0))
        payload = array("B", data)
        request = _REQUEST.pack(*_place(address), msgid, netfn, cmd, len(data), _place(payload)[0])
        fcntl.ioctl(self.fd, _SEND_COMMAND, request)

    def receive(self) -> Response | None:
        """Take the next message; None where it is an event, or a command, and answers nothing.

        Raises:
            OSError: as the kernel refuses; EAGAIN where none lies ready.
        """
        address, payload = array("B", bytes(_ADDRESS_BYTES)), array("B", bytes(_MESSAGE_BYTES))
        received = bytearray(_RECEIVED.pack(0, *_place(address), 0, 0, 0, _MESSAGE_BYTES, _place(payload)[0]))
        fcntl.ioctl(self.fd, _RECEIVE_MSG_TRUNC, received)
        kind, _, _, msgid, _, _, length, _ = _RECEIVED.unpack(received)
        return Response(msgid, payload[:length].tobytes()) if kind == _RESPONSE else None


def _place(data: array[int]) -> tuple[int, int]:
    """Address and length in bytes: without ctypes, which would be a sixtieth of the agent's memory."""
    return data.buffer_info()
