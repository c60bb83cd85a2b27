"""The systems that benchmarks/peers.py measures, each as a process on one core, forwarding to the same sink."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.hot_path import metric
from benchmarks.peers_load import SELECTED_PREFIX

from peers.build import go_program
from peers.collector import Collector, collector_config
from simulators.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.peers_load import Load

Attributes = list[tuple[str, str | float | bool]]
JOULEGRAM, DURABLE, MEMORY = "joulegram", "collector-fsync", "collector-memory"
SYSTEMS = (JOULEGRAM, DURABLE, MEMORY)


class Running:
    """A system that listens.

    Args:
        pid: its one process.
        port: of OTLP/gRPC.
    """

    recorded: Callable[[], float] | None = None
    """How many spans it has joined and written down; None where it writes nothing down."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port


class Joulegram(Running):
    """A sidecar that listens.

    Args:
        pid: its one process.
        port: of OTLP/gRPC.
        metrics_port: of /metrics.
    """

    def __init__(self, pid: int, port: int, metrics_port: int) -> None:
        super().__init__(pid, port)
        self.metrics_port = metrics_port
        self.recorded = lambda: metric(metrics_port, "joulegram_sink_ledger_lines_total")


def pinned(core: int) -> tuple[str, ...]:
    """What is put before a command line so that it runs on one core.

    Raises:
        SystemExit: taskset is not installed.
    """
    if shutil.which("taskset") is None:
        sys.exit("taskset is not installed; it pins every system to one core alike")
    return ("taskset", "--cpu-list", str(core))


@contextmanager
def joulegram(
    directory: Path, sink_port: int, core: int, config: dict[str, Any] | None = None, agent_socket: Path | None = None
) -> Iterator[Joulegram]:
    """`joulegram serve` with its defaults: durable before the acknowledgement, joined, in the ledger, forwarded.

    `config` is what its file says, if it is to say anything. Without an agent's socket it models the energy itself.
    """
    command = [*pinned(core), sys.executable, "-m", "joulegram_service", "serve", "--grpc-endpoint=127.0.0.1:0"]
    command += ["--http-endpoint=127.0.0.1:0", "--metrics-endpoint=127.0.0.1:0", f"--data-dir={directory / 'data'}"]
    command += ["--region=SPP_KS", f"--upstream=grpc://127.0.0.1:{sink_port}"]
    command.append("--source=model" if agent_socket is None else f"--agent-socket={agent_socket}")
    if config:
        file = directory / "joulegram.yaml"
        file.write_text(json.dumps(config))
        command.append(f"--config={file}")
    log = directory / "joulegram.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        found: dict[str, int] = {}
        while len(found) < 2:
            assert process.poll() is None, log.read_text()
            found = {match[1]: int(match[2]) for match in re.finditer(r"(gRPC|readyz) .*port (\d+)", log.read_text())}
            time.sleep(0.05)
        yield Joulegram(process.pid, found["gRPC"], found["readyz"])
    finally:
        process.terminate()
        process.wait(60)


def enrichment(load: Load, attributes: Attributes) -> dict[str, Any]:
    """The Collector's processor for a load, the cheaper of two that were measured.

    On all spans the attributes processor costs less than the transform processor, on those that a condition picks more.
    """
    if load.percent == 100:
        return {"attributes": {"actions": [{"key": k, "value": v, "action": "upsert"} for k, v in attributes]}}
    statements = [f'set(span.attributes["{key}"], {literal(value)})' for key, value in attributes]
    condition = f'HasPrefix(span.name, "{SELECTED_PREFIX}")'
    return {
        "transform": {
            "trace_statements": [{"context": "span", "conditions": [condition], "statements": statements}],
        }
    }


def literal(value: str | float | bool) -> str:
    """A value as the transform processor's language spells it, which has no exponents."""
    if isinstance(value, float):
        return f"{value:.15f}"
    return json.dumps(value)


@contextmanager
def collector(
    directory: Path, sink_port: int, core: int, load: Load, attributes: Attributes, *, durable: bool
) -> Iterator[Running]:
    """The Collector with GOMAXPROCS=1, upserting what joulegram adds on the spans that joulegram selects.

    Durable, its queue is on disk and synced, and waits when it is full; else it is what a Collector has by default.
    """
    (port,) = free_ports(1)
    to_sink: dict[str, Any] = {
        "endpoint": f"127.0.0.1:{sink_port}",
        "tls": {"insecure": True},
        "compression": "none",
    }
    extensions: dict[str, Any] = {}
    if durable:
        extensions = {"file_storage": {"directory": str(directory / "queue"), "create_directory": True, "fsync": True}}
        to_sink["sending_queue"] = {
            "num_consumers": 4,
            "queue_size": 100,
            "block_on_overflow": True,
            "storage": "file_storage",
        }
    receivers = {"grpc": {"endpoint": f"127.0.0.1:{port}", "max_recv_msg_size_mib": 64}}
    config = collector_config(receivers, "otlp_grpc", to_sink, enrichment(load, attributes), extensions)
    program = go_program("otelcol")
    with Collector(program, directory, config, before=pinned(core), environment={"GOMAXPROCS": "1"}) as process:
        yield Running(process.pid, port)


@contextmanager
def running(
    name: str, directory: Path, sink_port: int, core: int, load: Load, attributes: Attributes
) -> Iterator[Running]:
    """A system by its name, on a directory of its own."""
    directory.mkdir()
    try:
        if name == JOULEGRAM:
            with joulegram(directory, sink_port, core) as system:
                yield system
        else:
            durable = name == DURABLE
            with collector(directory, sink_port, core, load, attributes, durable=durable) as system:
                yield system
    finally:
        shutil.rmtree(directory)


def other_cores(core: int) -> list[int]:
    """Those the client and the sink run on: all but one, unless there is no other."""
    return sorted(os.sched_getaffinity(0) - {core}) or [core]
