"""OTLP/HTTP towards a destination: POST of protobuf bodies by the standard library, over kept connections."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import zlib
from threading import Lock
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError, UpstreamError
from joulegram_sink.upstream_answer import (
    MAX_RESPONSE_BYTES,
    SIGNALS,
    Answer,
    Verdict,
    retry_after_s,
    shortened,
    status_message,
    taken,
)
from joulegram_sink.upstream_destination import Tls, parse_endpoint
from joulegram_sink.upstream_headers import Headers
from joulegram_sink.upstream_tls import client_context, stamp

if TYPE_CHECKING:
    import ssl

    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_sink.upstream_destination import Destination, Endpoint

log = logging.getLogger(__name__)

_RETRYABLE = frozenset({429, 502, 503, 504})
_SPLITTABLE = frozenset({400, 500})
_CONNECT_S = 5.0
_LEVEL = 1


class HttpTransport:
    """A `Transport`; as many connections as there are sends at once.

    Args:
        destination: with a scheme of HTTP.
        endpoint: of it.

    Raises:
        ConfigError: TLS, headers, a signal's endpoint or a compression that cannot be used.
    """

    def __init__(self, destination: Destination, endpoint: Endpoint) -> None:
        section = destination.section
        self._compression = destination.compression or ("none" if endpoint.is_loopback else "gzip")
        if self._compression not in {"none", "gzip", "zstd"}:
            raise ConfigError(f"{section}.compression", self._compression, "none, gzip or zstd")
        self._destination = destination
        self._headers = Headers(destination.headers, f"{section}.headers")
        self._targets = _targets(destination, endpoint)
        has_tls = any(target.scheme == "https" for target, _ in self._targets.values())
        if destination.tls is not None and not has_tls:
            raise ConfigError(destination.key, destination.endpoint, f"https://, because {section}.tls asks for TLS")
        self._tls = destination.tls or Tls()
        self._context = client_context(self._tls, f"{section}.tls") if has_tls else None
        self._stamp = stamp(self._tls.files)
        self._lock = Lock()
        self._idle: dict[Endpoint, list[_Connection]] = {}
        self._busy: set[_Connection] = set()
        self._closed = False

    def send(self, kind: RecordKind, body: bytes, metadata: Metadata) -> Answer:
        self._look_at_files()
        headers = {"user-agent": "joulegram"}
        try:
            headers.update(self._headers.beside(metadata))
        except UpstreamError as error:
            return Answer(Verdict.RETRY, f"a header's file: {error}")
        headers["content-type"] = "application/x-protobuf"
        compression = self._compression
        if compression != "none":
            headers["content-encoding"] = compression
            body = _compressed(body, compression)
        target, path = self._targets[kind]
        while True:
            connection = self._connection(target)
            if connection is None:
                return Answer(Verdict.RETRY, "the destination was closed")
            kept = connection.sock is not None
            try:
                return self._exchange(connection, kind, path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # The server may have closed an idle connection: that is no failure of the upstream.
                if kept and isinstance(error, ConnectionError | http.client.RemoteDisconnected):
                    continue
                timed_out = isinstance(error, TimeoutError)
                text = shortened(f"{type(error).__name__}: {error}")
                return Answer(Verdict.RETRY, text, timed_out=timed_out)
            finally:
                self._give_back(target, connection)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._busy:
                connection.interrupt()
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _exchange(
        self, connection: _Connection, kind: RecordKind, path: str, body: bytes, headers: dict[str, str]
    ) -> Answer:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        data = response.read(MAX_RESPONSE_BYTES)
        if response.read(1):
            connection.close()
        status = response.status
        if 200 <= status < 300:
            return taken(kind, data)
        text = shortened(f"HTTP {status} {response.reason}: {status_message(data)}")
        if status in _RETRYABLE:
            return Answer(Verdict.RETRY, text, retry_after_s=retry_after_s(response.getheader("Retry-After")))
        if status == 413:
            return Answer(Verdict.TOO_LARGE, text)
        if status == 415 and "content-encoding" in headers:
            log.warning(
                "destination %r does not take %s: it is sent to without",
                self._destination.name,
                headers["content-encoding"],
            )
            self._compression = "none"
            return Answer(Verdict.RETRY, text, retry_after_s=0.0)
        return Answer(Verdict.SPLIT if status in _SPLITTABLE else Verdict.REFUSED, text)

    def _connection(self, target: Endpoint) -> _Connection | None:
        with self._lock:
            if self._closed:
                return None
            idle = self._idle.get(target)
            connection = idle.pop() if idle else self._open(target)
            self._busy.add(connection)
            return connection

    def _open(self, target: Endpoint) -> _Connection:
        context = self._context if target.scheme == "https" else None
        return _Connection(target, self._destination.timeout_s, context, self._tls.server_name)

    def _give_back(self, target: Endpoint, connection: _Connection) -> None:
        with self._lock:
            self._busy.discard(connection)
            is_usable = connection.sock is not None and connection.context in (None, self._context)
            if is_usable and not self._closed:
                self._idle.setdefault(target, []).append(connection)
                return
        connection.close()

    def _look_at_files(self) -> None:
        """Make a new context when a certificate was renewed; keep the old one while the new files are not whole."""
        if self._context is None or not self._tls.files:
            return
        with self._lock:
            now = stamp(self._tls.files)
            if now == self._stamp:
                return
            self._stamp = now
            try:
                self._context = client_context(self._tls, f"{self._destination.section}.tls")
            except ConfigError as error:
                log.warning("destination %r keeps its TLS files as they were: %s", self._destination.name, error)
                return
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()


class _Connection(http.client.HTTPConnection):
    """A connection that knows its TLS, and that another thread may cut."""

    def __init__(
        self, target: Endpoint, timeout_s: float, context: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        super().__init__(target.host, target.port, timeout=min(timeout_s, _CONNECT_S))
        self.context = context
        self._server_name = server_name or target.host
        self._timeout_s = timeout_s

    def connect(self) -> None:
        super().connect()
        if self.context is not None:
            self.sock = self.context.wrap_socket(self.sock, server_hostname=self._server_name)
        self.sock.settimeout(self._timeout_s)

    def interrupt(self) -> None:
        """Have whoever waits on it fail."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _targets(destination: Destination, endpoint: Endpoint) -> dict[RecordKind, tuple[Endpoint, str]]:
    """Where each signal is posted: below the endpoint, or at a URL of its own that is used as it is (H1)."""
    own = dict(destination.signal_endpoints)
    targets = {}
    for kind, signal in SIGNALS.items():
        if signal.name in own:
            key = f"{destination.section}.{signal.name}_endpoint"
            found = parse_endpoint(own[signal.name], key)
            if not found.scheme.startswith("http"):
                raise ConfigError(key, own[signal.name], "http://host:port/path or https://host/path")
            targets[kind] = found, found.path or "/"
        else:
            targets[kind] = endpoint, endpoint.path + signal.path
    return targets


def _compressed(body: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return zlib.compress(body, _LEVEL, wbits=31)
    # Not needed by those who do not use it, and a sidecar starts fast.
    import zstandard  # noqa: PLC0415

    return zstandard.ZstdCompressor(level=_LEVEL).compress(body)
