"""The agent's Unix socket: mode 0660, a bounded number of peers that may ask, and nothing a peer sends can end it.

Invariants:
    * the socket is never open to others, not even between bind and chmod;
    * a live agent's socket is left alone; one that nobody listens on is replaced;
    * whoever is not allowed is told ``denied`` and closed before a byte of theirs is read;
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
from collections import Counter
from typing import TYPE_CHECKING, Self

from joulegram_agent.conversation import Conversation, Counts, Limits
from joulegram_agent.peers import Allowed, Peer, peer_of
from joulegram_agent.protocol import MAX_REQUEST_BYTES, refusal
from joulegram_agent.rates import Rates
from joulegram_pipeline.errors import BusyError, ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from joulegram_agent.local import LocalAgent
    from joulegram_agent.peers import Connection

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
_KEEP = -1
_BACKLOG = 100


class AgentServer:
    """Serves an agent on a socket while it is entered.

    Args:
        agent: entered before and left after this.
        path: of the socket; its directory exists.
        limits: what peers may hold.
        rates: what users may ask.
        allowed: who may ask, beside the socket's group.
        owner: user and group the socket is given to; -1 keeps what it has.
        who: reads a connection's peer; the seam at which a test can be somebody else.

    Raises (on enter):
        BusyError: another agent listens there.
        ConfigError: the path is too long for a socket, or holds something that is not one; or the socket may not be
            given to `owner`.
        StorageError: the directory is missing or not writable.
    """

    def __init__(
        self,
        agent: LocalAgent,
        path: Path,
        limits: Limits | None = None,
        *,
        rates: Rates | None = None,
        allowed: Allowed | None = None,
        owner: tuple[int, int] = (_KEEP, _KEEP),
        who: Callable[[Connection], Peer] = peer_of,
    ) -> None:
        self.counts = Counts()
        self._agent = agent
        self._path = path
        self._limits = limits or Limits()
        self._rates = rates or Rates()
        self._allowed = allowed or Allowed()
        self._owner = owner
        self._who = who
        self._peers: dict[asyncio.Task[None], int] = {}
        self._sessions: set[Conversation] = set()
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._group = _KEEP

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._peers)

    @property
    def subscriptions(self) -> int:
        """Connections that are told ticks now."""
        return sum(conversation.session.subscribed for conversation in self._sessions)

    def listen(self) -> None:
        """Take the socket before entering, raising what that raises; then `close` gives it back, entered or not."""
        self._listener = _bind(self._path, self._owner)
        about = self._path.stat()
        self._inode, self._group = about.st_ino, about.st_gid

    def close(self) -> None:
        """Give the socket back; a second call does nothing."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()

    async def __aenter__(self) -> Self:
        if self._listener is None:
            self.listen()
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listener, limit=MAX_REQUEST_BYTES)
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
        self.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            peer = self._who(writer.get_extra_info("socket"))
            self._peers[task] = peer.uid
            refused = self._refuses(peer)
            if refused is not None:
                writer.write(refusal(None, *refused))
            else:
                self.counts.connections += 1
                await self._converse(
                    Conversation(self._agent, self._rates.of(peer.uid), self._limits, self.counts, reader, writer)
                )
        except OSError as error:
            log.debug("a connection ended: %r", error)
        except asyncio.CancelledError:
            log.debug("a connection was closed at the agent's stop")
        except Exception:
            log.exception("a connection failed")
        finally:
            self._peers.pop(task, None)
            writer.close()

    async def _converse(self, conversation: Conversation) -> None:
        self._sessions.add(conversation)
        try:
            await conversation.run()
        finally:
            self._sessions.discard(conversation)

    def _refuses(self, peer: Peer) -> tuple[str, str] | None:
        """Code and sentence if this peer gets no conversation."""
        if not self._allowed.admits(peer, self._group):
            self.counts.deny(peer.uid)
            log.warning("user %d may not ask: it is in no group that may", peer.uid)
            return "denied", f"user {peer.uid} is neither in the group of this socket nor in one that is allowed"
        bucket = self._rates.of(peer.uid)
        of_user = Counter(self._peers.values())[peer.uid]
        if len(self._peers) > self._limits.connections:
            code, message = "busy", f"{self._limits.connections} connections are open"
        elif of_user > self._limits.connections_of_user:
            code, message = "busy", f"{self._limits.connections_of_user} connections of user {peer.uid} are open"
        elif (wait_s := bucket.wait_s()) > 0:
            code, message = "too_fast", f"come again in {wait_s:.1f} s"
        else:
            bucket.charge(1)
            return None
        self.counts.refusals[code] += 1
        return code, message


def _bind(path: Path, owner: tuple[int, int]) -> socket.socket:
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
        _give(path, owner)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except ConfigError:
        listener.close()
        raise
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


def _give(path: Path, owner: tuple[int, int]) -> None:
    if owner == (_KEEP, _KEEP):
        return
    try:
        os.chown(path, *owner)
    except PermissionError as error:
        path.unlink()
        expected = "to be started as root, or a group this user is in"
        raise ConfigError("--user, --group", ":".join(map(str, owner)), expected) from error


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
