"""What a gRPC port answers beside OTLP: `grpc.health.v1`, and reflection where it is switched on.

Each is given to the receiver as more methods: ``methods=health.methods() | reflection_methods()``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2

from joulegram_pipeline.errors import WireError
from joulegram_receiver.admission import Admission
from joulegram_receiver.grpc_methods import CallRefusedError, Streaming, Unary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_receiver.admission import Hold
    from joulegram_receiver.grpc_methods import Method, Talk
    from joulegram_receiver.http2_head import Head

HEALTH_SERVICE = "grpc.health.v1.Health"
OTLP_SERVICES = (
    "opentelemetry.proto.collector.trace.v1.TraceService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "opentelemetry.proto.collector.logs.v1.LogsService",
    "opentelemetry.proto.collector.profiles.v1development.ProfilesService",
)

_MAX_WATCHERS = 256
_MAX_CHECK_BYTES = 4096
_CHECKS_BYTES = 16 * 1024 * 1024
"""Of all that have begun; who asks needs no token, so it is not what requests have."""


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

    def methods(self) -> dict[str, Method]:
        """Check and Watch, by their paths."""
        check = Unary(self._check, admission=Admission(_CHECKS_BYTES), max_bytes=_MAX_CHECK_BYTES)
        return {f"/{HEALTH_SERVICE}/Check": check, f"/{HEALTH_SERVICE}/Watch": Streaming(self._watch)}

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

    async def _check(self, request: bytes, head: Head, hold: Hold) -> bytes:
        del head, hold
        service = _service_of(request)
        if service not in self._known:
            expected = ", ".join(sorted(self._known - {""}))
            raise CallRefusedError(
                code_pb2.NOT_FOUND, f"service: got {service[:100]!r}, expected '' or one of {expected}"
            )
        return self._answer(self._status(service))

    async def _watch(self, talk: Talk) -> None:
        request = await talk.receive()
        if request is None:
            raise CallRefusedError(code_pb2.UNIMPLEMENTED, "got no message, expected one")
        service = _service_of(request)
        if self._watchers >= _MAX_WATCHERS:
            raise CallRefusedError(
                code_pb2.RESOURCE_EXHAUSTED,
                f"got one Watch more than {_MAX_WATCHERS}, expected fewer; Check has no limit",
            )
        self._watchers += 1
        try:
            last: Any = None
            while True:
                changed, status = self._changed, self._status(service)
                if status != last:
                    await talk.send(self._answer(status))
                    last = status
                elif self._closed:
                    return
                else:
                    await changed.wait()
        finally:
            self._watchers -= 1

    @staticmethod
    def _answer(status: Any) -> bytes:
        encoded: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return encoded


def _service_of(request: bytes) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(request).service)
    except DecodeError as error:
        raise WireError(f"got {len(request)} bytes, expected a {HEALTH_SERVICE} request: {error}") from error


def reflection_methods() -> dict[str, Method]:
    """`grpc.reflection.v1alpha`, so that tools can ask for the services."""
    # Here, because few switch it on and it has the descriptors of everything, and grpcio, in memory.
    from grpc_reflection.v1alpha import reflection, reflection_pb2  # noqa: PLC0415
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2  # noqa: F401, PLC0415
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2  # noqa: F401, PLC0415
    from opentelemetry.proto.collector.profiles.v1development import (  # noqa: PLC0415
        profiles_service_pb2,  # noqa: F401
    )
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: F401, PLC0415

    servicer: Any = reflection.ReflectionServicer((*OTLP_SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME))

    async def info(talk: Talk) -> None:
        while (request := await talk.receive()) is not None:
            try:
                asked = reflection_pb2.ServerReflectionRequest.FromString(request)
            except DecodeError as error:
                raise WireError(f"got {len(request)} bytes, expected a reflection request: {error}") from error
            for answer in servicer.ServerReflectionInfo(iter([asked]), None):
                await talk.send(answer.SerializeToString())

    return {f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": Streaming(info)}
