"""Who is at the other end of the socket, by the kernel's word, and whether they may ask (unix(7), SO_PEERCRED).

Invariants:
    * credentials are those at the moment of connecting; nothing a peer sends can change them;
    * whoever is none of those allowed is refused, whatever the file's mode and access lists say.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

SO_PEERGROUPS = 59
"""Linux include/uapi/asm-generic/socket.h, since 4.13; Python has no name for it."""

_UCRED = struct.Struct("=iII")
_GID = struct.Struct("=I")
_GROUP_BYTES = 1024
"""The most Python's getsockopt takes: 256 groups."""

ROOT = 0


class Connection(Protocol):
    """A connected Unix socket, or asyncio's view of one."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """See socket(7)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer as it was when it connected.

    Args:
        uid: its effective user; 65534 where this user namespace has no number for it.
        groups: its effective group, and its supplementary ones where the kernel tells them.
    """

    uid: int
    groups: frozenset[int]


def peer_of(connection: Connection) -> Peer:
    """The peer of a connected Unix socket.

    A peer in more than 256 supplementary groups, or on a kernel before 4.13, counts as in its effective one alone.

    Raises:
        OSError: the socket has no peer.
    """
    _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = {gid}
    try:
        told = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUP_BYTES)
    except OSError as error:
        if error.errno not in {errno.ENOPROTOOPT, errno.ERANGE, errno.EINVAL}:
            raise
    else:
        groups.update(number for (number,) in _GID.iter_unpack(told))
    return Peer(uid, frozenset(groups))


class Allowed:
    """Who may ask: root, the agent's own user, members of the socket's group, and of the groups listed.

    Args:
        groups: beside the socket's own.
    """

    def __init__(self, groups: frozenset[int] = frozenset()) -> None:
        self._groups = groups

    def admits(self, peer: Peer, socket_group: int) -> bool:
        """Whether this peer may ask on a socket whose file has that group."""
        return peer.uid in {ROOT, os.geteuid()} or bool(peer.groups & (self._groups | {socket_group}))


def group_number(flag: str, name: str) -> int:
    """The number of a group that is named or numbered.

    Raises:
        ConfigError: there is no such group.
    """
    if name.isascii() and name.isdigit() and len(name) <= 10:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(flag, name, "a group of this machine, or its number") from None


def group_numbers(flag: str, names: Sequence[str]) -> frozenset[int]:
    """As `group_number`, of several."""
    return frozenset(group_number(flag, name) for name in names)
