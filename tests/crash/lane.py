"""One sidecar that is killed again and again under load, with everything it needs, and what must hold in the end.

Invariants:
    * its data directory, clients, destinations, agent and node live as long as the lane, and none is shared;
    * every segment of its spool is kept by a second name, so that a machine without kills can read the whole log;
    * a destination is away in a third of its lives, one of two at a time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Self

import grpc
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from crash.clients import GrpcClient, HttpClient
from crash.nursery import Fledgling, Nursery
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_processor.machine import Machine
from joulegram_processor.machine_types import Settings
from joulegram_service.carbon_model import build_carbon
from joulegram_service.config_file import load_config
from joulegram_sink.ledger_format import run_line
from simulators.otlp_server import OtlpHttpServer, OtlpServer
from simulators.ports import free_port
from simulators.powercap import PowercapTree
from simulators.sidecar import JOULEGRAM, Agent, PowerTrace, archived_ticks, ledger_lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from crash.clients import Client, Key
    from joulegram_processor.machine_types import Outputs

REGION = "SPP_KS"
MOMENTS = ("start", "load", "load", "snapshot")
"""When a life ends, in turn: before it is ready (it replays, heals, opens its ports), under load, in a snapshot."""

_MOST_LOAD_S = 0.5


class Lane:
    """A killed sidecar; entered, its clients send.

    Args:
        directory: of its own.
        seed: of the moments and of what is sent.
        sync: the spool's; a kill loses nothing in any of them.
    """

    def __init__(self, directory: Path, seed: int, sync: str = "always") -> None:
        directory.mkdir()
        self.directory = directory
        self.data = directory / "data"
        self.killed: Counter[str] = Counter()
        """Lives by how they ended: killed before they were ready, under load, or with a snapshot half written."""
        self._chance = random.Random(seed)
        self._sync = sync
        self._kept = directory / "kept"
        self._away: set[str] = set()
        self._start_s = 0.2
        self._stack = ExitStack()
        self._grpc_port, self._http_port = free_port(), free_port()
        self.near = OtlpServer(judge=lambda *_: grpc.StatusCode.UNAVAILABLE if "near" in self._away else None)
        self.far = OtlpHttpServer(judge=lambda *_: (503, {}, b"") if "far" in self._away else None)
        self.clients: tuple[Client, Client] = (
            GrpcClient(self._grpc_port, seed, os.getpid(), 0.02),
            HttpClient(self._http_port, seed + 1, 0, 0.02),
        )

    def __enter__(self) -> Self:
        self._kept.mkdir()
        tree = PowercapTree(self.directory / "sys", packages=2)
        with ExitStack() as stack:
            self._agent = stack.enter_context(Agent(self.directory, tree))
            stack.enter_context(PowerTrace(tree, seed=3))
            self._nursery = stack.enter_context(Nursery(self.directory))
            stack.enter_context(self.near)
            stack.enter_context(self.far)
            self._agent.wait_ready()
            for client in self.clients:
                stack.enter_context(client)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def kill(self, number: int) -> None:
        """One life, ended by SIGKILL at a moment drawn by chance."""
        moment = MOMENTS[number % len(MOMENTS)]
        chance = self._chance
        self._away = {chance.choice(["near", "far"])} if chance.random() < 1 / 3 else set()
        begun = time.monotonic()
        before = self._half_snapshots()
        with self._life(f"killed-{number:04}") as life:
            if moment == "start":
                time.sleep(chance.uniform(0.0, self._start_s))
            else:
                life.wait_ready()
                self._start_s += (time.monotonic() - begun - self._start_s) / 4
                if moment == "load":
                    self._keep_for(chance.uniform(0.0, _MOST_LOAD_S))
                else:
                    self._wait_for_snapshot()
                    time.sleep(chance.uniform(0.0, 0.003))
            life.kill()
            assert life.process is not None
            assert life.process.returncode == -9, life.said
        self._keep()
        if self._half_snapshots() - before:
            moment = "half a snapshot"
        self.killed[moment] += 1

    def stop(self, number: int) -> None:
        """One life, ended by SIGTERM under load, often with a destination that is away; it exits 0."""
        chance = self._chance
        self._away = {chance.choice(["near", "far"])} if chance.random() < 2 / 3 else set()
        with self._life(f"stopped-{number:04}") as life:
            life.wait_ready()
            self._keep_for(chance.uniform(0.0, _MOST_LOAD_S))
            status = life.stop()
            assert status == 0, life.said
        self._keep()
        self.killed["stopped"] += 1

    def end(self) -> None:
        """The last life: everything acknowledged, its energy measured, forwarded to both, and stopped."""
        self._away = set()
        with self._life("last", drain_s=30) as life:
            life.wait_ready()
            self._keep()
            for client in self.clients:
                client.finish()
                self._keep()
            settled = time.time_ns()
            wait_until(lambda: archived_ticks(self.data)[-1].end_ns > settled, "a last tick", log=life.log)
            self._keep()
            status = life.stop(timeout_s=60)
            assert status == 0, life.said

    def check(self) -> str:
        """Nothing acknowledged is lost, doubled or invented; what was found, in words.

        Raises:
            AssertionError: naming what is not so.
        """
        acknowledged = Counter(self.clients[0].acknowledged + self.clients[1].acknowledged)
        taken = {name: names_of(server.taken) for name, server in (("near", self.near), ("far", self.far))}
        lines = ledger_lines(self.data)
        recorded = Counter((line["trace_id"], line["span_id"]) for line in lines if line["kind"] == "span")
        metrics = Metrics()
        made, end = replay(self._kept, metrics)

        for name, spans in taken.items():
            assert acknowledged.keys() - spans.keys() == set(), f"forwarded to {name} at least once"
            assert spans.keys() - acknowledged.keys() == set(), f"nothing that nobody sent goes to {name}"
        selected = {key for key in acknowledged if taken["near"][key].startswith("etl.")}
        assert selected - recorded.keys() == set(), "none lost"
        assert recorded.keys() - selected == set(), "none that nobody sent"
        assert set(recorded.values()) <= {1}, "none twice"
        assert set(acknowledged.values()) <= {1}, "a client counts each of its spans once"
        assert [unchained(line) for line in lines[1:] if line["pos"][0] < end] == made, "as if nothing had been killed"
        assert len(made) > len(selected)
        assert not list(self.data.glob("deadletter/*")), "nothing was put aside"
        verified(self.data)
        repeats = metrics.registry.get_sample_value("joulegram_processor_duplicate_spans_total")
        cut_off = sum(client.cut_off for client in self.clients)
        ended = ", ".join(f"{count} {moment}" for moment, count in sorted(self.killed.items()))
        return (
            f"{self._sync}: {ended}; {len(acknowledged)} spans acknowledged, {len(selected)} in the ledger, "
            f"{repeats:.0f} came twice, {cut_off} requests cut off"
        )

    def _life(self, name: str, drain_s: float = 0.3) -> Fledgling:
        destinations: dict[str, dict[str, Any]] = {
            "near": {"endpoint": f"grpc://127.0.0.1:{self.near.port}"},
            "far": {"endpoint": f"http://127.0.0.1:{self.far.port}", "compression": "gzip"},
        }
        for destination in destinations.values():
            destination |= {"retry_on_failure": {"initial_interval": "20ms", "max_interval": "200ms"}}
            destination |= {"sending_queue": {"batch": {"flush_timeout": "20ms"}}}
        config = {
            "spool": {"sync": self._sync, "sync_interval": "50ms", "max_bytes": "128MiB"},
            "upstream": {"destinations": destinations},
            "shutdown": {"drain_timeout": f"{round(1000 * drain_s)}ms"},
        }
        file = self.directory / "joulegram.yaml"
        file.write_text(yaml.safe_dump(config))
        flags = (
            f"--config={file}",
            f"--agent-socket={self._agent.socket}",
            f"--region={REGION}",
            f"--grpc-endpoint=127.0.0.1:{self._grpc_port}",
            f"--http-endpoint=127.0.0.1:{self._http_port}",
        )
        return Fledgling(self._nursery, self.directory, *flags, name=name)

    def _keep(self) -> None:
        for path in (self.data / "spool").glob("*.wal"):
            other = self._kept / path.name
            if not other.exists():
                with suppress(FileNotFoundError):
                    os.link(path, other)

    def _keep_for(self, seconds: float) -> None:
        """Let it live and keep its segments, which a snapshot lets go of as soon as they are full."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            self._keep()
            time.sleep(min(rest, 0.05))

    def _half_snapshots(self) -> set[str]:
        state = self.data / "state"
        return {name for name in os.listdir(state) if name.endswith(".tmp")} if state.exists() else set()  # noqa: PTH208

    def _wait_for_snapshot(self) -> None:
        """Until a snapshot is being written, at most a second: there is none where nothing came."""
        self._keep()
        until = time.monotonic() + 1.0
        while not self._half_snapshots() and time.monotonic() < until:
            time.sleep(0.0003)


