"""The bytes of HTTP/2 (RFC 9113), for a server and for a client: frames, error codes, settings, header fields said."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from joulegram_pipeline.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client begins with (section 3.4)."""

MAX_FRAME_BYTES: Final = 16_384
"""Of a frame's payload, the least that RFC 9113 lets a peer be told (section 4.2)."""

MAX_WINDOW_BYTES: Final = 2**31 - 1
DEFAULT_WINDOW_BYTES: Final = 65_535
MAX_STREAM_ID: Final = 2**31 - 1

HEAD: Final = struct.Struct(">BHBBL")
"""A frame's head: the high byte and the low two of its payload's length, kind, flags, stream."""

HEAD_BYTES: Final = HEAD.size
WORD: Final = struct.Struct(">L")
SETTING: Final = struct.Struct(">HL")


class Kind:
    """Of a frame (section 6); plain numbers too."""

    DATA: Final = 0
    HEADERS: Final = 1
    PRIORITY: Final = 2
    RST_STREAM: Final = 3
    SETTINGS: Final = 4
    PUSH_PROMISE: Final = 5
    PING: Final = 6
    GOAWAY: Final = 7
    WINDOW_UPDATE: Final = 8
    CONTINUATION: Final = 9


class Flag:
    """Of a frame; ACK is END_STREAM's bit, of other kinds. Plain numbers: these are looked at for every frame."""

    ACK: Final = 0x1
    END_STREAM: Final = 0x1
    END_HEADERS: Final = 0x4
    PADDED: Final = 0x8
    PRIORITY: Final = 0x20


class Code(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(IntEnum):
    """What one side tells the other of itself (section 6.5.2)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ConnectionFault(PermanentError):  # noqa: N818 - the RFC's word for it is "connection error"
    """The peer broke HTTP/2 so that its connection ends (section 5.4.1)."""

    def __init__(self, code: Code, text: str) -> None:
        self.code = code
        super().__init__(text)


class StreamFault(PermanentError):  # noqa: N818 - as above
    """The peer broke HTTP/2 so that one stream ends (section 5.4.2)."""

    def __init__(self, stream_id: int, code: Code, text: str) -> None:
        self.stream_id = stream_id
        self.code = code
        super().__init__(text)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame whole."""
    size = len(payload)
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(SETTING.pack(*item) for item in values.items()))


def window_update(stream_id: int, more: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, WORD.pack(more))


def reset(stream_id: int, code: Code) -> bytes:
    """A RST_STREAM frame."""
    return frame(Kind.RST_STREAM, 0, stream_id, WORD.pack(code))


def goaway(last_stream_id: int, code: Code, text: str = "") -> bytes:
    """A GOAWAY frame with words for whoever reads a capture."""
    return frame(Kind.GOAWAY, 0, 0, WORD.pack(last_stream_id) + WORD.pack(code) + text.encode()[:256])


NO_TABLE: Final = b"\x20"
"""Before the first header block of a connection: nothing refers to what was said before, whatever table the peer allows
(RFC 7541 sections 4.2 and 6.3)."""


def header_block(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header fields as literals without indexing and without Huffman (RFC 7541 section 6.2.2).

    Requests and answers say so little that a table of what was said before would cost more than it saves.
    """
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def unpadded(payload: memoryview) -> memoryview:
    """What a frame with the flag PADDED holds.

    Raises:
        ConnectionFault: its padding is longer than it.
    """
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "got padding as long as its frame or longer")
    return payload[1 : len(payload) - payload[0]]


def unprioritised(stream_id: int, payload: memoryview) -> memoryview:
    """The header fields of a HEADERS frame with the flag PRIORITY.

    Raises:
        ConnectionFault: the priority is not whole, or makes the stream depend on itself.
    """
    if len(payload) < 5:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "got HEADERS too short for its priority")
    if WORD.unpack_from(payload)[0] & MAX_STREAM_ID == stream_id:
        raise ConnectionFault(Code.PROTOCOL_ERROR, f"got stream {stream_id} that depends on itself")
    return payload[5:]


def peer_settings(flags: int, stream_id: int, payload: memoryview) -> dict[int, int] | None:
    """What a SETTINGS frame says, the last of each; None where it acknowledges ours.

    Raises:
        ConnectionFault: a frame or a value that there cannot be.
    """
    if stream_id != 0:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "got SETTINGS of a stream, expected stream 0")
    if len(payload) % SETTING.size or (flags & Flag.ACK and payload):
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"got SETTINGS of {len(payload)} bytes, expected pairs of 6")
    if flags & Flag.ACK:
        return None
    said: dict[int, int] = {}
    for name, value in SETTING.iter_unpack(payload):
        if name == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW_BYTES:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "got INITIAL_WINDOW_SIZE above 2^31-1")
        if name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got ENABLE_PUSH {value}, expected 0 or 1")
        if name == Setting.MAX_FRAME_SIZE and not MAX_FRAME_BYTES <= value < 1 << 24:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got MAX_FRAME_SIZE {value}, expected 2^14 to 2^24-1")
        said[name] = value
    return said


def pinged(flags: int, stream_id: int, payload: memoryview) -> bytes | None:
    """The answer to a PING; None where it is one itself.

    Raises:
        ConnectionFault: it is not of a connection, or has another size.
    """
    if stream_id != 0:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "got PING of a stream, expected stream 0")
    if len(payload) != 8:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "got PING of another size than 8")
    return None if flags & Flag.ACK else frame(Kind.PING, Flag.ACK, 0, bytes(payload))


def more_window(payload: memoryview) -> int:
    """By how much a WINDOW_UPDATE widens a window; 0 is a fault of what it is about.

    Raises:
        ConnectionFault: it has another size.
    """
    if len(payload) != 4:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "got WINDOW_UPDATE of another size than 4")
    return int(WORD.unpack(payload)[0]) & MAX_WINDOW_BYTES


def widened(window: int, more: int) -> int:
    """A connection's window with `more` bytes of room.

    Raises:
        ConnectionFault: it would be wider than there can be.
    """
    if window + more > MAX_WINDOW_BYTES:
        raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "got a window above 2^31-1")
    return window + more


def _text(data: bytes) -> bytes:
    """A string literal: its length with a prefix of 7 bits (RFC 7541 section 5.1), and its bytes."""
    size = len(data)
    if size < 0x7F:
        return bytes((size,)) + data
    length = bytearray((0x7F,))
    size -= 0x7F
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + data
