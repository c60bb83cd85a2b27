"""OTLP/gRPC towards a destination: unary Export calls over kept connections, made in the threads that send."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError, UpstreamError
from joulegram_pipeline.http2_frames import ConnectionFault, header_block
from joulegram_sink.upstream_answer import (
    MAX_RESPONSE_BYTES,
    SIGNALS,
    Answer,
    Verdict,
    means_too_large,
    retry_info_s,
    shortened,
    taken,
)
from joulegram_sink.upstream_compression import compressed
from joulegram_sink.upstream_destination import Tls
from joulegram_sink.upstream_headers import RESERVED, Headers
from joulegram_sink.upstream_http2 import ClientConnection, LateError
from joulegram_sink.upstream_pool import Pool
from joulegram_sink.upstream_server_side import AgainError
from joulegram_sink.upstream_status import MESSAGE_PREFIX, Status, message_of, status_of
from joulegram_sink.upstream_tls import FollowedContext

if TYPE_CHECKING:
    import ssl

    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_sink.upstream_destination import Destination, Endpoint

log = logging.getLogger(__name__)

# OTLP's table; RESOURCE_EXHAUSTED is retryable only where RetryInfo stands beside it.
_RETRYABLE = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
# Of these one request in a batch may be the cause.
_SPLITTABLE = frozenset({"INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED"})
_SIZED = frozenset({"RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "INVALID_ARGUMENT", "INTERNAL"})
_MAX_TIMEOUT_MS = 99_999_999
"""gRPC has eight digits for it."""


class GrpcTransport:
    """A `Transport`; as many connections as there are sends at once.

    Args:
        destination: with a scheme of gRPC.
        endpoint: of it.

    Raises:
        ConfigError: TLS, headers or a compression that cannot be used, or a signal's own endpoint.
    """

    def __init__(self, destination: Destination, endpoint: Endpoint) -> None:
        compression = destination.compression or ("none" if endpoint.is_loopback else "gzip")
        if compression not in {"none", "gzip", "zstd"}:
            raise ConfigError(f"{destination.section}.compression", compression, "none, gzip or zstd")
        if destination.signal_endpoints:
            signal, url = destination.signal_endpoints[0]
            raise ConfigError(f"{destination.section}.{signal}_endpoint", url, "nothing: gRPC has one endpoint for all")
        self._compression = compression
        self._destination = destination
        self._endpoint = endpoint
        self._headers = Headers(destination.headers, f"{destination.section}.headers")
        tls = destination.tls or (Tls() if endpoint.scheme == "grpcs" else None)
        self._context = FollowedContext(destination, tls, "h2") if tls else None
        server_name = tls.server_name if tls else None
        # As other clients of gRPC do, a name that stands for the host's does so in what is asked for too.
        fixed = ((b":method", b"POST"), (b":scheme", b"https" if tls else b"http"))
        authority = ((b":authority", (server_name or endpoint.target).encode()),)
        common = ((b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"gzip"))
        self._heads = {
            kind: header_block((*fixed, (b":path", signal.rpc.encode()), *authority, *common))
            for kind, signal in SIGNALS.items()
        }

        def connection(target: Endpoint, context: ssl.SSLContext | None) -> ClientConnection:
            return ClientConnection(target, context, server_name)

        self._pool = Pool(connection)

    def send(self, kind: RecordKind, body: bytes, metadata: Metadata) -> Answer:
        try:
            headers = [pair for pair in self._headers.beside(metadata) if pair[0] not in RESERVED]
        except UpstreamError as error:
            return Answer(Verdict.RETRY, f"a header's file: {error}")
        if not any(name == "user-agent" for name, _ in headers):
            headers.append(("user-agent", "joulegram"))
        compression = self._compression
        if compression != "none":
            headers.append(("grpc-encoding", compression))
            body = compressed(body, compression)
        head = self._heads[kind] + header_block((name.encode(), value.encode()) for name, value in headers)
        found = self._call(head, MESSAGE_PREFIX.pack(compression != "none", len(body)), body)
        if found is None:
            return Answer(Verdict.RETRY, "the destination was closed")
        status, message = found
        return taken(kind, message) if status.code == "OK" else self._refusal(status, compression)

    def close(self) -> None:
        self._pool.close()

    def _call(self, head: bytes, prefix: bytes, body: bytes) -> tuple[Status, bytes] | None:
        """How the call ended and its answer's message, None where the destination was closed."""
        until_s = monotonic() + self._destination.timeout_s
        context = self._context.get() if self._context else None
        where = self._endpoint.target
        status = Status("UNAVAILABLE")
        for fresh in (False, True):
            connection = self._pool.take(self._endpoint, context, fresh=fresh)
            if connection is None:
                return None
            timeout = header_block(((b"grpc-timeout", _timeout(until_s - monotonic())),))
            limit = MESSAGE_PREFIX.size + MAX_RESPONSE_BYTES
            try:
                response = connection.call(head + timeout, prefix, body, limit, until_s)
                return status_of(response), message_of(response)
            except AgainError as error:
                # Nothing was done with it, so it is offered once more before that is called a failure.
                status = Status("UNAVAILABLE", why=f"{where}: {error}")
            except LateError:
                late = f"{where}: no answer in {self._destination.timeout_s:g} s"
                return Status("DEADLINE_EXCEEDED", why=late), b""
            except (OSError, ConnectionFault, UpstreamError) as error:
                return Status("UNAVAILABLE", why=f"{where}: {error}"), b""
            finally:
                self._pool.give_back(self._endpoint, connection)
        return status, b""

    def _refusal(self, status: Status, compression: str) -> Answer:
        code, said = status.code, status.message
        text, words = f"{code}: {status.why}" if status.why else code, shortened(said)
        if compression != "none" and _is_of_compression(code, said):
            log.warning("destination %r does not take %s: it is sent to without", self._destination.name, compression)
            self._compression = "none"
            return Answer(Verdict.RETRY, text, words, retry_after_s=0.0)
        asked_s = None if status.details is None else retry_info_s(status.details)
        if asked_s is None and code in _SIZED and means_too_large(said):
            return Answer(Verdict.TOO_LARGE, text, words)
        if code in _RETRYABLE or (code == "RESOURCE_EXHAUSTED" and asked_s is not None):
            timed_out = code == "DEADLINE_EXCEEDED"
            return Answer(Verdict.RETRY, text, words, retry_after_s=asked_s, timed_out=timed_out)
        return Answer(Verdict.SPLIT if code in _SPLITTABLE else Verdict.REFUSED, text, words)


def _is_of_compression(code: str, said: str) -> bool:
    """Whether a request is refused for its compression; gRPC's C core takes the header of zstd for a broken one."""
    return (code == "UNIMPLEMENTED" and "ompress" in said) or (code == "INTERNAL" and "grpc-encoding" in said)


def _timeout(left_s: float) -> bytes:
    left_ms = max(1, round(left_s * 1000))
    return b"%dm" % left_ms if left_ms <= _MAX_TIMEOUT_MS else b"%dS" % (left_ms // 1000)
