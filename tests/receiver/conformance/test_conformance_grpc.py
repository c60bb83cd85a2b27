"""OTLP 1.11 over gRPC: the list of the otlp reference, section 1.2, seen on the wire."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2

from joulegram_receiver.admission import Admission
from receiver.conformance.hop import TIMEOUT_S, Hop, one_span, status_of
from simulators.receivers import BY_NAME, receivers, requests

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024
SERVICES = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
    "profiles": "opentelemetry.proto.collector.profiles.v1development.ProfilesService",
}


@pytest.mark.parametrize("signal", SERVICES)
def test_grpc_every_service_is_there_and_what_it_takes_goes_on(hop: Hop, signal: str) -> None:
    """Four services of one unary method; profiles although they are in development."""
    request = requests()[signal] if signal != "traces" else one_span("grpc")
    call = hop.channel.unary_unary(f"/{SERVICES[signal]}/Export", None, None)
    assert call(request, timeout=TIMEOUT_S) == b""
    hop.forwards(request, signal)


@pytest.mark.parametrize("method", [f"/{SERVICES['traces']}/Import", "/opentelemetry.proto.No/Export"])
def test_grpc_what_is_not_there_is_unimplemented(hop: Hop, method: str) -> None:
    """Which no client sends again."""
    with pytest.raises(grpc.RpcError) as refusal:
        hop.channel.unary_unary(method, None, None)(b"", timeout=TIMEOUT_S)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_grpc_calls_of_one_connection_are_under_way_at_once(hop: Hop) -> None:
    """Clients that need throughput pipeline unary calls: each is answered, none twice."""
    sent = [one_span("grpc at once", number + 1) for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(hop.export, sent)) == [b""] * 50
    for request in sent:
        hop.forwards(request)


@pytest.mark.parametrize("signal", SERVICES)
def test_grpc_too_large_is_resource_exhausted_without_retry_info(hop: Hop, signal: str) -> None:
    """MUST: a client that sees no RetryInfo does not send it again."""
    with pytest.raises(grpc.RpcError) as refusal:
        hop.export(bytes(64 * MIB + 1), signal, compression=grpc.Compression.Gzip)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of(refusal.value) is None


@pytest.mark.parametrize("signal", SERVICES)
def test_grpc_bad_data_is_an_invalid_argument(hop: Hop, signal: str) -> None:
    """Recommended; not INTERNAL, and not a code that clients try again."""
    with pytest.raises(grpc.RpcError) as refusal:
        hop.export(b"\x0a\x7fabc", signal)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = refusal.value.details() or ""
    assert all(word in details for word in ("0a7f616263", "expected", BY_NAME[signal].request.DESCRIPTOR.name))


def test_grpc_backpressure_is_unavailable_with_retry_info(tmp_path: Path) -> None:
    """SHOULD, with the delay that MAY be said: longer the fuller it is, and within what clients wait for."""
    full = [1.0]

    async def main() -> None:
        async with receivers(tmp_path, intake={"admission": Admission(backlog=lambda: full[0])}) as running:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await running.export(one_span("n"))
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            detail = error_details_pb2.RetryInfo()
            assert status_of(refusal.value).details[0].Unpack(detail)
            assert 1 <= detail.retry_delay.seconds <= 30
            full[0] = 0.0
            assert await running.export(one_span("n")) == b""

    asyncio.run(main())
