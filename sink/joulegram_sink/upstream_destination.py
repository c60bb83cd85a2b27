"""What a destination is: where it listens, how it is spoken to, and how patiently."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from joulegram_pipeline.errors import ConfigError
from joulegram_sink.outbox_items import MAX_BACKLOG_BYTES

if TYPE_CHECKING:
    from pathlib import Path

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""Requests of one signal are sent as one up to this: what a gRPC server takes by default."""

ENDPOINT_EXPECTED = "grpc://host:port or http://host:port (grpcs:// or https:// for TLS)"

_SCHEMES = frozenset({"grpc", "grpcs", "http", "https"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that was understood.

    Args:
        scheme: ``grpc``, ``grpcs``, ``http`` or ``https``.
        host: name or address, an IPv6 one without its brackets.
        port: 443 where a scheme with TLS names none.
        path: of HTTP, without a slash at its end; empty for gRPC.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def target(self) -> str:
        """``host:port``, as gRPC and the Host header want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent stays on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_endpoint(text: str, key: str = "upstream.endpoint") -> Endpoint:
    """Read ``grpc://host:port``, ``grpcs://host[:port]``, ``http://host:port[/path]`` or ``https://host[:port][/path]``.

    Raises:
        ConfigError: quoting `key`; a user and password in the address are not repeated.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(key, _shown(text), f"{ENDPOINT_EXPECTED}; {error}") from error
    path = parts.path.rstrip("/")
    if port is None and parts.scheme in {"grpcs", "https"}:
        port = 443
    is_clean = not (parts.query or parts.fragment or "@" in parts.netloc)
    has_path = bool(path) and parts.scheme.startswith("grpc")
    if parts.scheme not in _SCHEMES or not host or not port or not is_clean or has_path or _has_odd(host + path):
        raise ConfigError(key, _shown(text), ENDPOINT_EXPECTED)
    return Endpoint(parts.scheme, host, port, path)


def _has_odd(text: str) -> bool:
    return any(not "!" <= letter <= "~" for letter in text)


def _shown(text: str) -> str:
    scheme, found, rest = text.partition("://")
    return f"{scheme}://...@{rest.rpartition('@')[2]}" if found and "@" in rest else text


@dataclass(frozen=True, slots=True)
class Tls:
    """How TLS is spoken; the files are read again when they change.

    Args:
        ca_file: PEM of those who may sign the server; None takes the system's.
        cert_file: PEM of the client, with what leads to its root.
        key_file: of the client's certificate.
        server_name: what the server's certificate must name, if not the host.
        min_version: ``1.2`` or ``1.3``.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    min_version: str = "1.2"

    @property
    def files(self) -> tuple[Path, ...]:
        """Those there are."""
        return tuple(path for path in (self.ca_file, self.cert_file, self.key_file) if path is not None)


@dataclass(frozen=True, slots=True)
class Header:
    """A header of every request; what it says is never shown.

    Args:
        name: lower case.
        value: said as it stands here, or None.
        file: whose text is said, read again when it changes, or None.
        prefix: said before the file's text, as ``Bearer `` with its space.
    """

    name: str
    value: str | None = field(default=None, repr=False)
    file: Path | None = None
    prefix: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often what can be taken later is offered again.

    Args:
        enabled: False puts aside at the first refusal.
        initial_interval_s: before the second try.
        multiplier: of the interval, with each try.
        randomization_factor: an interval is drawn from itself times (1 - f) to (1 + f).
        max_interval_s: that it does not pass.
        max_elapsed_time_s: since the first try, after which it is put aside; 0 never gives up.
    """

    enabled: bool = True
    initial_interval_s: float = 0.1
    multiplier: float = 1.5
    randomization_factor: float = 0.5
    max_interval_s: float = 5.0
    max_elapsed_time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests are sent together.

    Args:
        flush_timeout_s: how long fewer than `min_bytes` wait for company.
        min_bytes: that are sent without waiting.
        max_bytes: of one send, unless a single request is larger.
        max_requests: in one send.
    """

    flush_timeout_s: float = 0.1
    min_bytes: int = 1024 * 1024
    max_bytes: int = MAX_BATCH_BYTES
    max_requests: int = 8192


@dataclass(frozen=True, slots=True)
class Destination:
    """One next hop.

    Args:
        name: of its position, its dead letters and its figures.
        endpoint: as `parse_endpoint` reads it.
        key: what errors call it.
        signal_endpoints: signal and URL, used as it is, where HTTP has another one for a signal.
        compression: ``none``, ``gzip`` or ``zstd``; None takes gzip, and none on loopback.
        tls: None takes the defaults where the scheme asks for TLS.
        headers: of every request; one that a request brings by the same name gives way.
        timeout_s: of one send.
        retry: what happens after a refusal that may pass.
        batching: what is sent together.
        num_consumers: sends that may be under way at once; with 1 requests arrive in order.
        queue_bytes: how far it may be behind.
    """

    name: str
    endpoint: str
    key: str = "upstream.endpoint"
    signal_endpoints: tuple[tuple[str, str], ...] = ()
    compression: str | None = None
    tls: Tls | None = None
    headers: tuple[Header, ...] = ()
    timeout_s: float = 10.0
    retry: Retry = Retry()
    batching: Batching = Batching()
    num_consumers: int = 2
    queue_bytes: int = MAX_BACKLOG_BYTES

    @property
    def section(self) -> str:
        """The key its other keys stand under."""
        return self.key.removesuffix(".endpoint")
