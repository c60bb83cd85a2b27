"""What a server of HTTP/2 says, frame by frame: of itself, of the room it has, and in answer to a call. No socket here.

Invariants:
    * header fields are decoded in the order they came, those of calls that are over as well, lest the tables part;
    * what a server must hear at once (acknowledgements, pings, room for more) is said while it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from joulegram_pipeline.errors import UpstreamError
from joulegram_pipeline.http2_fields import MAX_BLOCK_BYTES, field_decoder, fields_of
from joulegram_pipeline.http2_frames import (
    DEFAULT_WINDOW_BYTES,
    HEAD,
    HEAD_BYTES,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    WORD,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    Setting,
    frame,
    more_window,
    peer_settings,
    pinged,
    unpadded,
    unprioritised,
    widened,
    window_update,
)
from joulegram_sink.upstream_call import Call, Room

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN_BYTES = 20


class AgainError(UpstreamError):
    """The server did not look at a call, or had left while nobody called: another connection may be tried at once."""


class ServerSide:
    """See the module; of one connection.

    Args:
        say: sends bytes to the server, some time.
    """

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self.settled = False
        """Whether it has said its settings."""
        self.leaves = False
        """Whether it said that it will take no more."""
        self.max_streams: int | None = None
        self.max_frame = MAX_FRAME_BYTES
        self.send_window = DEFAULT_WINDOW_BYTES
        """Of all requests."""
        self.call: Call | None = None
        """The one under way."""
        self.next_id = 1
        self._first_window = DEFAULT_WINDOW_BYTES
        """Of each request, as its settings say."""
        self._room = Room()
        self._decoder = field_decoder()
        self._rest = b""
        self._block: bytearray | None = None
        """Header fields whose end has not come."""
        self._block_id = 0
        self._block_flags = 0

    def begin(self, prefix: bytes, message: bytes, max_bytes: int) -> Call:
        """A call, the only one; see `Call`."""
        self.call = Call(self.next_id, prefix, message, self._first_window, max_bytes)
        self.next_id += 2
        return self.call

    def feed(self, data: bytes) -> None:
        """Take in what came.

        Raises:
            ConnectionFault: it breaks HTTP/2.
            AgainError: the call under way was not looked at.
        """
        if self._rest:
            data = self._rest + data
        view = memoryview(data)
        at, end = 0, len(data)
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, stream_id = HEAD.unpack_from(view, at)
            if not self.settled and kind != Kind.SETTINGS:
                # Most often somebody who does not speak HTTP/2 at all, which these bytes show.
                raise ConnectionFault(
                    Code.PROTOCOL_ERROR, f"got {data[at : at + _SHOWN_BYTES]!r} first, expected SETTINGS"
                )
            size = high << 16 | low
            if size > MAX_FRAME_BYTES:
                raise ConnectionFault(
                    Code.FRAME_SIZE_ERROR, f"got a frame of {size} bytes, expected at most {MAX_FRAME_BYTES}"
                )
            after = at + HEAD_BYTES + size
            if after > end:
                break
            self._on_frame(kind, flags, stream_id & MAX_STREAM_ID, view[at + HEAD_BYTES : after])
            at = after
        self._rest = bytes(view[at:])

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        if self._block is not None and (kind != Kind.CONTINUATION or stream_id != self._block_id):
            raise ConnectionFault(
                Code.PROTOCOL_ERROR, f"got a frame of kind {kind} within header fields, expected CONTINUATION"
            )
        handler = self._HANDLERS.get(kind)
        if handler is not None:
            handler(self, flags, stream_id, payload)

    def _open_call(self, stream_id: int) -> Call | None:
        """The call a frame is about, None where that is over.

        Raises:
            ConnectionFault: there never was one.
        """
        if stream_id % 2 == 0 or stream_id >= self.next_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got a frame of stream {stream_id}, which was never opened")
        call = self.call
        return call if call is not None and call.stream_id == stream_id and not call.response.whole else None

    def _on_data(self, flags: int, stream_id: int, payload: memoryview) -> None:
        size = len(payload)
        call = self._open_call(stream_id)
        if more := self._room.took(size):
            self._say(window_update(0, more))
        if flags & Flag.PADDED:
            payload = unpadded(payload)
        if call is not None:
            call.response.add_body(payload, is_last=bool(flags & Flag.END_STREAM))
            if (more := call.room.took(size)) and not call.response.whole:
                self._say(window_update(stream_id, more))

    def _on_headers(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if flags & Flag.PADDED:
            payload = unpadded(payload)
        if flags & Flag.PRIORITY:
            payload = unprioritised(stream_id, payload)
        if flags & Flag.END_HEADERS:
            self._on_block(stream_id, flags, bytes(payload))
        else:
            self._block, self._block_id, self._block_flags = bytearray(payload), stream_id, flags

    def _on_continuation(self, flags: int, stream_id: int, payload: memoryview) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got CONTINUATION of stream {stream_id} behind no HEADERS")
        block += payload
        if len(block) > MAX_BLOCK_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"got more than {MAX_BLOCK_BYTES} bytes of header fields")
        if flags & Flag.END_HEADERS:
            self._block = None
            self._on_block(stream_id, self._block_flags, bytes(block))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        pairs = fields_of(self._decoder, block)
        call = self._open_call(stream_id)
        if call is not None:
            call.response.add_fields(pairs, is_last=bool(flags & Flag.END_STREAM))

    def _on_reset(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        if len(payload) != WORD.size:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "got RST_STREAM of another size than 4")
        call = self._open_call(stream_id)
        if call is None:
            return
        (code,) = WORD.unpack(payload)
        if code == Code.REFUSED_STREAM:
            raise AgainError("the server refused the stream (REFUSED_STREAM)")
        call.response.reset = code
        call.response.whole = True

    def _on_settings(self, flags: int, stream_id: int, payload: memoryview) -> None:
        said = peer_settings(flags, stream_id, payload)
        if said is None:
            return
        self.settled = True
        self.max_streams = said.get(Setting.MAX_CONCURRENT_STREAMS, self.max_streams)
        self.max_frame = said.get(Setting.MAX_FRAME_SIZE, self.max_frame)
        window = said.get(Setting.INITIAL_WINDOW_SIZE, self._first_window)
        more, self._first_window = window - self._first_window, window
        if self.call is not None:
            self.call.send_window = widened(self.call.send_window, more)
        self._say(frame(Kind.SETTINGS, Flag.ACK, 0))

    def _on_push_promise(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags, stream_id, payload
        raise ConnectionFault(Code.PROTOCOL_ERROR, "got PUSH_PROMISE, which our settings forbid")

    def _on_ping(self, flags: int, stream_id: int, payload: memoryview) -> None:
        answer = pinged(flags, stream_id, payload)
        if answer is not None:
            self._say(answer)

    def _on_goaway(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        if stream_id != 0 or len(payload) < 2 * WORD.size:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got GOAWAY of a stream or too short")
        self.leaves = True
        last_id = WORD.unpack_from(payload)[0] & MAX_STREAM_ID
        call = self.call
        if call is not None and call.stream_id > last_id and not call.response.whole:
            raise AgainError("the server is leaving (GOAWAY)")

    def _on_window_update(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        more = more_window(payload)
        if not more:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got WINDOW_UPDATE of 0")
        if stream_id == 0:
            self.send_window = widened(self.send_window, more)
            return
        call = self._open_call(stream_id)
        if call is not None:
            call.send_window = widened(call.send_window, more)

    _HANDLERS: Final[dict[int, Callable[[Any, int, int, memoryview], None]]] = {
        Kind.DATA: _on_data,
        Kind.HEADERS: _on_headers,
        Kind.RST_STREAM: _on_reset,
        Kind.SETTINGS: _on_settings,
        Kind.PUSH_PROMISE: _on_push_promise,
        Kind.PING: _on_ping,
        Kind.GOAWAY: _on_goaway,
        Kind.WINDOW_UPDATE: _on_window_update,
        Kind.CONTINUATION: _on_continuation,
    }
