"""OTLP over gRPC: raw request bytes in, acknowledged when they are on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joulegram_receiver.grpc_methods import Unary
from joulegram_receiver.grpc_transport import GrpcServer
from joulegram_receiver.intake import MAX_REQUEST_BYTES, Intake
from joulegram_receiver.signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from joulegram_pipeline.errors import JoulegramError
    from joulegram_pipeline.metrics import Metrics
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.grpc_methods import Method
    from joulegram_receiver.http2_head import Head
    from joulegram_receiver.intake import Store
    from joulegram_receiver.signals import Signal

MAX_RECV_BYTES = MAX_REQUEST_BYTES
"""What OTLP 1.11 recommends, before and after decompression."""

_KEY = "receiver.protocols.grpc.endpoint"


class GrpcReceiver(GrpcServer):
    """The OTLP/gRPC server of a sidecar; an async context manager.

    Args:
        endpoint: ``host:port`` or ``unix:/path``; port 0 lets the system choose, `port` says which.
        intake: where requests go; a spool alone gets an intake of its own. Entered before this and left after it.
        metrics: of that intake.
        methods: more of them, by their paths.
        max_recv_bytes: of a request (A2).
        others: as `GrpcServer` has them.
    """

    def __init__(
        self,
        endpoint: str,
        intake: Intake | Store,
        metrics: Metrics,
        *,
        methods: Mapping[str, Method] | None = None,
        max_recv_bytes: int = MAX_RECV_BYTES,
        **others: Any,
    ) -> None:
        into = intake if isinstance(intake, Intake) else Intake(intake, metrics)
        exports = {f"/{signal.service}/Export": _export(into, signal) for signal in SIGNALS}
        super().__init__(
            endpoint,
            _KEY,
            exports | dict(methods or {}),
            max_recv_bytes=max_recv_bytes,
            refused=lambda reason: metrics.refuse("unknown", reason),
            **others,
        )


def _export(intake: Intake, signal: Signal) -> Unary:
    async def answer(request: bytes, head: Head, hold: Hold) -> bytes:
        metadata = intake.metadata_of(head.fields, afar=head.afar)
        return await intake.take_held(signal, request, metadata, hold)

    def refused(error: JoulegramError) -> None:
        intake.count_refusal(signal, error)

    return Unary(answer, refused, intake.admission)
