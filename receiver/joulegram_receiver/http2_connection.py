"""One HTTP/2 connection of a server (RFC 9113), bounded: what each frame means, requests to their exchanges.

Invariants:
    * a request is begun only while fewer than `max_streams` are under way, those whose client has gone included;
    * header fields are decoded in the order they came, also those of requests that are refused, lest the tables part;
    * frames that cost the peer nothing (resets, pings, settings, empty ones) are rationed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from joulegram_pipeline.http2_fields import MAX_BLOCK_BYTES
from joulegram_pipeline.http2_frames import (
    DEFAULT_WINDOW_BYTES,
    MAX_STREAM_ID,
    NO_TABLE,
    WORD,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    Setting,
    StreamFault,
    frame,
    goaway,
    more_window,
    peer_settings,
    pinged,
    reset,
    settings,
    unpadded,
    unprioritised,
    widened,
    window_update,
)
from joulegram_receiver.http2_head import TOO_LARGE, HeadReader, check_trailers
from joulegram_receiver.http2_stream import Stream
from joulegram_receiver.http2_wire import Http2Wire
from joulegram_receiver.senders import came_from_afar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from joulegram_receiver.http2_head import Head
    from joulegram_receiver.http2_wire import Host

STREAM_WINDOW_BYTES = 1024 * 1024
"""What a client may send of a request before anybody has looked at it."""

CONNECTION_WINDOW_BYTES = 64 * 1024 * 1024
"""Of all requests of a connection together, given back as they are read: what bounds them is the admission."""

_FREE_FRAMES_PER_S = 4000
"""Of those that cost the peer nothing; a client that gives up all its calls at once needs a thousand."""

_STREAMS_OF_A_FRAME = 16
"""Looked at in the time that another frame takes."""

_MAX_UNWANTED = 1024

_DRAIN_PING = b"joulgram"


class Http2Connection(Http2Wire):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.send_window = DEFAULT_WINDOW_BYTES
        self._limits = host.limits
        self._heads = HeadReader()
        self._said_first = NO_TABLE
        self._settled = False
        self._draining = False
        self._refuse_above = MAX_STREAM_ID
        self._recv_window = CONNECTION_WINDOW_BYTES
        self._peer_window = DEFAULT_WINDOW_BYTES
        """Of each answer, as the peer's settings say."""
        self._block: bytearray | None = None
        """Header fields whose end has not come."""
        self._block_id = 0
        self._block_flags = 0
        self._unwanted: dict[int, None] = {}
        """Streams that were answered before their request was whole, in the order that happened."""
        self._free_frames = 0
        self._free_since_s = 0.0

    def start(self) -> None:
        """Say what the client may do."""
        said = {
            Setting.MAX_CONCURRENT_STREAMS: self._limits.max_streams,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: self._limits.max_head_bytes,
        }
        self.send(settings(said) + window_update(0, CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._heads.afar = came_from_afar(transport.get_extra_info("peername"), transport.get_extra_info("sockname"))
        super().connection_made(transport)

    # -- for streams and the server ------------------------------------------------------------------------------

    def send_fields(self, flags: int, stream_id: int, block: bytes) -> None:
        """Write a HEADERS frame; before the first goes the word that no table is used."""
        self.send(frame(Kind.HEADERS, flags, stream_id, self._said_first + block))
        self._said_first = b""

    def forget(self, stream: Stream) -> None:
        """A stream is answered and nothing works for it any more, so that it counts no longer."""
        if self.streams.pop(stream.stream_id, None) is not None:
            self._life.used()
            if not stream.whole:
                self._read_past(stream.stream_id)
            if self._refuse_above < MAX_STREAM_ID and not self.streams:
                self._close()

    def drain(self) -> None:
        """Take no new request, and close when those under way are answered.

        The client hears first that it should leave, and which requests were still taken once it has heard that:
        those that were on their way are served (RFC 9113 section 6.8).
        """
        if self._draining or self._ended:
            return
        self._draining = True
        self.send(goaway(MAX_STREAM_ID, Code.NO_ERROR) + frame(Kind.PING, 0, 0, _DRAIN_PING))
        self._life.draining(self._drained)

    def _drained(self) -> None:
        """The client has heard, or had the time to: what it began until here is served."""
        if self._refuse_above == MAX_STREAM_ID and not self._ended:
            self._refuse_above = self._last_id
            self.send(goaway(self._last_id, Code.NO_ERROR))
            if not self.streams:
                self._close()

    # -- frames --------------------------------------------------------------------------------------------------

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        """Handle a frame; see `Http2Wire.on_frame`."""
        if not self._settled:
            if kind != Kind.SETTINGS or flags & Flag.ACK:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"got a frame of kind {kind} first, expected SETTINGS")
            self._settled = True
            self._life.settled()
        if self._block is not None and (kind != Kind.CONTINUATION or stream_id != self._block_id):
            raise ConnectionFault(
                Code.PROTOCOL_ERROR, f"got a frame of kind {kind} within header fields, expected CONTINUATION"
            )
        handler = self._HANDLERS.get(kind)
        if handler is None:
            self._ration()
            return
        try:
            handler(self, flags, stream_id, payload)
        except StreamFault as fault:
            self._ration()
            stream = self.streams.get(fault.stream_id)
            if stream is None:
                self.send(reset(fault.stream_id, fault.code))
            else:
                stream.abort(fault.code)

    def _on_data(self, flags: int, stream_id: int, payload: memoryview) -> None:
        size = len(payload)
        self._recv_window -= size
        if self._recv_window < CONNECTION_WINDOW_BYTES // 2:
            if self._recv_window < 0:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "got more than the connection's window")
            self.send(window_update(0, CONNECTION_WINDOW_BYTES - self._recv_window))
            self._recv_window = CONNECTION_WINDOW_BYTES
        if flags & Flag.PADDED:
            payload = unpadded(payload)
        stream = self.streams.get(stream_id)
        if stream is None or stream.whole or stream.answered:
            self._on_stray_data(flags, stream_id, stream, size)
            return
        stream.took(size, len(payload))
        stream.grant(size - len(payload))  # padding, which is no part of the body that there is room for
        if flags & Flag.END_STREAM:
            stream.ended()
        exchange = stream.exchange
        assert exchange is not None
        if payload:
            exchange.data(bytes(payload))
        elif not flags & Flag.END_STREAM:
            self._ration()
        if stream.whole and not stream.answered:
            exchange.end()

    def _on_stray_data(self, flags: int, stream_id: int, stream: Stream | None, size: int) -> None:
        """A body of which nobody wants more: that of a request refused is read past, any other is a fault."""
        if not self._was_opened(stream_id):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got DATA of stream {stream_id}, which was never opened")
        refused = stream_id in self._unwanted or stream_id > self._refuse_above
        if not refused and (stream is None or stream.whole):
            raise StreamFault(stream_id, Code.STREAM_CLOSED, "got DATA behind the end of a request")
        if flags & Flag.END_STREAM:
            self._unwanted.pop(stream_id, None)
        elif not size:
            self._ration()

    def _on_headers(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id % 2 == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got HEADERS of stream {stream_id}, expected an odd one")
        if flags & Flag.PADDED:
            payload = unpadded(payload)
        if flags & Flag.PRIORITY:
            payload = unprioritised(stream_id, payload)
        if flags & Flag.END_HEADERS:
            self._on_block(stream_id, flags, bytes(payload))
            return
        self._block, self._block_id, self._block_flags = bytearray(payload), stream_id, flags

    def _on_continuation(self, flags: int, stream_id: int, payload: memoryview) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got CONTINUATION of stream {stream_id} behind no HEADERS")
        if not payload:
            self._ration()
        block += payload
        if len(block) > MAX_BLOCK_BYTES:
            self._refuse_block(stream_id)
            raise ConnectionFault(
                Code.ENHANCE_YOUR_CALM, f"got more than {MAX_BLOCK_BYTES} bytes of header fields, expected at most that"
            )
        if flags & Flag.END_HEADERS:
            self._block = None
            self._on_block(stream_id, self._block_flags, bytes(block))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """Header fields are whole: of a new request, or behind the body of one."""
        try:
            head = self._heads.read(block)
        except ConnectionFault as fault:
            if fault.code is Code.ENHANCE_YOUR_CALM:
                self._refuse_block(stream_id)
            raise
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, flags, head)
            return
        if stream_id <= self._last_id:
            if flags & Flag.END_STREAM and self._unwanted.pop(stream_id, stream_id) is None:
                return
            raise ConnectionFault(Code.STREAM_CLOSED, f"got HEADERS of stream {stream_id}, which is closed")
        if stream_id > self._refuse_above:
            return
        self._last_id = stream_id
        refused = head.fault is not None or len(self.streams) >= self._limits.max_streams
        if refused and not flags & Flag.END_STREAM:
            self._read_past(stream_id)
        if head.fault is not None:
            raise StreamFault(stream_id, Code.PROTOCOL_ERROR, head.fault)
        if len(self.streams) >= self._limits.max_streams:
            raise StreamFault(stream_id, Code.REFUSED_STREAM, "got one request more than may be under way")
        stream = Stream(stream_id, self, head, STREAM_WINDOW_BYTES, self._peer_window, self._loop.time())
        self.streams[stream_id] = stream
        if flags & Flag.END_STREAM:
            stream.ended()
        exchange = stream.exchange = self._host.open(stream)
        if stream.whole and not stream.answered:
            exchange.end()
        if stream.answered:
            self._ration()

    def _read_past(self, stream_id: int) -> None:
        """What is on its way of a request is wanted no more."""
        self._unwanted[stream_id] = None
        if len(self._unwanted) > _MAX_UNWANTED:
            del self._unwanted[next(iter(self._unwanted))]

    def _on_trailers(self, stream: Stream, flags: int, head: Head) -> None:
        if stream.whole:
            raise StreamFault(stream.stream_id, Code.STREAM_CLOSED, "got HEADERS behind the end of a request")
        if not flags & Flag.END_STREAM:
            raise StreamFault(stream.stream_id, Code.PROTOCOL_ERROR, "got trailers that are not the end of a request")
        check_trailers(stream.stream_id, head)
        stream.ended()
        if not stream.answered and stream.exchange is not None:
            stream.exchange.end()

    def _refuse_block(self, stream_id: int) -> None:
        """A last word on a request whose header fields are too many to be known."""
        if stream_id > self._last_id:
            self._last_id = stream_id
            stream = Stream(stream_id, self, TOO_LARGE, 0, self._peer_window, self._loop.time())
            stream.exchange = self._host.open(stream)

    def _on_priority(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        self._ration()
        if stream_id == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got PRIORITY of stream 0")
        if len(payload) != 5:
            raise StreamFault(stream_id, Code.FRAME_SIZE_ERROR, "got PRIORITY of another size than 5")
        if WORD.unpack_from(payload)[0] & MAX_STREAM_ID == stream_id:
            raise StreamFault(stream_id, Code.PROTOCOL_ERROR, "got a stream that depends on itself")

    def _on_reset(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        self._ration()
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "got RST_STREAM of another size than 4")
        if not self._was_opened(stream_id):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got RST_STREAM of stream {stream_id}, which was never opened")
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.whole = True  # as far as it will ever be
            stream.give_up()

    def _on_settings(self, flags: int, stream_id: int, payload: memoryview) -> None:
        self._ration()
        said = peer_settings(flags, stream_id, payload)
        if said is None:
            return
        window = said.get(Setting.INITIAL_WINDOW_SIZE, self._peer_window)
        self.send(frame(Kind.SETTINGS, Flag.ACK, 0))  # before what the new window lets go
        more, self._peer_window = window - self._peer_window, window
        if not more:
            return
        self._ration(len(self.streams) // _STREAMS_OF_A_FRAME)
        for stream in tuple(self.streams.values()):
            try:
                stream.widen(more)
            except StreamFault as fault:
                raise ConnectionFault(fault.code, str(fault)) from None

    def _on_push_promise(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags, stream_id, payload
        raise ConnectionFault(Code.PROTOCOL_ERROR, "got PUSH_PROMISE of a client")

    def _on_ping(self, flags: int, stream_id: int, payload: memoryview) -> None:
        self._ration()
        answer = pinged(flags, stream_id, payload)
        if answer is not None:
            self.send(answer)
        elif self._draining and payload == _DRAIN_PING:
            self._drained()

    def _on_goaway(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags, payload
        self._ration()
        if stream_id != 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got GOAWAY of a stream, expected stream 0")

    def _on_window_update(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        more = more_window(payload)
        if stream_id:
            if not self._was_opened(stream_id):
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"got WINDOW_UPDATE of stream {stream_id}, never opened")
            if not more:
                raise StreamFault(stream_id, Code.PROTOCOL_ERROR, "got WINDOW_UPDATE of 0")
            stream = self.streams.get(stream_id)
            if stream is None:
                self._ration()
            else:
                stream.widen(more)
            return
        if not more:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got WINDOW_UPDATE of 0")
        full = self.send_window <= 0
        self.send_window = widened(self.send_window, more)
        if not full:
            return  # nobody waits for it
        self._ration(1 + len(self.streams) // _STREAMS_OF_A_FRAME)
        for stream in tuple(self.streams.values()):
            stream.pump()

    def _was_opened(self, stream_id: int) -> bool:
        """Whether a frame of a stream may come; one begun behind our last word was, and we looked past it."""
        return 0 < stream_id <= self._last_id or stream_id > self._refuse_above

    def _ration(self, cost: int = 1) -> None:
        """Count a frame that cost the peer nothing, as many times as it takes our time."""
        self._free_frames += cost
        if self._free_frames > _FREE_FRAMES_PER_S:
            now_s = self._loop.time()
            if now_s - self._free_since_s < 1:
                raise ConnectionFault(
                    Code.ENHANCE_YOUR_CALM,
                    f"got more than {_FREE_FRAMES_PER_S} resets, pings, settings, refusals or empty frames in a second",
                )
            self._free_since_s, self._free_frames = now_s, 0

    _HANDLERS: Final[dict[int, Callable[[Any, int, int, memoryview], None]]] = {
        Kind.DATA: _on_data,
        Kind.HEADERS: _on_headers,
        Kind.PRIORITY: _on_priority,
        Kind.RST_STREAM: _on_reset,
        Kind.SETTINGS: _on_settings,
        Kind.PUSH_PROMISE: _on_push_promise,
        Kind.PING: _on_ping,
        Kind.GOAWAY: _on_goaway,
        Kind.WINDOW_UPDATE: _on_window_update,
        Kind.CONTINUATION: _on_continuation,
    }
