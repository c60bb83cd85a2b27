"""Where a server listens: TCP and Unix addresses, read, checked and bound.

Invariants:
    * two processes never share a port or a socket file in silence;
    * what is deleted to make room is a socket that nobody answers, nothing else;
    * nobody connects to a Unix socket before its mode is set.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from joulegram_pipeline.errors import BusyError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIX_MODE = 0o660
"""Of socket files: the owner and its group may connect."""

_BACKLOG = 1024
_MAX_UNIX_BYTES = 107
"""sun_path of Linux, less the zero at its end."""

_PROBE_TIMEOUT_S = 1.0
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", re.ASCII)
_EXPECTED = "host:port, as 127.0.0.1:4317 (port 0 takes a free one), [::1]:4317, or unix:/path"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, without the brackets of IPv6, and a port; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """An absolute path of a socket file."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress


def parse_endpoint(endpoint: str, key: str) -> Address:
    """Read ``host:port``, ``[v6]:port``, ``unix:/path`` or ``unix:///path``.

    Args:
        endpoint: as the user wrote it.
        key: of the configuration, for messages.

    Raises:
        ConfigError: it is none of them.
    """
    if endpoint.startswith("unix:"):
        path = re.sub(r"^//(?=/)", "", endpoint.removeprefix("unix:"))
        if not path.startswith("/") or path.startswith("//") or path.endswith("/") or "\0" in path:
            raise ConfigError(key, endpoint, "unix: and an absolute path, as unix:/run/joulegram/otlp.sock")
        if len(os.fsencode(path)) > _MAX_UNIX_BYTES:
            raise ConfigError(key, endpoint, f"a path of {_MAX_UNIX_BYTES} bytes at most ({len(os.fsencode(path))})")
        return UnixAddress(Path(path))
    match = _HOST_PORT.fullmatch(endpoint)
    if match is None or int(match[3]) > 65_535:
        raise ConfigError(key, endpoint, _EXPECTED)
    if match[1] is not None:
        try:
            ipaddress.IPv6Address(match[1])
        except ipaddress.AddressValueError as error:
            raise ConfigError(key, endpoint, f"an IPv6 address in the brackets ({error})") from error
    return TcpAddress(match[1] or match[2], int(match[3]))


def is_loopback(address: Address, key: str) -> bool:
    """Whether only this machine can reach it: every address of its host is a loopback one, or it is a Unix socket.

    Raises:
        ConfigError: the host cannot be resolved.
    """
    if isinstance(address, UnixAddress):
        return True
    return all(ipaddress.ip_address(found[4][0].partition("%")[0]).is_loopback for found in _resolve(address, key))


def plaintext_warning(address: Address, key: str, *, tls: bool) -> str | None:
    """What to log of a listener that others than this machine reach and whose traffic anybody on the way can read.

    Returns:
        The text; None where it has TLS, or where only this machine reaches it.
    """
    if tls or is_loopback(address, f"{key}.endpoint"):
        return None
    return (
        f"{key}.endpoint: {str(address)!r} is reachable from other machines without TLS: telemetry and tokens travel "
        f"readable; set {key}.tls, or listen on 127.0.0.1 or unix:/path"
    )


def check_free(address: Address, key: str) -> None:
    """Make sure that all of an endpoint can be bound, every address of its host.

    A socket file that nobody answers is deleted.

    Raises:
        ConfigError: not an address of this machine, or not one this process may use.
        BusyError: another process listens there.
    """
    if isinstance(address, UnixAddress):
        _make_room(address, key)
        return
    addresses = _resolve(address, key)
    refusals = [refusal for each in addresses if (refusal := _try_bind(each)) is not None]
    for refusal in refusals:
        if refusal.errno == errno.EADDRINUSE:
            raise BusyError(f"{address}: another process listens on this port ({refusal.strerror})") from refusal
    if len(refusals) == len(addresses):
        expected = f"an address this process may listen on ({refusals[0].strerror})"
        raise ConfigError(key, str(address), expected) from refusals[0]


@contextlib.contextmanager
def listening(address: Address, key: str, mode: int = UNIX_MODE) -> Iterator[socket.socket]:
    """A socket that listens, not blocking; closed at the end, and its file deleted if it is still this one's.

    A host name is bound at the first of its addresses, IPv4 before IPv6; ``[::]`` takes IPv4 as well.

    Args:
        address: where.
        key: of the configuration, for messages.
        mode: of a Unix socket's file.

    Raises:
        ConfigError: not an address of this machine, or not one this process may use.
        BusyError: another process listens there.
    """
    check_free(address, key)
    with contextlib.ExitStack() as stack:
        if isinstance(address, UnixAddress):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with _said(address, key):
                listener.bind(str(address.path))
            stack.callback(_unlink_own, address.path, _identity(address.path))
            address.path.chmod(mode)
        else:
            family, kind, protocol, _, target = min(_resolve(address, key), key=lambda found: found[0])
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            with _said(address, key):
                listener.bind(target)
        with _said(address, key):
            listener.listen(_BACKLOG)
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def _said(address: Address, key: str) -> Iterator[None]:
    """An OSError of bind or listen, in the words of the file."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BusyError(f"{address}: another process listens there ({error.strerror})") from error
        raise ConfigError(key, str(address), f"an address this process may listen on ({error.strerror})") from error


def _resolve(address: TcpAddress, key: str) -> list[tuple[Any, ...]]:
    try:
        return list(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
    except OSError as error:
        raise ConfigError(key, str(address), f"a host of this machine ({error})") from error


def _try_bind(address: tuple[Any, ...]) -> OSError | None:
    family, kind, protocol, _, target = address
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        return error
    return None


def _make_room(address: UnixAddress, key: str) -> None:
    path = address.path
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(key, str(address), f"a path in a directory this process may write to ({str(path.parent)!r})")
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(key, str(address), f"a path that is free or a socket's; {str(path)!r} is neither")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            # Full, or not for this user: somebody is there.
            raise BusyError(f"{address}: another process listens there ({error})") from error
        else:
            raise BusyError(f"{address}: another process listens there")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _unlink_own(path: Path, identity: tuple[int, int]) -> None:
    with contextlib.suppress(FileNotFoundError):
        if _identity(path) == identity:
            path.unlink()
