"""One call of HTTP/2: the request on its way, its answer, and how much either side takes of the other's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_pipeline.http2_frames import DEFAULT_WINDOW_BYTES, Code, ConnectionFault

if TYPE_CHECKING:
    from joulegram_pipeline.http2_fields import Pairs


@dataclass(slots=True)
class Response:
    """What came back.

    Args:
        max_bytes: of the body that are kept; what is beyond them is read past.
        http_status: of the head; 0 while it has not come.
        head: its fields.
        trailers: those behind the body.
        body: as far as it is kept.
        reset: why the peer gave the stream up, None where it did not.
        whole: whether there will be no more.
    """

    max_bytes: int
    http_status: int = 0
    head: Pairs = ()
    trailers: Pairs = ()
    body: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    whole: bool = False

    def add_fields(self, pairs: Pairs, *, is_last: bool) -> None:
        """A block of header fields: informational ones, the head or the trailers.

        Raises:
            ConnectionFault: none of them can come here.
        """
        if not self.http_status:
            said = dict(pairs).get(b":status", b"")
            status = int(said) if len(said) == 3 and said.isdigit() else 0
            if status < 100 or (status < 200 and is_last):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"got :status {said[:20]!r}, expected that of an answer")
            if status < 200:
                return
            self.http_status, self.head = status, pairs
        elif is_last:
            self.trailers = pairs
        else:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got HEADERS within an answer, expected them at its end")
        self.whole = is_last

    def add_body(self, payload: memoryview, *, is_last: bool) -> None:
        """A part of the body.

        Raises:
            ConnectionFault: its head has not come.
        """
        if not self.http_status:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got DATA before HEADERS")
        self.body += payload[: self.max_bytes - len(self.body)]
        self.whole = is_last


class Room:
    """What the peer may still send: of one answer, or of all."""

    def __init__(self) -> None:
        self._left = DEFAULT_WINDOW_BYTES

    def took(self, size: int) -> int:
        """Account for DATA; how much the peer is to be given anew, 0 while it has half, which is more than a frame."""
        self._left -= size
        if self._left > DEFAULT_WINDOW_BYTES // 2:
            return 0
        more, self._left = DEFAULT_WINDOW_BYTES - self._left, DEFAULT_WINDOW_BYTES
        return more


class Call:
    """A request on its way, and its answer."""

    def __init__(self, stream_id: int, prefix: bytes, message: bytes, window: int, max_bytes: int) -> None:
        self.stream_id = stream_id
        self.send_window = window
        self.room = Room()
        self.response = Response(max_bytes)
        self.sent_bytes = 0
        self.size = len(prefix) + len(message)
        self._prefix = memoryview(prefix)
        self._message = memoryview(message)

    def next_pieces(self, size: int) -> tuple[memoryview, memoryview]:
        """The next `size` bytes of the request."""
        at, border = self.sent_bytes, len(self._prefix)
        end = self.sent_bytes = at + size
        return self._prefix[at:end], self._message[max(0, at - border) : max(0, end - border)]
