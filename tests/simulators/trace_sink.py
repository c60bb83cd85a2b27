"""The smallest OTLP/gRPC receiver: takes traces and metrics on a free loopback port and keeps what it took."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from types import TracebackType

_PATH = "/opentelemetry.proto.collector.{0}.v1.{1}Service/Export"


def attributes(owner: Any) -> dict[str, Any]:
    """The attributes of a span, resource or data point as plain values."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in owner.attributes}


class TraceSink:
    """A context manager; `endpoint` is its address, as OTEL_EXPORTER_OTLP_ENDPOINT wants it."""

    def __init__(self) -> None:
        self.traces: list[Any] = []
        self.metrics: list[Any] = []
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers([_Handler(self)])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(grace=None).wait()
        self._pool.shutdown()

    def take(self, kept: list[Any], message: Any) -> bytes:
        """Keep a request; all OTLP responses of full success are empty."""
        with self._changed:
            kept.append(message)
            self._changed.notify_all()
        return b""

    @property
    def spans(self) -> list[Any]:
        """Every span taken so far, in order of arrival."""
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for_spans(self, count: int, timeout_s: float) -> list[Any]:
        """The spans, once there are at least `count`, or what there is when the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.spans) >= count, timeout_s)
            return self.spans


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, sink: TraceSink) -> None:
        self._sink = sink

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        kinds: dict[str, tuple[list[Any], Any]] = {
            _PATH.format("trace", "Trace"): (self._sink.traces, ExportTraceServiceRequest),
            _PATH.format("metrics", "Metrics"): (self._sink.metrics, ExportMetricsServiceRequest),
        }
        if handler_call_details.method not in kinds:
            return None
        kept, message = kinds[handler_call_details.method]
        return grpc.unary_unary_rpc_method_handler(
            lambda request, _context: self._sink.take(kept, message.FromString(request))
        )
