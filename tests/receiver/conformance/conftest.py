"""One sidecar for the whole list: what it is asked does not depend on what it was asked before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from receiver.conformance.hop import WITHOUT_ENERGY, Hop
from simulators.otlp_server import OtlpServer
from simulators.sidecar import Serve

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
    """`joulegram serve` as it is delivered, forwarding over gRPC, on a node that measures nothing and does not wait."""
    folder = tmp_path_factory.mktemp("hop")
    config = folder / "joulegram.yaml"
    config.write_text(WITHOUT_ENERGY)
    with (
        OtlpServer() as upstream,
        Serve(folder, f"--config={config}", f"--upstream=grpc://127.0.0.1:{upstream.port}") as serve,
    ):
        running = Hop(serve.wait_ready(), upstream)
        yield running
        running.channel.close()
