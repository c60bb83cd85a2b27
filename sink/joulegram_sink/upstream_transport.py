"""One send to the upstream, over gRPC or HTTP/protobuf, and what its answer means for the data."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import math
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.records import RecordKind

MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""What OTLP 1.11 recommends a client to take."""

_KEY = "upstream.endpoint"
_PACKAGE = "opentelemetry.proto.collector"


class Verdict(Enum):
    """What becomes of the data that was sent."""

    TAKEN = "taken"
    RETRY = "retry"
    SPLIT = "split"
    """Refused, perhaps for its size or for one request in it: halves are tried; a single one is refused."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the upstream said.

    Args:
        verdict: what follows.
        text: the upstream's words with its code; where it took the data, those of a partial success.
        rejected: items it left out of data it took.
        retry_after_s: how long it asked to wait, None if it did not.
    """

    verdict: Verdict
    text: str = ""
    rejected: int = 0
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Signal:
    name: str
    rpc: str
    path: str
    response: Any
    rejected: str


SIGNALS: dict[RecordKind, _Signal] = {
    RecordKind.TRACES: _Signal(
        "traces",
        f"/{_PACKAGE}.trace.v1.TraceService/Export",
        "/v1/traces",
        ExportTraceServiceResponse,
        "rejected_spans",
    ),
    RecordKind.METRICS: _Signal(
        "metrics",
        f"/{_PACKAGE}.metrics.v1.MetricsService/Export",
        "/v1/metrics",
        ExportMetricsServiceResponse,
        "rejected_data_points",
    ),
    RecordKind.LOGS: _Signal(
        "logs",
        f"/{_PACKAGE}.logs.v1.LogsService/Export",
        "/v1/logs",
        ExportLogsServiceResponse,
        "rejected_log_records",
    ),
}


class Transport(Protocol):
    """A way to the upstream; sends of different signals may overlap, two of one signal do not."""

    async def send(self, kind: RecordKind, body: bytes) -> Answer: ...

    async def close(self) -> None: ...


def transport_for(endpoint: str, timeout_s: float) -> Transport:
    """The transport an endpoint asks for: ``grpc://host:port`` or ``http://host:port``.

    Raises:
        ConfigError: another scheme, no host, no port, or something behind them.
    """
    expected = "grpc://host:port or http://host:port"
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(_KEY, endpoint, f"{expected} ({error})") from error
    rest = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username
    if host and port and not rest:
        if parts.scheme == "grpc":
            return GrpcTransport(parts.netloc, timeout_s)
        if parts.scheme == "http":
            return HttpTransport(host, port, timeout_s)
    raise ConfigError(_KEY, endpoint, expected)


class GrpcTransport:
    """Unary Export calls on one channel, which finds its way back by itself when the upstream was away."""

    # OTLP's table; RESOURCE_EXHAUSTED is retryable only where RetryInfo stands beside it.
    _RETRYABLE = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
    # Of these one request in a batch, or the size of the batch, may be the cause.
    _SPLITTABLE = frozenset({"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "INTERNAL", "UNKNOWN"})

    def __init__(self, target: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(
            target,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
                # The caller backs off; the channel must not wait longer than it does.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._calls = {kind: self._channel.unary_unary(signal.rpc, None, None) for kind, signal in SIGNALS.items()}

    async def send(self, kind: RecordKind, body: bytes) -> Answer:
        try:
            response: Any = await self._calls[kind](body, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            return self._refusal(error)
        return _taken(kind, response)

    async def close(self) -> None:
        await self._channel.close(None)

    def _refusal(self, error: grpc.aio.AioRpcError) -> Answer:
        code = error.code().name
        text = f"{code}: {error.details()}"
        retry_after_s = _retry_info_s(error)
        if code in self._RETRYABLE or (code == "RESOURCE_EXHAUSTED" and retry_after_s is not None):
            return Answer(Verdict.RETRY, text, retry_after_s=retry_after_s)
        return Answer(Verdict.SPLIT if code in self._SPLITTABLE else Verdict.REFUSED, text)


class HttpTransport:
    """POST of protobuf bodies by the standard library, one kept connection for each signal."""

    _RETRYABLE = frozenset({429, 502, 503, 504})
    _SPLITTABLE = frozenset({400, 413, 500})

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._connections = {kind: http.client.HTTPConnection(host, port, timeout=timeout_s) for kind in SIGNALS}

    async def send(self, kind: RecordKind, body: bytes) -> Answer:
        return await asyncio.to_thread(self._post, kind, body)

    async def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def _post(self, kind: RecordKind, body: bytes) -> Answer:
        connection = self._connections[kind]
        kept = connection.sock is not None
        try:
            return self._exchange(connection, kind, body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if not kept or isinstance(error, TimeoutError):
                return Answer(Verdict.RETRY, f"{type(error).__name__}: {error}")
        # The server may have closed an idle connection: that is no failure of the upstream.
        try:
            return self._exchange(connection, kind, body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Answer(Verdict.RETRY, f"{type(error).__name__}: {error}")

    def _exchange(self, connection: http.client.HTTPConnection, kind: RecordKind, body: bytes) -> Answer:
        connection.request("POST", SIGNALS[kind].path, body, {"Content-Type": "application/x-protobuf"})
        response = connection.getresponse()
        data = response.read(MAX_RESPONSE_BYTES)
        if response.read(1):
            connection.close()
        status = response.status
        if 200 <= status < 300:
            return _taken(kind, data)
        text = f"HTTP {status} {response.reason}: {_status_message(data)}"
        if status in self._RETRYABLE:
            after_s = _retry_after_s(response.getheader("Retry-After"))
            return Answer(Verdict.RETRY, text, retry_after_s=after_s)
        return Answer(Verdict.SPLIT if status in self._SPLITTABLE else Verdict.REFUSED, text)


def _taken(kind: RecordKind, response: bytes) -> Answer:
    signal = SIGNALS[kind]
    try:
        partial = signal.response.FromString(response).partial_success
    except DecodeError:
        # It said success; an answer we cannot read does not make the data less taken.
        return Answer(Verdict.TAKEN)
    return Answer(Verdict.TAKEN, partial.error_message, rejected=getattr(partial, signal.rejected))


def _retry_info_s(error: grpc.aio.AioRpcError) -> float | None:
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                for detail in status_pb2.Status.FromString(value).details:
                    info = error_details_pb2.RetryInfo()
                    if detail.Unpack(info):
                        return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None


def _retry_after_s(header: str | None) -> float | None:
    """Seconds, or an HTTP date (RFC 9110)."""
    if header is None:
        return None
    with contextlib.suppress(ValueError, TypeError):
        if header.strip().isdecimal():
            return float(header)
        return max(0.0, math.ceil(parsedate_to_datetime(header).timestamp() - time.time()))
    return None


def _status_message(body: bytes) -> str:
    """The message of the google.rpc.Status an OTLP server answers with, else the body's beginning."""
    with contextlib.suppress(DecodeError):
        message = status_pb2.Status.FromString(body).message
        if message:
            return str(message)
    return body[:200].decode("utf-8", "replace")
