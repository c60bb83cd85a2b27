"""Clients of the gRPC port that hold what they can: connections, streams, memory and time; on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from joulegram_receiver.grpc_methods import Unary
from joulegram_receiver.http2_frames import PREFACE, Setting, settings, window_update
from joulegram_receiver.http2_life import Http2Limits
from simulators.certificates import Authority
from simulators.grpc_methods import ECHO, serving
from simulators.http2 import call_body, call_head

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_receiver.admission import Hold
    from joulegram_receiver.grpc_transport import GrpcServer
    from joulegram_receiver.http2_head import Head

ECHO_PATH = "/echo.Echo/Say"
BIG_PATH = "/echo.Echo/Much"
ANSWER_BYTES = 40_000
HELLO = PREFACE + settings({Setting.INITIAL_WINDOW_SIZE: 1 << 30}) + window_update(0, 1 << 30)
"""Of a client with room for all there is, were it to read."""


async def _much(message: bytes, head: Head, hold: Hold) -> bytes:
    return bytes(ANSWER_BYTES)


METHODS = {ECHO_PATH: ECHO, BIG_PATH: Unary(_much)}


class Deaf:
    """A client that reads only when it is told to, over TLS where it has a context."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        self._into, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = None if context is None else context.wrap_bio(self._into, self._out)

    async def connect(self, port: int) -> None:
        """To the server, without a word of TLS."""
        await self._loop.sock_connect(self._socket, ("127.0.0.1", port))

    async def begin_handshake(self) -> None:
        """The first half."""
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        await self._loop.sock_sendall(self._socket, self._out.read())

    async def shake(self) -> None:
        """The whole handshake; ConnectionError where the server does not."""
        assert self._tls is not None
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._loop.sock_sendall(self._socket, self._out.read())
                data = await asyncio.wait_for(self._loop.sock_recv(self._socket, 1 << 16), 20)
                if not data:
                    raise ConnectionError("closed within the handshake") from None
                self._into.write(data)
            else:
                await self._loop.sock_sendall(self._socket, self._out.read())
                return

    async def send(self, data: bytes) -> None:
        """Send."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._out.read()
        await self._loop.sock_sendall(self._socket, data)

    async def receive(self) -> bytes:
        """What comes of the socket; nothing at its end."""
        return await asyncio.wait_for(self._loop.sock_recv(self._socket, 1 << 16), 20)

    async def half_close(self) -> None:
        """Say that no more is sent: close_notify, or a FIN."""
        if self._tls is None:
            self._socket.shutdown(socket.SHUT_WR)
            return
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._loop.sock_sendall(self._socket, self._out.read())

    async def clog(self, server: GrpcServer) -> None:
        """Call until an answer stays in the server's hands, too little of it that the transport would mind."""
        (connection,) = server._connections
        stream_id = 1
        while True:
            transport = connection._transport
            assert transport is not None
            inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
            if inner.get_write_buffer_size():
                assert not connection.paused
                return
            await self.send(call_head(stream_id, BIG_PATH) + call_body(stream_id, b"a"))
            stream_id += 2
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(*Authority().issue("localhost").write(tmp_path))
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


async def _gone(server: GrpcServer) -> None:
    await asyncio.wait_for(server._all_gone(), 20)


# -- the end of connections ------------------------------------------------------------------------------------------


def test_a_handshake_that_ends_behind_the_stop_is_not_served(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Nothing is there any more that could keep a request."""
    taken: list[bytes] = []

    async def take(message: bytes, head: Head, hold: Hold) -> bytes:
        taken.append(message)
        return b""

    async def main() -> None:
        client = Deaf(contexts[1])
        async with serving({ECHO_PATH: Unary(take)}, ssl_context=contexts[0]) as server:
            await client.connect(server.port)
            await client.begin_handshake()
            await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            await client.shake()
            await client.send(HELLO + call_head(1, ECHO_PATH) + call_body(1, b"late"))
            while await client.receive():
                pass
        client.close()
        assert taken == []
        assert not server._connections

    asyncio.run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
@pytest.mark.parametrize("half_closed", [False, True], ids=["silent", "half closed"])
def test_a_stop_ends_though_a_client_does_not_read(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], tls: bool, half_closed: bool
) -> None:
    """Within the grace, also where the client has closed its half."""

    async def main() -> None:
        client = Deaf(contexts[1] if tls else None)
        async with asyncio.timeout(10):
            async with serving(METHODS, ssl_context=contexts[0] if tls else None, grace_s=1.2) as server:
                await client.connect(server.port)
                if tls:
                    await client.shake()
                await client.send(HELLO)
                await asyncio.sleep(0.1)
                await client.clog(server)
                if half_closed:
                    await client.half_close()
                    await asyncio.sleep(0.1)
        client.close()

    asyncio.run(main())


@pytest.mark.parametrize("half_closed", [False, True], ids=["idle", "half closed"])
def test_a_connection_that_is_closed_is_gone_though_its_client_does_not_read(half_closed: bool) -> None:
    """In the time that a peer has to read; else each would count among the connections for ever."""

    async def main() -> None:
        limits = Http2Limits(request_s=0.3, max_idle_s=None if half_closed else 0.2)
        client = Deaf()
        async with serving(METHODS, limits=limits) as server:
            await client.connect(server.port)
            await client.send(HELLO)
            await asyncio.sleep(0.1)
            await client.clog(server)
            if half_closed:
                await client.half_close()
            await _gone(server)
        client.close()

    asyncio.run(main())
