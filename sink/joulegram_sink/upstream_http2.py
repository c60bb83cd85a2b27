"""HTTP/2 of a client (RFC 9113) over one connection: a call at a time, blocking, with a deadline.

Not grpcio's: that takes 10 MiB, threads that wake by themselves, and a copy of each body. Not `h2`'s: the bytes of
frames are there for the server (`http2_frames`), and what is left is less than what its events would have to be told.

Invariants:
    * a call is made on a connection whose peer has said its settings, and which it has not said it will leave;
    * both windows are kept to, and what comes is read while a body waits for room;
    * a connection on which anything went wrong is closed: the next call finds the peer anew.
"""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from joulegram_pipeline.errors import UpstreamError
from joulegram_pipeline.http2_fields import MAX_BLOCK_BYTES, field_decoder, fields_of
from joulegram_pipeline.http2_frames import (
    DEFAULT_WINDOW_BYTES,
    HEAD,
    HEAD_BYTES,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    PREFACE,
    WORD,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    Setting,
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
from joulegram_sink.upstream_call import Call, Room
from joulegram_sink.upstream_wire import CONNECT_S, Wire, connect

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from joulegram_sink.upstream_call import Response
    from joulegram_sink.upstream_destination import Endpoint

_AHEAD_BYTES = 512 * 1024
"""Of a body, made into frames before the kernel takes them; also the largest frame."""

_SAID_BYTES = 1024 * 1024
"""Of what is queued: a peer that asks for more answers than it reads is left."""

_END_S = 1.0
"""For what is still queued when the answer is there."""

_READS_WHILE_IDLE = 8

_NO_TABLE = b"\x20"
"""Said first: we refer to nothing that was said before (RFC 7541 section 6.3), whatever table the peer allows."""


class AgainError(UpstreamError):
    """The peer did not look at a call, or had left while nobody called: another connection may be tried at once."""


class LateError(UpstreamError):
    """There is no answer in time."""


class UnreachableError(UpstreamError):
    """There is nobody, or nobody who speaks HTTP/2, at the address."""


class ClientConnection:
    """See the module; connects with the first call.

    Args:
        target: whom to connect to.
        context: of TLS, with ``h2`` for ALPN; None speaks plaintext.
        server_name: see `connect`.
    """

    def __init__(self, target: Endpoint, context: ssl.SSLContext | None, server_name: str | None) -> None:
        self.context = context
        self._target = target
        self._server_name = server_name
        self._wire: Wire | None = None
        self._call: Call | None = None
        self._decoder = field_decoder()
        self._rest = b""
        self._settled = False
        self._next_id = 1
        self._leaves = False
        """Whether the peer said that it will take no more."""
        self._max_streams: int | None = None
        self._max_frame = MAX_FRAME_BYTES
        self._first_window = DEFAULT_WINDOW_BYTES
        """Of each request, as the peer's settings say."""
        self._send_window = DEFAULT_WINDOW_BYTES
        """Of all of them."""
        self._room = Room()
        self._block: bytearray | None = None
        """Header fields whose end has not come."""
        self._block_id = 0
        self._block_flags = 0

    def call(self, block: bytes, prefix: bytes, message: bytes, max_bytes: int, until_s: float) -> Response:
        """Send a request, and wait for what comes back.

        Args:
            block: its header fields, without reference to any table.
            prefix: the beginning of its body.
            message: the rest.
            max_bytes: of the answer's body that are kept.
            until_s: when to give up, of the monotonic clock.

        Raises:
            AgainError: it was not looked at.
            UnreachableError: no connection could be made.
            ConnectionFault: the peer broke HTTP/2.
            LateError: there is no answer in time.
            OSError: the connection was lost.
        """
        try:
            return self._exchange(block, prefix, message, max_bytes, until_s)
        except ConnectionFault as fault:
            self.close(fault.code)
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._call = None

    @property
    def is_usable(self) -> bool:
        """Whether the next call may be made here; what came meanwhile is looked at."""
        if self._wire is None:
            return False
        try:
            for _ in range(_READS_WHILE_IDLE):
                if not self._read():
                    self._wire.flush()
                    return not self._leaves and self._next_id <= MAX_STREAM_ID
        except (OSError, ConnectionFault):
            pass
        return False

    def interrupt(self) -> None:
        """Have whoever waits on it fail; for other threads."""
        if self._wire is not None:
            self._wire.interrupt()

    def close(self, code: Code = Code.NO_ERROR) -> None:
        """Say why, if there is room for that, and close."""
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(OSError):
                wire.put(goaway(0, code))
                wire.flush()
            wire.close()

    # -- a call --------------------------------------------------------------------------------------------------

    def _exchange(self, block: bytes, prefix: bytes, message: bytes, max_bytes: int, until_s: float) -> Response:
        wire = self._wire or self._open(until_s)
        self._wait_for_leave(wire, until_s)
        is_first = self._next_id == 1
        call = self._call = Call(self._next_id, prefix, message, self._first_window, max_bytes)
        self._next_id += 2
        self._put_head(wire, call.stream_id, _NO_TABLE + block if is_first else block)
        response = call.response
        try:
            while not response.whole:
                self._turn(wire, until_s, has_more=self._pump(wire, call))
        except OSError as error:
            if is_first or response.http_status:
                raise
            raise AgainError(str(error)) from error
        self._finish(wire, call, until_s)
        return response

    def _open(self, until_s: float) -> Wire:
        try:
            left_s = until_s - monotonic()
            sock = connect(self._target, self.context, self._server_name, max(0.001, min(left_s, CONNECT_S)))
            wire = self._wire = Wire(sock)
            if self.context is not None and sock.selected_alpn_protocol() != "h2":  # type: ignore[attr-defined]
                raise UnreachableError("the server did not agree to HTTP/2 (ALPN)")
            wire.put(PREFACE, settings({Setting.ENABLE_PUSH: 0, Setting.MAX_HEADER_LIST_SIZE: MAX_BLOCK_BYTES}))
            settled_s = min(until_s, monotonic() + CONNECT_S)
            while not self._settled:
                self._turn(wire, settled_s)
        except LateError as error:
            raise UnreachableError("got no HTTP/2 in time") from error
        except OSError as error:
            raise UnreachableError(str(error)) from error
        return wire

    def _wait_for_leave(self, wire: Wire, until_s: float) -> None:
        """Wait while the peer wants no request; it is given as long as a call may take."""
        try:
            while self._max_streams == 0 and not self._leaves:
                self._turn(wire, until_s)
        except LateError as error:
            raise AgainError("the server takes no requests (MAX_CONCURRENT_STREAMS is 0)") from error
        if self._leaves:
            raise AgainError("the server is leaving (GOAWAY)")

    def _put_head(self, wire: Wire, stream_id: int, block: bytes) -> None:
        parts = [block[at : at + MAX_FRAME_BYTES] for at in range(0, len(block), MAX_FRAME_BYTES)]
        for index, part in enumerate(parts):
            flags = Flag.END_HEADERS if index == len(parts) - 1 else 0
            wire.put(frame(Kind.CONTINUATION if index else Kind.HEADERS, flags, stream_id, part))

    def _pump(self, wire: Wire, call: Call) -> bool:
        """Queue as much of the request as both windows let through; whether there is more for when it is written."""
        while call.sent_bytes < call.size:
            if wire.queued_bytes >= _AHEAD_BYTES:
                return True
            left = call.size - call.sent_bytes
            size = min(left, call.send_window, self._send_window, self._max_frame, _AHEAD_BYTES)
            if size <= 0:
                return False
            call.send_window -= size
            self._send_window -= size
            flags = Flag.END_STREAM if size == left else 0
            head = HEAD.pack(size >> 16, size & 0xFFFF, Kind.DATA, flags, call.stream_id)
            wire.put(head, *call.next_pieces(size))
        return False

    def _finish(self, wire: Wire, call: Call, until_s: float) -> None:
        """The answer is there: give up what it made needless, and write what was begun."""
        if call.sent_bytes < call.size and call.response.reset is None:
            wire.put(reset(call.stream_id, Code.CANCEL))
        end_s = min(until_s, monotonic() + _END_S)
        try:
            while not wire.flush():
                self._turn(wire, end_s)
        except (OSError, ConnectionFault, LateError):
            self.close()

    def _turn(self, wire: Wire, until_s: float, *, has_more: bool = False) -> None:
        """Write, then read; where there was neither to write more nor anything to read, wait.

        Raises:
            LateError: it is `until_s`.
        """
        if monotonic() >= until_s:
            raise LateError("no answer in time")
        is_written = wire.flush()
        if not self._read() and not (is_written and has_more):
            wire.wait(until_s)

    # -- what comes ----------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        assert self._wire is not None
        data = self._wire.read()
        if data is None:
            return False
        if not data:
            raise ConnectionResetError("the server closed the connection")
        if self._rest:
            data = self._rest + data
        view = memoryview(data)
        at, end = 0, len(data)
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, stream_id = HEAD.unpack_from(view, at)
            if not self._settled and kind != Kind.SETTINGS:
                # Most often somebody who does not speak HTTP/2 at all, which these bytes show.
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"got {data[at : at + 20]!r} first, expected SETTINGS")
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
        return True

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
        if stream_id % 2 == 0 or stream_id >= self._next_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got a frame of stream {stream_id}, which was never opened")
        call = self._call
        return call if call is not None and call.stream_id == stream_id and not call.response.whole else None

    def _say(self, data: bytes) -> None:
        assert self._wire is not None
        self._wire.put(data)
        if self._wire.queued_bytes > _SAID_BYTES + _AHEAD_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "got more to answer than was read of the answers")

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
        pairs = fields_of(self._decoder, block)  # of calls that are over as well, lest the tables part
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
        self._settled = True
        self._max_streams = said.get(Setting.MAX_CONCURRENT_STREAMS, self._max_streams)
        self._max_frame = said.get(Setting.MAX_FRAME_SIZE, self._max_frame)
        window = said.get(Setting.INITIAL_WINDOW_SIZE, self._first_window)
        more, self._first_window = window - self._first_window, window
        if self._call is not None:
            self._call.send_window = widened(self._call.send_window, more)
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
        self._leaves = True
        last_id = WORD.unpack_from(payload)[0] & MAX_STREAM_ID
        call = self._call
        if call is not None and call.stream_id > last_id and not call.response.whole:
            raise AgainError("the server is leaving (GOAWAY)")

    def _on_window_update(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        more = more_window(payload)
        if not more:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "got WINDOW_UPDATE of 0")
        if stream_id == 0:
            self._send_window = widened(self._send_window, more)
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
