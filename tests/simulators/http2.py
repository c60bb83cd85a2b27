"""HTTP/2 by hand: a connection without a socket, a client on a socket, and an exchange that keeps what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple, Self

from hpack import Decoder

from joulegram_pipeline.http2_frames import (
    HEAD,
    HEAD_BYTES,
    MAX_FRAME_BYTES,
    PREFACE,
    Flag,
    Kind,
    Setting,
    frame,
    header_block,
    settings,
)
from joulegram_receiver.http2_connection import Http2Connection
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.http2_wire import READ_BYTES

if TYPE_CHECKING:
    from types import TracebackType

    from joulegram_receiver.http2_stream import Exchange, Stream
    from joulegram_receiver.http2_wire import Http2Wire


class Frame(NamedTuple):
    """A frame as it was read."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frames_of(data: bytes) -> tuple[list[Frame], bytes]:
    """The frames at the beginning of some bytes, and what is left behind them."""
    found: list[Frame] = []
    at = 0
    while len(data) - at >= HEAD_BYTES:
        high, low, kind, flags, stream_id = HEAD.unpack_from(data, at)
        after = at + HEAD_BYTES + (high << 16 | low)
        if after > len(data):
            break
        found.append(Frame(kind, flags, stream_id, data[at + HEAD_BYTES : after]))
        at = after
    return found, data[at:]


def call_head(stream_id: int, path: str, *more: tuple[bytes, bytes], flags: int = Flag.END_HEADERS) -> bytes:
    """The HEADERS of a gRPC call."""
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"a")]
    pairs += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]
    return frame(Kind.HEADERS, flags, stream_id, header_block(pairs))


def call_body(stream_id: int, message: bytes, flags: int = Flag.END_STREAM) -> bytes:
    """The DATA of one message, in as many frames as it takes; the last has the flags."""
    data = b"\0" + len(message).to_bytes(4, "big") + message
    parts = [data[at : at + MAX_FRAME_BYTES] for at in range(0, len(data), MAX_FRAME_BYTES)]
    return b"".join(frame(Kind.DATA, flags if part is parts[-1] else 0, stream_id, part) for part in parts)


class Kept:
    """An exchange that keeps what it is told, and answers a whole request with its length."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.body = b""
        self.ended = self.left = False

    def data(self, chunk: bytes) -> None:
        """Keep it."""
        self.body += chunk

    def end(self) -> None:
        """Answer."""
        self.ended = True
        self.stream.begin(header_block(((b":status", b"200"),)))
        self.stream.body(b"%d" % len(self.body))
        self.stream.finish(header_block(((b"x", b"1"),)))

    def late(self, limit_s: float) -> None:
        """Give it up."""
        self.stream.finish(header_block(((b":status", b"408"),)))

    def gone(self) -> None:
        """Note it."""
        self.left = True

    def room(self) -> None:
        """There is no more to send."""


class KeepingHost:
    """A server of connections whose requests are kept."""

    def __init__(self, limits: Http2Limits | None = None) -> None:
        self.limits = limits or Http2Limits()
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.exchanges: list[Kept] = []

    def open(self, stream: Stream) -> Exchange:
        """Keep what it is told."""
        self.exchanges.append(Kept(stream))
        return self.exchanges[-1]

    def entered(self, connection: Http2Wire) -> bool:
        """There is room for all."""
        return True

    def left(self, connection: Http2Wire) -> None:
        """Nobody counts."""


class Pipe(asyncio.Transport):
    """A transport that keeps what is written, and says what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.ended = self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it; nothing may follow the end."""
        assert not self.ended
        self.written += data

    def can_write_eof(self) -> bool:
        """As TCP."""
        return True

    def write_eof(self) -> None:
        """The end."""
        self.ended = True

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closed

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def abort(self) -> None:
        """Note it."""
        self.closed = True

    def pause_reading(self) -> None:
        """Nothing comes by itself."""

    def resume_reading(self) -> None:
        """Nothing comes by itself."""


class Fed:
    """A connection that is fed bytes, with all that came of it."""

    def __init__(self, limits: Http2Limits | None = None) -> None:
        self.host = KeepingHost(limits)
        self.connection = Http2Connection(self.host)
        self.pipe = Pipe()
        self.connection.connection_made(self.pipe)

    async def feed(self, data: bytes) -> None:
        """As if the bytes had come at once, in reads as large as there is room for."""
        while data:
            room = self.connection.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            self.connection.buffer_updated(size)
            data = data[size:]
            await asyncio.sleep(0)  # one turn of the loop, after which all is written
        await asyncio.sleep(0)

    def close(self) -> None:
        """The client has gone."""
        self.connection.connection_lost(None)


class Http2Client:
    """A client on a socket, frame by frame; an async context manager."""

    def __init__(self, port: int, said: dict[Setting, int] | None = None) -> None:
        self._port = port
        self._said = said or {}
        self._rest = b""
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = self._said.get(Setting.HEADER_TABLE_SIZE, 4096)
        self.got: list[Frame] = []

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(PREFACE + settings(self._said))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def send(self, *parts: bytes) -> None:
        """Send frames."""
        self._writer.write(b"".join(parts))
        await self._writer.drain()

    async def until(self, kind: int, stream_id: int = 0, flags: int = 0) -> Frame:
        """The next frame of a kind and a stream that has these flags; others are kept in `got`.

        Raises:
            ConnectionError: the server closed first.
        """
        async with asyncio.timeout(20):
            while True:
                for index, each in enumerate(self.got):
                    if each.kind == kind and each.stream_id == stream_id and each.flags & flags == flags:
                        return self.got.pop(index)
                data = await self._reader.read(1 << 16)
                if not data:
                    raise ConnectionError(f"closed after {self.got}")
                found, self._rest = frames_of(self._rest + data)
                self.got += found

    async def closed(self) -> list[Frame]:
        """What comes until the server closes."""
        async with asyncio.timeout(20):
            while True:
                try:
                    data = await self._reader.read(1 << 16)
                except ConnectionError:
                    return self.got
                if not data:
                    return self.got
                found, self._rest = frames_of(self._rest + data)
                self.got += found

    async def settled(self) -> None:
        """All that was sent has been handled."""
        await self.send(frame(Kind.PING, 0, 0, b"settled!"))
        await self.until(Kind.PING, 0, Flag.ACK)

    async def status(self, stream_id: int) -> int:
        """How a call ended, of google.rpc.Code."""
        return int(self.fields(await self.until(Kind.HEADERS, stream_id, Flag.END_STREAM))[b"grpc-status"])

    def fields(self, found: Frame) -> dict[bytes, bytes]:
        """The header fields of a frame."""
        return {bytes(name): bytes(value) for name, value in self._decoder.decode(found.payload, raw=True)}
