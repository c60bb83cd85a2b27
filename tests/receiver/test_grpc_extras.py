"""`grpc.health.v1` and reflection on a real gRPC server, asked by the libraries' own stubs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from joulegram_receiver import grpc_extras
from joulegram_receiver.grpc_extras import HEALTH_SERVICE, OTLP_SERVICES, Health, reflection_methods
from simulators import grpc_methods
from simulators.otlp_server import SERVICES
from simulators.sidecar import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from joulegram_receiver.grpc_methods import Method

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@asynccontextmanager
async def serving(methods: Mapping[str, Method]) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        grpc_methods.serving(methods) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield channel


def asked(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


def test_the_services_are_those_of_otlp() -> None:
    """The names that clients call."""
    assert set(SERVICES.values()) <= set(OTLP_SERVICES)


def test_check_follows_what_is_said() -> None:
    """Not serving before it is said, for the server and for each OTLP service alike."""

    async def main() -> None:
        health = Health()
        async with serving(health.methods()) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for serves, status in ((None, NOT_SERVING), (True, SERVING), (False, NOT_SERVING), (True, SERVING)):
                if serves is not None:
                    health.set_serving(serves)
                for service in ("", *OTLP_SERVICES):
                    assert (await stub.Check(asked(service), timeout=5)).status == status
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.Check(asked("no.Service"), timeout=5)
            assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
            assert "got 'no.Service', expected '' or one of opentelemetry.proto" in (refusal.value.details() or "")

    asyncio.run(main())


def test_watch_tells_of_every_change() -> None:
    """The state at once, then each change, to all who watch; an unknown service is SERVICE_UNKNOWN."""

    async def main() -> None:
        health = Health()
        async with serving(health.methods()) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            calls = [stub.Watch(asked(service), timeout=8) for service in ("", OTLP_SERVICES[0])]
            unknown = stub.Watch(asked("no.Service"), timeout=8)
            assert (await unknown.read()).status == SERVICE_UNKNOWN
            for serves, status in ((None, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
                if serves is not None:
                    health.set_serving(serves)
                    health.set_serving(serves)
                assert [(await call.read()).status for call in calls] == [status, status]
            for call in (*calls, unknown):
                call.cancel()

    asyncio.run(main())


def test_close_ends_those_who_watch_so_that_a_stop_is_quick() -> None:
    """They are told NOT_SERVING and released; nothing said after it counts."""

    async def main() -> None:
        health = Health()
        health.set_serving(True)
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(grpc_methods.serving(health.methods()))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                call = stub.Watch(asked(), timeout=8)
                answers = aiter(call)
                assert (await anext(answers)).status == SERVING
                health.close()
                health.set_serving(True)
                begun = time.monotonic()
                await stack.aclose()
                assert time.monotonic() - begun < 2
                assert [each.status async for each in answers] == [NOT_SERVING]
                assert await call.code() is grpc.StatusCode.OK

    asyncio.run(main())


def test_those_who_watch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused, and let in when another has gone."""
    monkeypatch.setattr(grpc_extras, "_MAX_WATCHERS", 2)

    async def main() -> None:
        health = Health()
        async with serving(health.methods()) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            calls = [stub.Watch(asked(), timeout=8) for _ in range(2)]
            for call in calls:
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.Watch(asked(), timeout=8).read()
            assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            calls[0].cancel()
            await asyncio.to_thread(
                wait_until, lambda: health._watchers == 1, "a Watch that was cancelled counts still"
            )
            again = stub.Watch(asked(), timeout=8)
            assert (await again.read()).status == NOT_SERVING
            for call in (again, calls[1]):
                call.cancel()

    asyncio.run(main())


def test_reflection_names_the_services_and_their_files() -> None:
    """What grpcurl asks: the list, and the file of each service, profiles included."""

    async def main() -> None:
        async with serving(Health().methods() | reflection_methods()) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest

            async def ask(**fields: str) -> Any:
                (answer,) = [each async for each in stub.ServerReflectionInfo(iter([request(**fields)]), timeout=5)]
                return answer

            listed = {each.name for each in (await ask(list_services="")).list_services_response.service}
            assert listed == {*OTLP_SERVICES, HEALTH_SERVICE, "grpc.reflection.v1alpha.ServerReflection"}
            for service in listed:
                answer = await ask(file_containing_symbol=service)
                assert answer.file_descriptor_response.file_descriptor_proto, service

    asyncio.run(main())
