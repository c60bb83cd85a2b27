"""What a serving process has in its memory: a library that nothing uses costs nobody anything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from simulators.decoded import spans
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.sidecar import Serve
from simulators.traces import request, span


@pytest.mark.parametrize("reflection", [False, True])
def test_grpcio_is_in_memory_where_reflection_is_on(tmp_path: Path, *, reflection: bool) -> None:
    """And nowhere else: not behind a delivery over gRPC, in and out, which would be 10 MiB and threads that wake."""
    config = tmp_path / "joulegram.yaml"
    config.write_text(f"receiver: {{protocols: {{grpc: {{reflection: {str(reflection).lower()}}}}}}}\n")
    now = time.time_ns()
    body = request(span(1, now - 10**6, now))
    with (
        OtlpServer() as server,
        Serve(
            tmp_path,
            f"--config={config}",
            f"--upstream=grpc://127.0.0.1:{server.port}",
            "--region=SPP_KS",
            "--source=model",
        ) as serve,
    ):
        serve.wait_ready()
        with grpc.insecure_channel(serve.target) as channel:
            send: Any = channel.unary_unary(f"/{SERVICES['traces']}/Export")  # type: ignore[call-arg]
            send(body, timeout=20)
        server.wait_for(lambda server: bool(spans(server)))
        assert serve.process is not None
        maps = Path(f"/proc/{serve.process.pid}/maps").read_text()
    assert "_asyncio" in maps
    assert ("cygrpc" in maps) is reflection
