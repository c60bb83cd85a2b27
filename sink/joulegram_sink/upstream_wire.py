"""Sockets towards a destination: connected, and written and read without blocking but in one place, `Wire.wait`.

Invariants:
    * reading never waits for writing, nor writing for reading: two peers whose buffers are full do not stand still;
    * what is to be sent is not copied on its way to a socket without TLS.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulegram_sink.upstream_destination import Endpoint

CONNECT_S = 5.0
"""For each address of a host, and for the TLS handshake; less where a send has less."""

_READ_BYTES = 64 * 1024
_PIECES = 512
"""Given to the kernel at once, which takes 1024."""

_RECORDS_BYTES = 64 * 1024
"""Encrypted at once: four records of TLS."""

_SILENT_S, _PROBE_S, _PROBES = 60, 10, 3
"""TCP keepalive: a peer that went without a word is found out while nothing is sent to it."""


def connect(
    target: Endpoint, context: ssl.SSLContext | None, server_name: str | None, timeout_s: float
) -> socket.socket:
    """A connection to the first address that takes one, of those the host's name has now.

    Args:
        target: host and port.
        context: of TLS, or None.
        server_name: that the server is asked for and its certificate must have; None takes the host.
        timeout_s: for each address, and for the handshake; it stays set.

    Raises:
        OSError: nobody there takes one.
    """
    sock = socket.create_connection((target.host, target.port), timeout_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        return sock if context is None else context.wrap_socket(sock, server_hostname=server_name or target.host)
    except BaseException:
        sock.close()
        raise


def interrupt(sock: socket.socket | None) -> None:
    """Have whoever waits on a socket fail, in whichever thread."""
    if sock is not None:
        with contextlib.suppress(OSError):
            # Not the method of TLS's, which takes the session from under who uses it.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Wire:
    """What is to be sent over a connected socket, and what comes; of one thread at a time.

    Args:
        sock: of `connect`; closed with this.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._write = self._write_tls if isinstance(sock, ssl.SSLSocket) else self._write_plain
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._waits_to_write = False
        self._pieces: deque[bytes | memoryview] = deque()
        self._records = b""
        """Taken from the pieces and given to TLS, which wants to be given the same again until it took it."""
        self._read_wants_write = self._write_wants_read = False
        self.queued_bytes = 0
        """Of what was put and is not written."""

    def put(self, *pieces: bytes | memoryview) -> None:
        """Have `pieces` sent, behind what is."""
        for piece in pieces:
            if piece:
                self._pieces.append(piece)
                self.queued_bytes += len(piece)

    def flush(self) -> bool:
        """Write what the kernel takes now; whether that is all.

        Raises:
            OSError: the connection is lost.
        """
        self._write_wants_read = False
        while self.queued_bytes:
            try:
                self._write()
            except (BlockingIOError, ssl.SSLWantWriteError):
                return False
            except ssl.SSLWantReadError:
                self._write_wants_read = True
                return False
        return True

    def read(self) -> bytes | None:
        """What has come: None for nothing, empty at the end.

        Raises:
            OSError: the connection is lost.
        """
        self._read_wants_write = False
        try:
            return self._sock.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
            return None

    def wait(self, until_s: float) -> None:
        """Block until there may be something to read, or room for what is to be sent, or it is `until_s`."""
        wants_write = self._read_wants_write or (self.queued_bytes > 0 and not self._write_wants_read)
        if wants_write is not self._waits_to_write:
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if wants_write else 0))
            self._waits_to_write = wants_write
        self._poll.poll(max(0, math.ceil((until_s - monotonic()) * 1000)))

    def interrupt(self) -> None:
        """Have whoever waits fail; for other threads."""
        interrupt(self._sock)

    def close(self) -> None:
        """Close the socket."""
        self._pieces.clear()
        self._sock.close()

    def _write_plain(self) -> None:
        sent = self._sock.sendmsg(list(islice(self._pieces, _PIECES)))
        self.queued_bytes -= sent
        while sent:
            first = self._pieces[0]
            if len(first) > sent:
                self._pieces[0] = memoryview(first)[sent:]
                return
            sent -= len(first)
            self._pieces.popleft()

    def _write_tls(self) -> None:
        if not self._records:
            room = _RECORDS_BYTES
            taken: list[bytes | memoryview] = []
            while self._pieces and room:
                first = self._pieces.popleft()
                if len(first) > room:
                    self._pieces.appendleft(memoryview(first)[room:])
                    first = memoryview(first)[:room]
                taken.append(first)
                room -= len(first)
            self._records = b"".join(taken)
        sent = self._sock.send(self._records)
        self.queued_bytes -= sent
        self._records = self._records[sent:]
