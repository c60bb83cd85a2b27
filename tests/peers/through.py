"""What every test of a peer asks: a sidecar between two ports, and whether it added what it adds and nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from simulators.decoded import attributes, resource_spans, spans
from simulators.sidecar import Serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from simulators.otlp_server import OtlpServer

_HTTP_PORT = re.compile(r"OTLP/HTTP on \S+, port (\d+)")


def sidecar(directory: Path, upstream_port: int, *arguments: str) -> Serve:
    """A `joulegram serve`, not yet entered, that forwards to a port over gRPC and listens on both transports."""
    upstream = f"--upstream=grpc://127.0.0.1:{upstream_port}"
    return Serve(directory, upstream, "--region=SPP_KS", "--source=model", "--http-endpoint=127.0.0.1:0", *arguments)


def endpoint(serve: Serve, protocol: str) -> str:
    """URL of a listener of a sidecar that is ready: of gRPC for `grpc`, else of HTTP."""
    if protocol == "grpc":
        return f"http://{serve.target}"
    return f"http://127.0.0.1:{serve.wait_for(_HTTP_PORT)[1]}"


def ours(owner: Any) -> set[str]:
    """The keys of a span or resource that joulegram writes (design section 6)."""
    return {key for key in attributes(owner) if key.startswith(("energy.", "carbon.")) or key == "timing.duration_s"}


def assert_joined_only(server: OtlpServer, selected: Callable[[Any], bool]) -> None:
    """The selected spans have what a joined span gets, and no other span, and no resource, has anything of ours."""
    for span in spans(server):
        if selected(span):
            assert {"energy.method", "energy.total_j", "carbon.gco2e", "carbon.table"} <= ours(span), span.name
        else:
            assert ours(span) == set(), span.name
    assert {key for group in resource_spans(server) for key in ours(group.resource)} == set()
