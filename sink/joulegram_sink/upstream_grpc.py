"""OTLP/gRPC towards a destination: unary Export calls on one channel, made in the threads that send."""

from __future__ import annotations

import logging
from threading import Lock
from typing import TYPE_CHECKING, Any

import grpc

from joulegram_pipeline.errors import ConfigError, UpstreamError
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
from joulegram_sink.upstream_destination import Tls
from joulegram_sink.upstream_headers import Headers
from joulegram_sink.upstream_tls import channel_credentials, stamp

if TYPE_CHECKING:
    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_sink.upstream_destination import Destination, Endpoint

log = logging.getLogger(__name__)

# OTLP's table; RESOURCE_EXHAUSTED is retryable only where RetryInfo stands beside it.
_RETRYABLE = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
# Of these one request in a batch may be the cause.
_SPLITTABLE = frozenset({"INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED"})
_SIZED = frozenset({"RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "INVALID_ARGUMENT", "INTERNAL"})


class GrpcTransport:
    """A `Transport`; the channel finds its way back by itself when the upstream was away.

    Args:
        destination: with a scheme of gRPC.
        endpoint: of it.

    Raises:
        ConfigError: TLS or headers that cannot be used, or a compression that gRPC has not.
    """

    def __init__(self, destination: Destination, endpoint: Endpoint) -> None:
        compression = destination.compression or ("none" if endpoint.is_loopback else "gzip")
        if compression not in {"none", "gzip"}:
            raise ConfigError(f"{destination.section}.compression", compression, "none or gzip; zstd is for http")
        if destination.signal_endpoints:
            signal, url = destination.signal_endpoints[0]
            raise ConfigError(f"{destination.section}.{signal}_endpoint", url, "nothing: gRPC has one endpoint for all")
        self._compression = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression
        self._destination = destination
        self._endpoint = endpoint
        self._headers = Headers(destination.headers, f"{destination.section}.headers")
        self._tls = destination.tls or (Tls() if endpoint.scheme == "grpcs" else None)
        self._lock = Lock()
        self._closed = False
        self._stamp = stamp(self._tls.files) if self._tls else ()
        self._channel, self._calls = self._open()

    def send(self, kind: RecordKind, body: bytes, metadata: Metadata) -> Answer:
        self._look_at_files()
        try:
            headers = tuple(self._headers.beside(metadata))
        except UpstreamError as error:
            return Answer(Verdict.RETRY, f"a header's file: {error}")
        call = self._calls[kind]
        try:
            response = call(body, timeout=self._destination.timeout_s, metadata=headers, compression=self._compression)
        except grpc.RpcError as error:
            return self._refusal(error)
        except ValueError:
            # The channel was closed under it: at a stop, or for one with new files.
            return Answer(Verdict.RETRY, "the channel was closed")
        return taken(kind, response)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._channel.close()

    def _open(self) -> tuple[grpc.Channel, dict[RecordKind, Any]]:
        target = self._endpoint.target
        options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
            ("grpc.primary_user_agent", "joulegram"),
            # Two destinations at one address must not share each other's connection.
            ("grpc.use_local_subchannel_pool", 1),
            # The sender backs off; the channel must not wait longer than it does.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if self._tls is None:
            channel = grpc.insecure_channel(target, options)
        else:
            if self._tls.server_name is not None:
                options.append(("grpc.ssl_target_name_override", self._tls.server_name))
            credentials = channel_credentials(self._tls, f"{self._destination.section}.tls")
            channel = grpc.secure_channel(target, credentials, options)
        return channel, {kind: channel.unary_unary(signal.rpc, None, None) for kind, signal in SIGNALS.items()}

    def _look_at_files(self) -> None:
        """Open a new channel when a certificate was renewed; keep the old one while the new files are not whole."""
        if self._tls is None or not self._tls.files:
            return
        with self._lock:
            now = stamp(self._tls.files)
            if now == self._stamp or self._closed:
                return
            self._stamp = now
            try:
                channel, calls = self._open()
            except (ConfigError, OSError) as error:
                log.warning("destination %r keeps its TLS files as they were: %s", self._destination.name, error)
                return
            old, self._channel, self._calls = self._channel, channel, calls
        old.close()

    def _refusal(self, error: grpc.RpcError) -> Answer:
        call: Any = error
        code = call.code().name
        said = str(call.details() or "")
        text = shortened(f"{code}: {said}")
        if code == "UNIMPLEMENTED" and self._compression is grpc.Compression.Gzip and "ompress" in said:
            log.warning("destination %r does not take gzip: it is sent to without", self._destination.name)
            self._compression = grpc.Compression.NoCompression
            return Answer(Verdict.RETRY, text, retry_after_s=0.0)
        asked_s = _asked_s(call)
        if asked_s is None and code in _SIZED and means_too_large(said):
            return Answer(Verdict.TOO_LARGE, text)
        if code in _RETRYABLE or (code == "RESOURCE_EXHAUSTED" and asked_s is not None):
            timed_out = code == "DEADLINE_EXCEEDED"
            return Answer(Verdict.RETRY, text, retry_after_s=asked_s, timed_out=timed_out)
        return Answer(Verdict.SPLIT if code in _SPLITTABLE else Verdict.REFUSED, text)


def _asked_s(call: Any) -> float | None:
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return retry_info_s(value)
    return None
