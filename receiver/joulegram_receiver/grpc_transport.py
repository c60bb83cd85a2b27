"""A gRPC server over HTTP/2, of the few methods that a receiver has: its listener, its connections, their end.

Not grpcio's: that takes 350 to 550 us of CPU for a call of one span, three times what all of joulegram does with it
(docs/benchmarks.md). HPACK is a library's; what is here is what OTLP clients need of RFC 9113 and of gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING, Self

from google.rpc import code_pb2

from joulegram_receiver.grpc_call import NotGrpc, Refused, TalkCall, UnaryCall
from joulegram_receiver.grpc_methods import CallRefusedError, Unary
from joulegram_receiver.http2_connection import Http2Connection
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.http2_wire import READ_BYTES
from joulegram_receiver.listener import listening, parse_endpoint

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from joulegram_receiver.grpc_methods import Method
    from joulegram_receiver.http2_head import Head
    from joulegram_receiver.http2_stream import Exchange, Stream
    from joulegram_receiver.http2_wire import Http2Wire

    Authorize = Callable[[Head], CallRefusedError | None]
    """Why a call may not come in; None where it may."""

MAX_CONNECTIONS = 1024
_GRACE_S = 5.0
_HANDSHAKE_S = 10.0
_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;]|$)", re.IGNORECASE)
"""gRPC-Web begins with the same, and cannot read what we say."""


class GrpcServer:
    """See the module; an async context manager.

    Args:
        endpoint: ``host:port`` or ``unix:/path``; port 0 lets the system choose, `port` says which.
        key: of the endpoint in the configuration, for messages.
        methods: by their paths, as ``/package.Service/Method``.
        max_recv_bytes: a larger message is refused with RESOURCE_EXHAUSTED, before and after decompression.
        ssl_context: for TLS, which offers ``h2``; plaintext if None.
        authorize: asked of each call before anything else of it is looked at.
        refused: told the reason of a refusal made before the method was known.
        limits: of each connection.
        max_connections: at once; one more is closed.
        grace_s: how long calls under way may take at stop.

    Raises (on enter):
        ConfigError: the endpoint is not one.
        BusyError: another process holds the port or the socket.
    """

    def __init__(
        self,
        endpoint: str,
        key: str,
        methods: Mapping[str, Method],
        *,
        max_recv_bytes: int,
        ssl_context: ssl.SSLContext | None = None,
        authorize: Authorize | None = None,
        refused: Callable[[str], None] | None = None,
        limits: Http2Limits | None = None,
        max_connections: int = MAX_CONNECTIONS,
        grace_s: float = _GRACE_S,
    ) -> None:
        self.port = 0
        self.limits = limits or Http2Limits()
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._endpoint = endpoint
        self._key = key
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._max_recv_bytes = max_recv_bytes
        self._ssl_context = ssl_context
        self._authorize = authorize
        self._refused = refused
        self._max_connections = max_connections
        self._grace_s = grace_s
        self._connections: set[Http2Wire] = set()
        self._gone = asyncio.Event()
        self._stopping = False
        self._server: asyncio.Server | None = None
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(listening(parse_endpoint(self._endpoint, self._key), self._key))
            if listener.family != socket.AF_UNIX:
                self.port = listener.getsockname()[1]
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted sockets have it too
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Http2Connection(self),
                sock=listener,
                ssl=self._ssl_context,
                ssl_handshake_timeout=None if self._ssl_context is None else _HANDSHAKE_S,
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._server is None:
                return
            self._server.close()
            self._stopping = True
            for connection in tuple(self._connections):
                connection.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone(), self._grace_s)
            for connection in tuple(self._connections):
                connection.abort()
            await self._all_gone()

    async def _all_gone(self) -> None:
        while self._connections:
            self._gone.clear()
            await self._gone.wait()

    # -- for connections -----------------------------------------------------------------------------------------

    def entered(self, connection: Http2Wire) -> bool:
        """A client has connected; whether there is room for it."""
        self._connections.add(connection)
        if self._stopping:  # it was accepted before, as one whose TLS handshake takes its time
            return False
        if len(self._connections) <= self._max_connections:
            return True
        if self._refused is not None:
            self._refused("connections")
        return False

    def left(self, connection: Http2Wire) -> None:
        """It has gone."""
        self._connections.discard(connection)
        self._gone.set()

    def open(self, stream: Stream) -> Exchange:
        """What handles a call; the first of these refusals that holds, in the order a stranger may know them."""
        head = stream.head
        if head.size_bytes > self.limits.max_head_bytes:
            if self._refused is not None:
                self._refused("headers")
            text = (
                f"got {head.size_bytes} bytes of header fields or more, expected at most {self.limits.max_head_bytes}"
            )
            return Refused(stream, CallRefusedError(code_pb2.RESOURCE_EXHAUSTED, text))
        if head.method != b"POST":
            return NotGrpc(stream, b"405")
        if not _CONTENT_TYPE.match(head.get(b"content-type")):
            return NotGrpc(stream, b"415")
        if self._authorize is not None:
            refusal = self._authorize(head)
            if refusal is not None:
                return Refused(stream, refusal)
        method = self._methods.get(head.path)
        if method is None:
            expected = ", ".join(path.decode() for path in self._methods)
            text = f"got method {head.path[:200].decode('latin-1')!r}, expected one of {expected}"
            return Refused(stream, CallRefusedError(code_pb2.UNIMPLEMENTED, text))
        if isinstance(method, Unary):
            max_bytes = self._max_recv_bytes
            return UnaryCall(stream, method, min(max_bytes, method.max_bytes or max_bytes))
        return TalkCall(stream, method)
