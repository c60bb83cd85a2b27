"""A job in another implementation: OpenTelemetry JS sends over each transport, and nothing of it is lost."""

from __future__ import annotations

import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from peers.build import PeerMissingError, js_job
from peers.through import assert_joined_only, endpoint, sidecar
from simulators.decoded import attributes, spans
from simulators.otlp_server import OtlpServer
from simulators.sidecar import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

RUN_ID = "peer-js-20260102T030405Z"
NODES = 300

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def peer() -> Path:
    """The peer's folder with its packages."""
    try:
        return js_job()
    except PeerMissingError as error:
        pytest.skip(str(error))


def send(peer: Path, url: str, protocol: str) -> None:
    """Run the JS job to its end; it fails if the receiver did not acknowledge everything."""
    env = clean_environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=url,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        KFM_RUN_ID=RUN_ID,
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    done = subprocess.run(
        ["node", "send.mjs", str(NODES)], cwd=peer, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def check_arrived(sink: OtlpServer, timeout_s: float) -> None:
    """Every span of the JS job is in the sink exactly once, each node beneath the job."""
    sink.wait_for(lambda sink: len(spans(sink)) > NODES, timeout_s)
    taken = spans(sink)
    (job,) = [span for span in taken if span.name == "etl.job"]
    nodes = [span for span in taken if span.name == "etl.node.x"]

    assert len(taken) == NODES + 1
    assert Counter(attributes(span)["peer.index"] for span in nodes) == Counter(range(NODES))
    assert {(span.trace_id, span.parent_span_id) for span in nodes} == {(job.trace_id, job.span_id)}
    assert {attributes(span)["kfm.run_id"] for span in taken} == {RUN_ID}


def test_the_peer_sends_what_it_says(peer: Path) -> None:
    """The JS job alone, to a bare receiver: if this fails, the peer is at fault and not the sidecar."""
    with OtlpServer() as sink:
        send(peer, f"http://127.0.0.1:{sink.port}", "grpc")

        check_arrived(sink, timeout_s=5)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf", "http/json"])
def test_every_span_of_the_peer_goes_through_the_sidecar(protocol: str, peer: Path, tmp_path: Path) -> None:
    """Through `joulegram serve`, all spans reach the upstream, once, each with its energy; over HTTP, chunked (H10)."""
    with OtlpServer() as sink:
        with sidecar(tmp_path, sink.port) as serve:
            send(peer, endpoint(serve.wait_ready(), protocol), protocol)
            check_arrived(sink, timeout_s=20)
            assert serve.stop() == 0, serve.said

        assert_joined_only(sink, lambda span: True)
