"""What a gRPC port answers beside OTLP: `grpc.health.v1`, and reflection where it is switched on.

Each is given to the receiver before its server starts: ``services=[health.add_to, add_reflection]``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

HEALTH_SERVICE = "grpc.health.v1.Health"
OTLP_SERVICES = (
    "opentelemetry.proto.collector.trace.v1.TraceService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "opentelemetry.proto.collector.logs.v1.LogsService",
    "opentelemetry.proto.collector.profiles.v1development.ProfilesService",
)

_MAX_WATCHERS = 256


class Health:
    """The health service, for the server as a whole (``""``) and for each OTLP service, which are well together.

    Check answers NOT_FOUND for a service that is none of them, Watch SERVICE_UNKNOWN, as the protocol says. It begins
    as NOT_SERVING: say `set_serving` when data is taken. Its methods belong to the server's loop.

    Args:
        services: the names it knows beside ``""``.
    """

    def __init__(self, services: Iterable[str] = OTLP_SERVICES) -> None:
        self._known = {"", *services}
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()
        self._watchers = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there; before the server starts."""
        to_bytes = health_pb2.HealthCheckResponse.SerializeToString
        from_bytes = health_pb2.HealthCheckRequest.FromString
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, from_bytes, to_bytes),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, from_bytes, to_bytes),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers),))

    def set_serving(self, serving: bool) -> None:
        """Answer SERVING or NOT_SERVING from now on, and tell those who watch."""
        if serving != self._serving and not self._closed:
            self._serving = serving
            self._tell()

    def close(self) -> None:
        """NOT_SERVING for good, and the end of every Watch, whose open streams would hold up the server's stop."""
        self._serving = False
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> Any:
        kinds = health_pb2.HealthCheckResponse
        if service not in self._known:
            return kinds.SERVICE_UNKNOWN
        return kinds.SERVING if self._serving else kinds.NOT_SERVING

    async def _check(self, request: Any, context: Any) -> Any:
        if request.service not in self._known:
            expected = ", ".join(sorted(self._known - {""}))
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"service: got {request.service[:100]!r}, expected '' or one of {expected}",
            )
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def _watch(self, request: Any, context: Any) -> None:
        if self._watchers >= _MAX_WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"got one Watch more than {_MAX_WATCHERS}, expected fewer; Check has no limit",
            )
        self._watchers += 1
        try:
            last: Any = None
            while True:
                changed, status = self._changed, self._status(request.service)
                if status != last:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    last = status
                elif self._closed:
                    return
                else:
                    await changed.wait()
        finally:
            self._watchers -= 1


def add_reflection(server: grpc.aio.Server) -> None:
    """Serve `grpc.reflection.v1alpha` there, before the server starts, so that tools can ask for the services."""
    # Here, because few switch it on and it has the descriptors of everything in memory.
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2  # noqa: F401, PLC0415
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2  # noqa: F401, PLC0415
    from opentelemetry.proto.collector.profiles.v1development import (  # noqa: PLC0415
        profiles_service_pb2,  # noqa: F401
    )
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: F401, PLC0415

    reflection.enable_server_reflection((*OTLP_SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
