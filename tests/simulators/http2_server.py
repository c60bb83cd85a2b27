"""A server of HTTP/2 that does on each connection what a script tells it, frame by frame, on a real socket."""

from __future__ import annotations

import contextlib
import socket
import struct
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple, Self

from hpack import Decoder

from joulegram_pipeline.http2_frames import (
    DEFAULT_WINDOW_BYTES,
    MAX_FRAME_BYTES,
    PREFACE,
    Flag,
    Kind,
    Setting,
    frame,
    header_block,
    settings,
    window_update,
)
from simulators.http2 import Frame, frames_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

_PATIENCE_S = 20.0
_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))


class Request(NamedTuple):
    """A call as it came."""

    stream_id: int
    fields: dict[str, str]
    message: bytes
    """Without its prefix of five bytes, compressed if the prefix said so."""


class Peer:
    """One connection, on the server's side. It holds the client to its windows and frame size."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got: list[Frame] = []
        """What came while something else was waited for."""
        self.windows = {0: DEFAULT_WINDOW_BYTES}
        self.window = DEFAULT_WINDOW_BYTES
        self.max_frame = MAX_FRAME_BYTES
        self.decoder = Decoder()
        self._data = b""
        self._frames: list[Frame] = []

    def greet(self, said: dict[Setting, int] | None = None) -> Self:
        """Read the preface, and say settings."""
        while len(self._data) < len(PREFACE):
            self._more()
        assert self._data.startswith(PREFACE)
        self._data = self._data[len(PREFACE) :]
        assert self.next().kind == Kind.SETTINGS
        self.settle(said or {})
        return self

    def settle(self, said: dict[Setting, int]) -> None:
        """Say settings, and hold the client to them once it has acknowledged them."""
        self.send(settings(said))
        self.until(Kind.SETTINGS, flags=Flag.ACK)
        more = said.get(Setting.INITIAL_WINDOW_SIZE, self.window) - self.window
        self.window += more
        for stream_id in self.windows:
            self.windows[stream_id] += more if stream_id else 0
        self.max_frame = said.get(Setting.MAX_FRAME_SIZE, self.max_frame)

    def send(self, *parts: bytes) -> None:
        """Send frames, or anything."""
        self.sock.sendall(b"".join(parts))

    def next(self) -> Frame:
        """The next frame; ConnectionError at the end."""
        while not self._frames:
            self._frames, self._data = frames_of(self._data)
            if not self._frames:
                self._more()
        found = self._frames.pop(0)
        if found.kind == Kind.HEADERS:
            self.windows[found.stream_id] = self.window
        elif found.kind == Kind.DATA:
            size = len(found.payload)
            assert size <= self.max_frame, f"a frame of {size} bytes, {self.max_frame} allowed"
            for stream_id in (0, found.stream_id):
                self.windows[stream_id] -= size
                assert self.windows[stream_id] >= 0, f"more than the window of {stream_id}"
        return found

    def until(self, kind: int, stream_id: int | None = None, flags: int = 0) -> Frame:
        """The next frame of a kind; others are kept in `got`, but for acknowledgements."""
        while True:
            found = self.next()
            if found.kind == kind and stream_id in (None, found.stream_id) and found.flags & flags == flags:
                return found
            self.got.append(found)

    def head(self) -> tuple[int, dict[str, str]]:
        """Stream and fields of the next call."""
        found = self.until(Kind.HEADERS)
        block = found.payload
        flags = found.flags
        while not flags & Flag.END_HEADERS:
            more = self.next()
            assert (more.kind, more.stream_id) == (Kind.CONTINUATION, found.stream_id)
            block, flags = block + more.payload, more.flags
        return found.stream_id, {str(name): str(value) for name, value in self.decoder.decode(block)}

    def grant(self, stream_id: int, more: int) -> None:
        """Give the client room."""
        self.windows[stream_id] += more
        self.send(window_update(stream_id, more))

    def body(self, stream_id: int) -> bytes:
        """The message of a call, whose window is widened as it comes."""
        data = b""
        while True:
            found = self.until(Kind.DATA, stream_id)
            data += found.payload
            if found.payload:
                self.grant(0, len(found.payload))
            if found.flags & Flag.END_STREAM:
                break
            if found.payload:
                self.grant(stream_id, len(found.payload))
        assert struct.unpack(">L", data[1:5]) == (len(data) - 5,)
        return data[5:]

    def request(self) -> Request:
        """The next call, whole."""
        stream_id, fields = self.head()
        return Request(stream_id, fields, self.body(stream_id))

    def answer(self, stream_id: int, message: bytes = b"", **trailers: str) -> None:
        """Answer a call with a message, then OK unless `trailers` say otherwise; underscores are dashes."""
        self.send(
            head(stream_id),
            frame(Kind.DATA, 0, stream_id, struct.pack(">BL", 0, len(message)) + message),
            trailer(stream_id, **({"grpc_status": "0"} | trailers)),
        )

    def end(self) -> list[Frame]:
        """What comes until the client closes."""
        with contextlib.suppress(ConnectionError):
            while True:
                self.got.append(self.next())
        return self.got

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the client closed")
        self._data += data


def head(stream_id: int, *more: tuple[bytes, bytes], flags: int = Flag.END_HEADERS) -> bytes:
    """The HEADERS an answer of gRPC begins with."""
    return frame(Kind.HEADERS, flags, stream_id, header_block((*_HEAD, *more)))


def trailer(stream_id: int, **fields: str) -> bytes:
    """The HEADERS at the end of an answer; underscores are dashes."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return frame(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, stream_id, header_block(pairs))


def trailers_only(stream_id: int, **fields: str) -> bytes:
    """An answer that has nothing else."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return head(stream_id, *pairs, flags=Flag.END_HEADERS | Flag.END_STREAM)


class Http2Server:
    """Entered, it listens; its connections get the scripts in turn. Left, it fails as a script failed.

    Args:
        scripts: each handles one connection, which is closed behind it.
        context: for TLS; None speaks plaintext.
        port: 0 for any.
    """

    def __init__(
        self, *scripts: Callable[[Peer], object], context: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        self._scripts = scripts
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(_PATIENCE_S)
        self.port: int = self._listener.getsockname()[1]
        self._errors: list[BaseException] = []
        self._threads: list[Thread] = []
        self._acceptor = Thread(target=self._accept, name="scripted server")

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # or it would wait for connections that do not come
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        if kind is None and self._errors:
            raise self._errors[0]

    def _accept(self) -> None:
        for script in self._scripts:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                self._errors.append(error)
                return
            thread = Thread(target=self._run, args=(sock, script), name="scripted connection")
            thread.start()
            self._threads.append(thread)

    def _run(self, sock: socket.socket, script: Callable[[Peer], object]) -> None:
        sock.settimeout(_PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            script(Peer(sock))
        except BaseException as error:  # noqa: BLE001 - for the test's thread
            self._errors.append(error)
        finally:
            sock.close()
