"""OTLP over gRPC: raw request bytes in, acknowledged when they are on disk."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from joulegram_pipeline.errors import BusyError, ConfigError, RetryableError, WireError
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.span_rows import all_regular, scope_rows
from joulegram_receiver.checks import broken_spans, explain
from joulegram_receiver.memory import keep_freed_memory

if TYPE_CHECKING:
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.span_rows import ScopeRows
    from joulegram_receiver.spool import Spool

MAX_RECV_BYTES = 64 * 1024 * 1024
"""What OTLP 1.11 recommends; grpcio holds it before and after decompression."""

_MAX_METADATA_BYTES = 16 * 1024
_RETRY_AFTER_S = 1
_GRACE_S = 5.0
_PACKAGE = "opentelemetry.proto.collector"


class GrpcReceiver:
    """The OTLP/gRPC server of a sidecar; an async context manager.

    Args:
        endpoint: ``host:port``; port 0 lets the system choose, `port` says which.
        spool: where requests go; entered before this and left after it.
        metrics: accepted_*, refused_requests, invalid_spans.
        max_recv_bytes: a larger request is refused with RESOURCE_EXHAUSTED.
        grace_s: how long requests under way may take at stop.

    Raises (on enter):
        ConfigError: the endpoint is not one.
        BusyError: another process holds the port.
    """

    def __init__(
        self,
        endpoint: str,
        spool: Spool,
        metrics: Metrics,
        *,
        max_recv_bytes: int = MAX_RECV_BYTES,
        grace_s: float = _GRACE_S,
    ) -> None:
        self.port = 0
        self._endpoint = endpoint
        self._spool = spool
        self._metrics = metrics
        self._max_recv_bytes = max_recv_bytes
        self._grace_s = grace_s
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        check_endpoint(self._endpoint)
        keep_freed_memory()
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._max_recv_bytes),
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                # With it on, a second server would bind the same port in silence and take half the requests.
                ("grpc.so_reuseport", 0),
            ]
        )
        for service, export in (
            ("trace.v1.TraceService", self._export_traces),
            ("metrics.v1.MetricsService", self._export_metrics),
            ("logs.v1.LogsService", self._export_logs),
        ):
            handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"{_PACKAGE}.{service}", handlers),))
        try:
            self.port = server.add_insecure_port(self._endpoint)
        except RuntimeError as error:
            raise BusyError(f"cannot listen on {self._endpoint!r}: {error}") from error
        await server.start()
        self._server = server
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop(self._grace_s)
            self._server = None

    async def _export_traces(self, request: bytes, context: Any) -> bytes:
        message = await self._parse(trace_service_pb2.ExportTraceServiceRequest, "traces", request, context)
        scopes = scope_rows(message)
        spans = sum(len(scope.rows) for scope in scopes)
        if not spans:
            return b""
        broken = [] if all(all_regular(scope.rows) for scope in scopes) else broken_spans(message)
        del message  # its memory is wanted by the next request while this one waits for the disk
        await self._store(RecordKind.TRACES, "traces", request, context, scopes)
        self._metrics.accepted_spans.inc(spans)
        if not broken:
            return b""
        text, counts = explain(broken)
        for reason, count in counts.items():
            self._metrics.invalid_spans.labels(reason).inc(count)
        response = trace_service_pb2.ExportTraceServiceResponse()
        response.partial_success.error_message = text
        return response.SerializeToString()

    async def _export_metrics(self, request: bytes, context: Any) -> bytes:
        message = await self._parse(metrics_service_pb2.ExportMetricsServiceRequest, "metrics", request, context)
        if message.resource_metrics:
            await self._store(RecordKind.METRICS, "metrics", request, context)
        return b""

    async def _export_logs(self, request: bytes, context: Any) -> bytes:
        message = await self._parse(logs_service_pb2.ExportLogsServiceRequest, "logs", request, context)
        if message.resource_logs:
            await self._store(RecordKind.LOGS, "logs", request, context)
        return b""

    async def _parse(self, kind: Any, signal: str, request: bytes, context: Any) -> Any:
        try:
            return parse(kind, request)
        except WireError as error:
            self._metrics.refused_requests.labels(signal, "malformed").inc()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _store(
        self, kind: RecordKind, signal: str, request: bytes, context: Any, parsed: list[ScopeRows] | None = None
    ) -> None:
        try:
            await self._spool.append(kind, request, parsed=parsed)
        except RetryableError as error:
            reason = "busy" if isinstance(error, BusyError) else "storage"
            self._metrics.refused_requests.labels(signal, reason).inc()
            await context.abort_with_status(unavailable(str(error)))
        self._metrics.accepted_requests.labels(signal).inc()


def parse(kind: Any, request: bytes) -> Any:
    """The message of type `kind` that the bytes are.

    Raises:
        WireError: they are not one.
    """
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise WireError(
            f"got {len(request)} bytes beginning {request[:16].hex()!r}, "
            f"expected a {kind.DESCRIPTOR.full_name}: {error}"
        ) from error


def unavailable(text: str, retry_after_s: int = _RETRY_AFTER_S) -> grpc.Status:
    """UNAVAILABLE with RetryInfo, what OTLP clients try again after."""
    details = AnyMessage()
    details.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_after_s)))
    return rpc_status.to_status(status_pb2.Status(code=code_pb2.UNAVAILABLE, message=text, details=[details]))


def check_endpoint(endpoint: str) -> None:
    """Make sure that all addresses of an endpoint can be bound; gRPC is content with one and never says why.

    Raises:
        ConfigError: not ``host:port``, or a host that is not of this machine.
        BusyError: another process listens there.
    """
    host, _, port_text = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port_text.isdecimal() or int(port_text) > 65535:
        raise ConfigError("protocols.grpc.endpoint", endpoint, "host:port, as 127.0.0.1:4317")
    try:
        addresses = socket.getaddrinfo(host, int(port_text), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError("protocols.grpc.endpoint", endpoint, f"a host of this machine ({error})") from error
    refusals = [refusal for address in addresses if (refusal := _try_bind(address)) is not None]
    for refusal in refusals:
        if refusal.errno == errno.EADDRINUSE:
            raise BusyError(f"{endpoint}: another process listens on this port ({refusal.strerror})") from refusal
    if len(refusals) == len(addresses):
        raise ConfigError(
            "protocols.grpc.endpoint",
            endpoint,
            f"an address this process may listen on ({refusals[0].strerror})",
        ) from refusals[0]


def _try_bind(address: tuple[Any, ...]) -> OSError | None:
    family, kind, protocol, _, target = address
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        return error
    return None
