"""OTLP/HTTP towards a destination: POST of protobuf bodies by the standard library, over kept connections."""

from __future__ import annotations

import http.client
import logging
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
from joulegram_sink.upstream_compression import compressed
from joulegram_sink.upstream_destination import Tls, parse_endpoint
from joulegram_sink.upstream_headers import Headers
from joulegram_sink.upstream_pool import Pool
from joulegram_sink.upstream_tls import FollowedContext
from joulegram_sink.upstream_wire import CONNECT_S, connect, interrupt

if TYPE_CHECKING:
    import ssl

    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_sink.upstream_destination import Destination, Endpoint

log = logging.getLogger(__name__)

_RETRYABLE = frozenset({429, 502, 503, 504})
_SPLITTABLE = frozenset({400, 500})


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
        tls = destination.tls or Tls()
        self._context = FollowedContext(destination, tls) if has_tls else None

        def connection(target: Endpoint, context: ssl.SSLContext | None) -> _Connection:
            return _Connection(target, destination.timeout_s, context, tls.server_name)

        self._pool = Pool(connection)

    def send(self, kind: RecordKind, body: bytes, metadata: Metadata) -> Answer:
        context = self._context.get() if self._context else None
        headers = {"user-agent": "joulegram"}
        try:
            headers.update(self._headers.beside(metadata))
        except UpstreamError as error:
            return Answer(Verdict.RETRY, f"a header's file: {error}")
        headers["content-type"] = "application/x-protobuf"
        compression = self._compression
        if compression != "none":
            headers["content-encoding"] = compression
            body = compressed(body, compression)
        target, path = self._targets[kind]
        while True:
            connection = self._pool.take(target, context if target.scheme == "https" else None)
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
                text, said = type(error).__name__, shortened(str(error))
                if isinstance(error, OSError):
                    return Answer(Verdict.RETRY, f"{text}: {said}", timed_out=timed_out)
                # It quotes what the server sent.
                return Answer(Verdict.RETRY, text, said)
            finally:
                self._pool.give_back(target, connection)

    def close(self) -> None:
        self._pool.close()

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
        text = f"HTTP {status} {http.client.responses.get(status, '')}".rstrip()
        said = status_message(data)
        if status in _RETRYABLE:
            return Answer(Verdict.RETRY, text, said, retry_after_s=retry_after_s(response.getheader("Retry-After")))
        if status == 413:
            return Answer(Verdict.TOO_LARGE, text, said)
        if status == 415 and "content-encoding" in headers:
            log.warning(
                "destination %r does not take %s: it is sent to without",
                self._destination.name,
                headers["content-encoding"],
            )
            self._compression = "none"
            return Answer(Verdict.RETRY, text, said, retry_after_s=0.0)
        return Answer(Verdict.SPLIT if status in _SPLITTABLE else Verdict.REFUSED, text, said)


class _Connection(http.client.HTTPConnection):
    """A connection that knows its TLS, and that another thread may cut."""

    def __init__(
        self, target: Endpoint, timeout_s: float, context: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        super().__init__(target.host, target.port, timeout=min(timeout_s, CONNECT_S))
        self.context = context
        self._target = target
        self._server_name = server_name
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = connect(self._target, self.context, self._server_name, min(self._timeout_s, CONNECT_S))
        self.sock.settimeout(self._timeout_s)

    @property
    def is_usable(self) -> bool:
        """Whether it is open; that the peer has left is seen by the next send."""
        return self.sock is not None

    def interrupt(self) -> None:
        """Have whoever waits on it fail."""
        interrupt(self.sock)


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
