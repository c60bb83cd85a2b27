"""What an OtlpServer took, decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from simulators.otlp_server import OtlpServer


def attributes(owner: Any) -> dict[str, Any]:
    """The attributes of a span, resource, event or data point as plain values."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in owner.attributes}


def resource_spans(server: OtlpServer) -> list[Any]:
    """The ResourceSpans of every trace request taken so far, in order of arrival."""
    bodies = [body for signal, body in server.taken if signal == "traces"]
    return [item for body in bodies for item in ExportTraceServiceRequest.FromString(body).resource_spans]


def spans(server: OtlpServer) -> list[Any]:
    """Every span taken so far, in order of arrival."""
    return [span for item in resource_spans(server) for scope in item.scope_spans for span in scope.spans]


def resource_metrics(server: OtlpServer) -> list[Any]:
    """The ResourceMetrics of every metrics request taken so far, in order of arrival."""
    bodies = [body for signal, body in server.taken if signal == "metrics"]
    return [item for body in bodies for item in ExportMetricsServiceRequest.FromString(body).resource_metrics]
