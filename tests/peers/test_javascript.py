"""A job in another implementation: OpenTelemetry JS sends over OTLP/gRPC, and nothing of it is lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simulators.decoded import attributes, spans
from simulators.otlp_server import OtlpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parent / "js"
BUILD = Path(__file__).parent / ".build" / "js"
RUN_ID = "peer-js-20260102T030405Z"
NODES = 300

pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed"),
]


@pytest.fixture(scope="module")
def peer() -> Path:
    """The peer's folder with its packages; installed again only when what it is made of has changed."""
    names = ("package.json", "package-lock.json", ".npmrc", "send.mjs")
    wanted = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in names)).hexdigest()
    stamp = BUILD / "installed"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(BUILD, ignore_errors=True)
        BUILD.mkdir(parents=True)
        for name in names:
            shutil.copy(SOURCE / name, BUILD)
        # Its packages need no install scripts: what they ship is run as it is.
        install = ["npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=BUILD, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        stamp.write_text(wanted)
    return BUILD


def send(peer: Path, endpoint: str) -> None:
    """Run the JS job to its end; it fails if the receiver did not acknowledge everything."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "KFM_"))}
    env |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "KFM_RUN_ID": RUN_ID,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    done = subprocess.run(
        ["node", "send.mjs", str(NODES)], cwd=peer, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def sidecar(directory: Path, upstream: str) -> Iterator[str]:
    """A `joulegram serve` process on free ports that forwards to `upstream`; yields its endpoint."""
    grpc_port, http_port = free_ports(2)
    log = (directory / "serve.log").open("w+")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "KFM_", "JOULEGRAM_"))}
    command = [
        str(Path(sys.executable).with_name("joulegram")),
        "serve",
        f"--grpc-endpoint=127.0.0.1:{grpc_port}",
        f"--metrics-endpoint=127.0.0.1:{http_port}",
        f"--data-dir={directory / 'data'}",
        f"--upstream={upstream}",
        "--region=SPP_KS",
    ]
    with log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + 30
            while not is_ready(http_port):
                assert process.poll() is None, (directory / "serve.log").read_text()
                assert time.monotonic() < until, (directory / "serve.log").read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{grpc_port}"
            process.terminate()
            assert process.wait(timeout=30) == 0, (directory / "serve.log").read_text()
        finally:
            process.kill()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def is_ready(port: int) -> bool:
    """Whether /readyz of a sidecar answers with success."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


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
        send(peer, f"http://127.0.0.1:{sink.port}")

        check_arrived(sink, timeout_s=5)


def test_every_span_of_the_peer_goes_through_the_sidecar(peer: Path, tmp_path: Path) -> None:
    """Through `joulegram serve`, all spans reach the upstream, once, each with an energy method added."""
    with OtlpServer() as sink:
        with sidecar(tmp_path, upstream=f"grpc://127.0.0.1:{sink.port}") as endpoint:
            send(peer, endpoint)
            check_arrived(sink, timeout_s=20)

        assert [span.name for span in spans(sink) if "energy.method" not in attributes(span)] == []
