"""HTTP/2 of a client (RFC 9113) over one connection: a call at a time, blocking, with a deadline.

Not grpcio's, which takes 10 MiB, threads that wake by themselves and a copy of each body. Not `h2`'s, which copies too
and knows no sockets, deadlines or second tries: the frames are there for our server (`http2_frames`) already.

Invariants:
    * a call is made on a connection whose peer has said its settings, and which it has not said it will leave;
    * both windows are kept to, and what comes is read while a body waits for room;
    * a connection on which anything went wrong is closed: the next call finds the peer anew.
"""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import UpstreamError
from joulegram_pipeline.http2_fields import MAX_BLOCK_BYTES
from joulegram_pipeline.http2_frames import (
    HEAD,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    NO_TABLE,
    PREFACE,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    Setting,
    frame,
    goaway,
    reset,
    settings,
)
from joulegram_sink.upstream_server_side import AgainError, ServerSide
from joulegram_sink.upstream_wire import CONNECT_S, Wire, connect

if TYPE_CHECKING:
    import ssl

    from joulegram_sink.upstream_call import Call, Response
    from joulegram_sink.upstream_destination import Endpoint

_AHEAD_BYTES = 512 * 1024
"""Of a body, made into frames before the kernel takes them; also the largest frame."""

_SAID_BYTES = 1024 * 1024
"""Of what is queued: a peer that asks for more answers than it reads is left."""

_END_S = 1.0
"""For what is still queued when the answer is there."""

_READS_WHILE_IDLE = 8


class LateError(UpstreamError):
    """There is no answer in time."""


class UnreachableError(UpstreamError):
    """There is nobody at the address, or nobody who speaks HTTP/2, or who takes requests."""


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
        self._is_cut = False
        self._server = ServerSide(self._say)

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
            UnreachableError: there is nobody to send it to.
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
            self._server.call = None

    @property
    def is_usable(self) -> bool:
        """Whether the next call may be made here; what came meanwhile is looked at."""
        if self._wire is None:
            return False
        try:
            for _ in range(_READS_WHILE_IDLE):
                if not self._read():
                    self._wire.flush()
                    return not self._server.leaves and self._server.next_id <= MAX_STREAM_ID
        except (OSError, ConnectionFault):
            pass
        return False

    def interrupt(self) -> None:
        """Have whoever waits on it fail, or as soon as it is connected; for other threads."""
        self._is_cut = True
        if self._wire is not None:
            self._wire.interrupt()

    def close(self, code: Code = Code.NO_ERROR) -> None:
        """Say why, if there is room for that, and close."""
        wire, self._wire = self._wire, None
        if wire is not None:
            if self._server.settled:
                with contextlib.suppress(OSError):
                    wire.put(goaway(0, code))
                    wire.flush()
            wire.close()

    # -- a call --------------------------------------------------------------------------------------------------

    def _exchange(self, block: bytes, prefix: bytes, message: bytes, max_bytes: int, until_s: float) -> Response:
        wire = self._wire or self._open(until_s)
        self._wait_for_leave(wire, until_s)
        is_first = self._server.next_id == 1
        call = self._server.begin(prefix, message, max_bytes)
        self._put_head(wire, call.stream_id, NO_TABLE + block if is_first else block)
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
            if self._is_cut:
                raise UnreachableError("the destination was closed")
            if self.context is not None and sock.selected_alpn_protocol() != "h2":  # type: ignore[attr-defined]
                raise UnreachableError("the server did not agree to HTTP/2 (ALPN)")
            wire.put(PREFACE, settings({Setting.ENABLE_PUSH: 0, Setting.MAX_HEADER_LIST_SIZE: MAX_BLOCK_BYTES}))
            settled_s = min(until_s, monotonic() + CONNECT_S)
            while not self._server.settled:
                self._turn(wire, settled_s)
        except LateError as error:
            raise UnreachableError("got no HTTP/2 in time") from error
        except OSError as error:
            raise UnreachableError(str(error)) from error
        return wire

    def _wait_for_leave(self, wire: Wire, until_s: float) -> None:
        """Wait while the peer wants no request; it is given as long as a call may take."""
        try:
            while self._server.max_streams == 0 and not self._server.leaves:
                self._turn(wire, until_s)
        except LateError as error:
            raise UnreachableError("the server takes no requests (MAX_CONCURRENT_STREAMS is 0)") from error
        if self._server.leaves:
            raise AgainError("the server is leaving (GOAWAY)")

    def _put_head(self, wire: Wire, stream_id: int, block: bytes) -> None:
        parts = [block[at : at + MAX_FRAME_BYTES] for at in range(0, len(block), MAX_FRAME_BYTES)]
        for index, part in enumerate(parts):
            flags = Flag.END_HEADERS if index == len(parts) - 1 else 0
            wire.put(frame(Kind.CONTINUATION if index else Kind.HEADERS, flags, stream_id, part))

    def _pump(self, wire: Wire, call: Call) -> bool:
        """Queue as much of the request as both windows let through; whether there is more for when it is written."""
        server = self._server
        while call.sent_bytes < call.size:
            if wire.queued_bytes >= _AHEAD_BYTES:
                return True
            left = call.size - call.sent_bytes
            size = min(left, call.send_window, server.send_window, server.max_frame, _AHEAD_BYTES)
            if size <= 0:
                return False
            call.send_window -= size
            server.send_window -= size
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

    def _read(self) -> bool:
        """Take in what has come; whether there was anything."""
        assert self._wire is not None
        data = self._wire.read()
        if data is None:
            return False
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._server.feed(data)
        return True

    def _say(self, data: bytes) -> None:
        assert self._wire is not None
        self._wire.put(data)
        if self._wire.queued_bytes > _SAID_BYTES + _AHEAD_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "got more to answer than was read of the answers")
