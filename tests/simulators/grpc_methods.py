"""A gRPC server of ours with methods that a test gives it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from joulegram_receiver.grpc_methods import Unary
from joulegram_receiver.grpc_transport import GrpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from joulegram_receiver.admission import Hold
    from joulegram_receiver.grpc_methods import Method
    from joulegram_receiver.http2_head import Head


async def _say(message: bytes, head: Head, hold: Hold) -> bytes:
    return message


ECHO = Unary(_say)
"""Answers with what it was asked."""


@asynccontextmanager
async def serving(
    methods: Mapping[str, Method], endpoint: str = "127.0.0.1:0", **options: Any
) -> AsyncIterator[GrpcServer]:
    """A server of these methods."""
    async with GrpcServer(endpoint, "test.endpoint", methods, **{"max_recv_bytes": 64 << 20} | options) as server:
        yield server
