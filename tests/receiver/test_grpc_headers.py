"""Headers of a gRPC call that are more than is taken: RESOURCE_EXHAUSTED, and what becomes of the connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from joulegram_receiver.signals import TRACES
from receiver.test_grpc_server import running, span, traces

if TYPE_CHECKING:
    from pathlib import Path


def test_headers_above_the_limit_are_refused(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED, always and not by chance; the next call on the connection works."""

    async def main() -> None:
        async with running(tmp_path) as client:
            for _ in range(5):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await client.export(traces(span()), metadata=(("x-tenant", "a" * 20_000),))
                assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await client.export(traces(span()), metadata=(("x-tenant", "a" * 8000),)) == b""
            assert len(client.stored()) == 1

    asyncio.run(main())


def test_headers_too_large_to_be_read_are_refused_with_their_connection(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED, always and not by chance; a call on another connection works.

    The next call of the same client may find the connection just closed, UNAVAILABLE, and is to be tried again.
    """

    async def main() -> None:
        async with running(tmp_path) as client:
            service = f"/{TRACES.service}/Export"
            for _ in range(5):
                # Channels would share a connection otherwise.
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.insecure_channel(f"127.0.0.1:{client.port}", options) as channel:
                    call = channel.unary_unary(service, None, None)
                    with pytest.raises(grpc.aio.AioRpcError) as refusal:
                        await call(traces(span()), timeout=20, metadata=(("x-tenant", "a" * 1_000_000),))
                assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await client.export(traces(span())) == b""
            assert len(client.stored()) == 1

    asyncio.run(main())
