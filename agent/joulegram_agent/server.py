"""The agent's Unix socket: mode 0660, a bounded number of peers, and nothing a peer sends can end it.

Invariants:
    * the socket is never open to others, not even between bind and chmod;
    * a live agent's socket is left alone; one that nobody listens on is replaced;
    * a line that is not a JSON object, or too long, ends the connection; a request that is refused does not;
    * what a connection named is released when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING, Self

from joulegram_agent.protocol import MAX_REQUEST_BYTES, answer, parse_request, refusal
from joulegram_pipeline.errors import BusyError, ConfigError, StorageError, WireError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from joulegram_agent.local import LocalAgent

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
MAX_CONNECTIONS = 64
IDLE_S = 300.0
"""A connection that asks nothing for this long, or does not take its answer, is closed."""


class AgentServer:
    """Serves an agent on a socket while it is entered.

    Args:
        agent: entered before and left after this.
        path: of the socket; its directory exists.
        max_connections: beyond these a peer is told ``busy`` and closed.
        idle_s: see `IDLE_S`.

    Raises (on enter):
        BusyError: another agent listens there.
        ConfigError: the path is too long for a socket, or holds something that is not one.
        StorageError: the directory is missing or not writable.
    """

    def __init__(
        self,
        agent: LocalAgent,
        path: Path,
        *,
        max_connections: int = MAX_CONNECTIONS,
        idle_s: float = IDLE_S,
    ) -> None:
        self._agent = agent
        self._path = path
        self._max_connections = max_connections
        self._idle_s = idle_s
        self._peers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode: int | None = None

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._peers)

    async def __aenter__(self) -> Self:
        listener = _bind(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_REQUEST_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            for peer in self._peers:
                peer.cancel()
            await asyncio.gather(*self._peers, return_exceptions=True)
            await self._server.wait_closed()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        holder = object()
        self._peers.add(task)
        try:
            if len(self._peers) > self._max_connections:
                writer.write(refusal(None, "busy", f"{self._max_connections} connections are open"))
            else:
                await self._converse(holder, reader, writer)
        except (OSError, TimeoutError) as error:
            log.debug("a connection ended: %r", error)
        except asyncio.CancelledError:
            log.debug("a connection was closed at the agent's stop")
        except Exception:
            log.exception("a connection failed")
        finally:
            self._agent.release(holder)
            self._peers.discard(task)
            writer.close()

    async def _converse(self, holder: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                request = parse_request(line)
            except (ValueError, WireError) as error:
                # readline says ValueError for a line above its limit.
                message = str(error) if isinstance(error, WireError) else f"a line above {MAX_REQUEST_BYTES} bytes"
                writer.write(refusal(None, "bad_request", message))
                return
            writer.write(answer(self._agent, holder, request))
            async with asyncio.timeout(self._idle_s):
                await writer.drain()


def _bind(path: Path) -> socket.socket:
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno is None or error.errno == errno.ENAMETOOLONG:
            raise ConfigError("socket", str(path), "a path short enough for a Unix socket, 107 bytes") from error
        if error.errno == errno.EADDRINUSE:
            raise BusyError(f"agent socket {str(path)!r}: another agent took it meanwhile") from error
        raise StorageError(f"agent socket {str(path)!r}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return listener


def _clear(path: Path) -> None:
    """Remove a socket nobody listens on; refuse anything else."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("socket", str(path), "no file there, or a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise BusyError(f"agent socket {str(path)!r}: {error.strerror or error}") from error
    raise BusyError(f"agent socket {str(path)!r} is in use by another agent; stop it or give this one another path")