def names_of(taken: Iterable[tuple[str, bytes]]) -> dict[Key, str]:
    """The spans of the requests that a server took, and their names."""
    return {
        (span.trace_id.hex(), span.span_id.hex()): span.name
        for _, body in taken
        for part in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    }


def replay(spool: Path, metrics: Metrics) -> tuple[list[dict[str, Any]], int]:
    """Every ledger line a machine without kills makes of a log, and where that log ends."""
    config = load_config(None, {("carbon", "region"): REGION}, {})
    carbon, identity = build_carbon(config)
    log = WriteAheadLog(spool)
    log.open()
    try:
        assert (log.start_lsn, log.missing_bytes) == (0, 0), "the whole log was kept"
        machine = Machine(Settings(settle_after_ns=config.energy.settle_after), carbon, identity, log, metrics)
        lines: list[dict[str, Any]] = []
        while records := log.read(machine.position, 1 << 20):
            for record in records:
                for outputs in machine.feed(record):
                    lines += lines_of(outputs)
        return lines, machine.position
    finally:
        log.close()


def lines_of(outputs: Outputs) -> list[dict[str, Any]]:
    """What of these outputs goes into the ledger."""
    made = [json.loads("".join(line[2:])) for line in outputs.lines]
    return [*made, *(dict(record) for record in outputs.records), *(run_line(run) for run in outputs.runs)]


def unchained(line: dict[str, Any]) -> dict[str, Any]:
    """A ledger line without what ties it to the one before."""
    return {key: value for key, value in line.items() if key not in {"seq", "prev_hash"}}


def verified(data: Path) -> str:
    """What `joulegram ledger verify` says of a ledger it finds nothing wrong with."""
    command = [*JOULEGRAM, "ledger", "verify", str(data / "ledger" / "telemetry")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "problem" not in done.stdout, done.stdout
    return done.stdout
