"""The bytes of one HTTP/2 connection: cut into frames as they come, gathered and written as they go, and their end.

1. Bytes are read into a buffer that all connections of a server share; what is left of a frame is kept aside.
2. A frame is handled when it is whole.
3. What is to be sent is gathered over one turn of the loop and written at once.

Invariants:
    * while the peer does not read, nothing is read of it;
    * a connection that ends says why, and is read past for a moment so that its peer sees the reason.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.http2_frames import (
    HEAD,
    HEAD_BYTES,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    PREFACE,
    Code,
    ConnectionFault,
    Kind,
    frame,
    goaway,
)
from joulegram_receiver.http2_life import ConnectionLife, Http2Limits

if TYPE_CHECKING:
    from joulegram_receiver.http2_stream import Exchange, Stream

READ_BYTES = 64 * 1024
"""At once; what is read is handled in one go, and a thousand calls take a tenth of a second."""

_OUT_BYTES = 256 * 1024
"""Gathered in one turn of the loop; answers to many calls come in the same turn, before the transport can object."""

_HTTP1 = (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI")
_WRONG_PORT = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"got HTTP/1.1, expected gRPC (HTTP/2): this is the OTLP/gRPC port, OTLP/HTTP has its own (4318)\n"
)


class Host(Protocol):
    """The server, as its connections see it."""

    limits: Http2Limits
    buffer: memoryview
    """Of `READ_BYTES`, shared: it is written and read within one call from the loop."""

    def open(self, stream: Stream) -> Exchange:
        """What handles a request whose head has come; it may answer at once."""

    def entered(self, connection: Http2Wire) -> bool:
        """A client has connected; whether there is room for it."""

    def left(self, connection: Http2Wire) -> None:
        """It has gone."""


class Http2Wire(asyncio.BufferedProtocol, ABC):
    """See the module; what frames mean is the subclass's."""

    def __init__(self, host: Host) -> None:
        self.paused = False
        """Whether streams should send no more for now."""
        self.streams: dict[int, Stream] = {}
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._life = ConnectionLife(self, host.limits)
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._kept = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._stalled = False
        """Whether the peer does not read."""
        self._flushing = False
        self._greeted = False
        self._ended = False
        """Whether what comes is read to be thrown away."""
        self._mute = False
        """Whether the last word was said."""
        self._last_id = 0
        """The highest stream that the peer has opened."""

    @abstractmethod
    def start(self) -> None:
        """The client speaks HTTP/2: say what it may do."""

    @abstractmethod
    def on_frame(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        """Handle a frame, whose payload is there until this returns.

        Raises:
            ConnectionFault: it breaks HTTP/2.
        """

    @abstractmethod
    def drain(self) -> None:
        """Take no new request, and close when those under way are answered."""

    # -- the transport's calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._host.entered(self):
            transport.abort()
            return
        self._life.begin()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._life.end()
        self._ended = True
        for stream in tuple(self.streams.values()):
            stream.give_up()
        self._host.left(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        self._kept = len(self._rest)
        if not self._kept:
            return self._host.buffer
        self._host.buffer[: self._kept] = self._rest
        return self._host.buffer[self._kept :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._ended:
            self._rest = b""
            return
        self._life.heard()
        end = self._kept + nbytes
        view = self._host.buffer
        try:
            at = 0 if self._greeted else self._greet(view, end)
            while self._greeted and end - at >= HEAD_BYTES:
                high, low, kind, flags, stream_id = HEAD.unpack_from(view, at)
                size = high << 16 | low
                if size > MAX_FRAME_BYTES:
                    raise ConnectionFault(
                        Code.FRAME_SIZE_ERROR, f"got a frame of {size} bytes, expected at most {MAX_FRAME_BYTES}"
                    )
                after = at + HEAD_BYTES + size
                if after > end:
                    break
                self.on_frame(kind, flags, stream_id & MAX_STREAM_ID, view[at + HEAD_BYTES : after])
                if self._ended:
                    self._rest = b""
                    return
                at = after
            self._rest = bytes(view[at:end])
        except ConnectionFault as fault:
            self.end(fault.code, str(fault))
        if self.streams:
            self._life.watch_requests()

    def eof_received(self) -> bool:
        self._life.closing()
        return False

    def pause_writing(self) -> None:
        """The peer does not read: neither do we, lest answers pile up."""
        self.paused = self._stalled = True
        if self._transport is not None:
            self._transport.pause_reading()
            self._life.stalled()

    def resume_writing(self) -> None:
        self._life.resumed()
        self._stalled = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._go_on()

    # -- for streams, the server and the subclass ----------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write `data` at the end of this turn of the loop."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > _OUT_BYTES:
            self.paused = True
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def end(self, code: Code, text: str) -> None:
        """Say why and close; what comes is read past for a while, so that the peer sees the reason."""
        self.send(goaway(self._last_id, code, text))
        self._linger()

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self.send(frame(Kind.PING, 0, 0, bytes(8)))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        self._flushing = False
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if self._transport is not None and not self._mute and not self._transport.is_closing():
            self._transport.write(data)
        if self.paused:
            self._go_on()

    def _go_on(self) -> None:
        if not self._stalled and self._out_bytes <= _OUT_BYTES:
            self.paused = False
            for stream in tuple(self.streams.values()):
                stream.pump()

    def _close(self) -> None:
        self._flush()
        # Once: asyncio's TLS takes a second call as the last it hears of us, and could not be aborted then.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._life.closing()

    def _linger(self) -> None:
        self._ended = True
        self._flush()
        self._mute = True
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
        self._life.lingering()

    def _greet(self, view: memoryview, end: int) -> int:
        got = bytes(view[: min(end, len(PREFACE))])
        if not PREFACE.startswith(got):
            if got.startswith(_HTTP1):
                self.send(_WRONG_PORT)
                self._linger()
                return end
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"got {got!r}, expected the preface of HTTP/2")
        if len(got) < len(PREFACE):
            return 0
        self._greeted = True
        self.start()
        return len(PREFACE)
