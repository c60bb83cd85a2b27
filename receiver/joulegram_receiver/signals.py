"""The four signals of OTLP: what each is called on either transport, and the messages it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.profiles.v1development import profiles_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.records import RecordKind


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal.

    Args:
        name: as the metrics say it: ``traces``.
        kind: of its records in the log.
        service: the full name of its gRPC service; the method is ``Export``.
        path: of its HTTP endpoint (H1).
        request: class of the request.
        response: class of the response.
        envelope: the repeated field of a request that holds all there is; empty, the request says nothing.
    """

    name: str
    kind: RecordKind
    service: str
    path: str
    request: Any
    response: Any
    envelope: str

    def parse(self, payload: bytes) -> Any:
        """The request that the bytes are.

        Raises:
            WireError: they are not one.
        """
        try:
            return self.request.FromString(payload)
        except DecodeError as error:
            raise WireError(
                f"got {len(payload)} bytes beginning {payload[:16].hex()!r}, "
                f"expected a {self.request.DESCRIPTOR.full_name}: {error}"
            ) from error


_COLLECTOR = "opentelemetry.proto.collector"

TRACES: Final = Signal(
    "traces",
    RecordKind.TRACES,
    f"{_COLLECTOR}.trace.v1.TraceService",
    "/v1/traces",
    trace_service_pb2.ExportTraceServiceRequest,
    trace_service_pb2.ExportTraceServiceResponse,
    "resource_spans",
)
METRICS: Final = Signal(
    "metrics",
    RecordKind.METRICS,
    f"{_COLLECTOR}.metrics.v1.MetricsService",
    "/v1/metrics",
    metrics_service_pb2.ExportMetricsServiceRequest,
    metrics_service_pb2.ExportMetricsServiceResponse,
    "resource_metrics",
)
LOGS: Final = Signal(
    "logs",
    RecordKind.LOGS,
    f"{_COLLECTOR}.logs.v1.LogsService",
    "/v1/logs",
    logs_service_pb2.ExportLogsServiceRequest,
    logs_service_pb2.ExportLogsServiceResponse,
    "resource_logs",
)
PROFILES: Final = Signal(
    "profiles",
    RecordKind.PROFILES,
    f"{_COLLECTOR}.profiles.v1development.ProfilesService",
    "/v1development/profiles",
    profiles_service_pb2.ExportProfilesServiceRequest,
    profiles_service_pb2.ExportProfilesServiceResponse,
    "resource_profiles",
)

SIGNALS: Final = (TRACES, METRICS, LOGS, PROFILES)
BY_PATH: Final = {signal.path: signal for signal in SIGNALS}
