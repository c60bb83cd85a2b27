"""joulegram beside the OpenTelemetry Collector: spans per CPU-second, time to the acknowledgement, memory.

    python benchmarks/peers.py
    python benchmarks/peers.py --cells 512/none/100,1/none/1 --seconds 4 --rounds 1

Three systems take the same requests over OTLP/gRPC from the same client and forward them, uncompressed, to the same
sink, in turn and again in each round:

    joulegram         `serve` as it is by default: synced to disk before it acknowledges, joined with modelled energy
                      and an eGRID row, a ledger line a selected span, forwarded; one process
    collector-fsync   the Collector, GOMAXPROCS=1, with a `file_storage` queue, `fsync: true`; it upserts the keys and
                      values that joulegram adds (learned from it at the start): its attributes processor on all spans,
                      its transform processor with a condition on the name's prefix on 1 %, each the cheaper there
    collector-memory  the same with its default queue, in memory, which refuses when it is full; for orientation

A cell is spans a request / compression of the client / per cent of the spans selected. Each system runs on one core,
the client and the sink on the others. A request is one trace with 603 bytes and 11 attributes a span; selected spans
stand evenly over the requests. CPU is the system's own, user and system, from the first request after a warm-up until
the last span has reached the sink and, for joulegram, the ledger. It is divided into all spans, selected or not.
Figures are medians of the rounds; the ratio is joulegram's to that of each system. Machines are shared: the ratio
counts.

The queue and joulegram's log lie in --directory: on a tmpfs a sync costs nothing, so let it be a disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing import Process, Queue, Value
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# In place of this folder, whose `peers` would hide that of the tests.
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.hot_path import cpu_s, memory_mib  # noqa: E402
from benchmarks.peers_load import ADDED, Load, Sent, drive, sink  # noqa: E402
from benchmarks.peers_systems import JOULEGRAM, SYSTEMS, Attributes, Running, other_cores, running  # noqa: E402
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402

from peers.build import PeerMissingError, go_program  # noqa: E402

SPANS = (512, 64, 8, 1)
IN_FLIGHT = {512: 4}
IN_FLIGHT_SMALL = 8
CELLS = ",".join(f"{spans}/{way}/{percent}" for spans in SPANS for way in ("none", "gzip") for percent in (100, 1))
_SETTLE_S = 90.0


@dataclass(frozen=True)
class Figures:
    """One system under one load."""

    per_cpu_s: float
    per_s: float
    p50_ms: float
    p99_ms: float
    rss_mib: float
    peak_mib: float
    refused: float
    missing: float
    """Spans acknowledged that did not come out in time; 0 unless something is wrong."""

    @staticmethod
    def median(rounds: list[Figures]) -> Figures:
        names = Figures.__dataclass_fields__
        return Figures(*(statistics.median(getattr(figures, name) for figures in rounds) for name in names))


class Bench:
    """The sink and what is common to every measurement."""

    def __init__(self, directory: Path, core: int) -> None:
        self.core = core
        self.cores = other_cores(core)
        self._directory = directory
        self._runs = 0
        self.taken: Any = Value("q", 0)
        self.added: Any = Value("q", 0)
        self.look: Any = Value("b", 1)
        self.first: Queue[Any] = Queue()
        ports: Queue[Any] = Queue()
        arguments = (ports, self.taken, self.added, self.look, self.first, self.cores)
        self._sink = Process(target=sink, args=arguments, daemon=True)
        self._sink.start()
        self._port = ports.get()

    def send(self, system: Running, load: Load, seconds: float) -> Sent:
        """Drive a system from a client of its own."""
        out: Queue[Any] = Queue()
        client = Process(target=drive, args=(system.port, load, seconds, self.cores, out), daemon=True)
        client.start()
        sent: Sent = out.get(timeout=seconds + _SETTLE_S)
        client.join()
        return sent

    def settle(self, system: Running, taken: int, recorded: int) -> int:
        """Wait until the sink has taken so many spans and the ledger so many lines; how many spans did not come."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            if self.taken.value >= taken and (system.recorded is None or system.recorded() >= recorded):
                break
            time.sleep(0.05)
        return int(taken - self.taken.value)

    def measure(self, name: str, load: Load, attributes: Attributes, seconds: float, warm_up_s: float) -> Figures:
        """One load on a fresh system; what it adds is counted while it warms up."""
        self._runs += 1
        self.taken.value, self.added.value, self.look.value = 0, 0, 1
        directory = self._directory / f"run-{self._runs}"
        with running(name, directory, self._port, self.core, load, attributes) as system:
            warm = self.send(system, load, warm_up_s)
            missing = self.settle(system, warm.spans, warm.selected)
            if self.added.value != warm.selected:
                sys.exit(
                    f"{name}: {self.added.value} spans gained attributes, expected {warm.selected}; {missing} spans "
                    f"did not come; spans in the ledger by why they have no energy: {reasons(directory)}"
                )
            self.look.value = 0
            before, start = cpu_s(system.pid), time.monotonic()
            sent = self.send(system, load, seconds)
            wall_s = time.monotonic() - start
            rss_mib = memory_mib(system.pid, "VmRSS")
            missing = self.settle(system, warm.spans + sent.spans, warm.selected + sent.selected)
            used_s = cpu_s(system.pid) - before
            latencies = sorted(sent.latencies_s)
            return Figures(
                sent.spans / used_s,
                sent.spans / wall_s,
                1000 * latencies[len(latencies) // 2],
                1000 * latencies[len(latencies) * 99 // 100],
                rss_mib,
                memory_mib(system.pid, "VmHWM"),
                sent.refused,
                missing,
            )

    def learn(self) -> Attributes:
        """The keys and values joulegram puts on a span, with the types they have."""
        load = Load(8, gzip=False, percent=100, in_flight=1)
        self.measure(JOULEGRAM, load, [], 0.2, 0.5)
        request = ExportTraceServiceRequest.FromString(self.first.get())
        span = request.resource_spans[0].scope_spans[0].spans[1]
        made = [item for item in span.attributes if not item.key.startswith("bench.")]
        assert ADDED.decode() in {item.key for item in made}
        return [(item.key, getattr(item.value, str(item.value.WhichOneof("value")))) for item in made]


def reasons(directory: Path) -> dict[str, int]:
    """How many spans of joulegram's ledger have which `energy.reason`; empty where all have their energy."""
    ledger = sorted((directory / "data" / "ledger" / "telemetry").glob("*.ndjson"))
    lines = (json.loads(line) for file in ledger for line in file.read_bytes().splitlines())
    return dict(Counter(line["energy"]["reason"] for line in lines if "reason" in line.get("energy", {})))


def parse_cells(text: str, in_flight: int | None) -> list[Load]:
    """The loads named by ``512/none/100,1/gzip/1``.

    Raises:
        SystemExit: one of them is not a cell.
    """
    loads = []
    for cell in text.split(","):
        match cell.split("/"):
            case [spans, ("none" | "gzip") as way, percent] if spans.isdecimal() and percent in {"1", "100"}:
                flight = in_flight or IN_FLIGHT.get(int(spans), IN_FLIGHT_SMALL)
                loads.append(Load(int(spans), way == "gzip", int(percent), flight))
            case _:
                sys.exit(f"--cells: got {cell!r}, expected spans/none|gzip/1|100, as 512/none/100")
    return loads


HEADER = (
    f"{'cell':<13} {'system':<17} {'spans/CPU-s':>12} {'ratio':>6} {'spans/s':>9} {'p50 ms':>8} {'p99 ms':>8} "
    f"{'RSS MiB':>8} {'peak':>6} {'refused':>8} {'missing':>8}"
)


def row(cell: str, name: str, figures: Figures, joulegram: Figures | None) -> str:
    """A line of the table; the ratio is joulegram's spans per CPU-second to this system's."""
    ratio = "" if joulegram is None else f"{joulegram.per_cpu_s / figures.per_cpu_s:.2f}"
    return (
        f"{cell:<13} {name:<17} {figures.per_cpu_s:>12,.0f} {ratio:>6} {figures.per_s:>9,.0f} {figures.p50_ms:>8.1f} "
        f"{figures.p99_ms:>8.1f} {figures.rss_mib:>8.0f} {figures.peak_mib:>6.0f} {figures.refused:>8.0f} "
        f"{figures.missing:>8.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=CELLS, help="comma-separated (default: all 16)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of sending, each measurement (default 10)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds of sending before it (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="of every system in each cell (default 3)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated (default: all three)")
    parser.add_argument("--in-flight", type=int, help="requests at once (default 4 at 512 spans, else 8)")
    parser.add_argument("--core", type=int, default=0, help="of the system measured (default 0)")
    parser.add_argument("--directory", type=Path, help="where logs and queues lie (default: a temporary one)")
    arguments = parser.parse_args()
    loads = parse_cells(arguments.cells, arguments.in_flight)
    systems = arguments.systems.split(",")
    if unknown := set(systems) - set(SYSTEMS):
        sys.exit(f"--systems: got {', '.join(sorted(unknown))}, expected some of {', '.join(SYSTEMS)}")
    try:
        go_program("otelcol")
    except PeerMissingError as error:
        sys.exit(f"the Collector cannot be had: {error}")
    with tempfile.TemporaryDirectory(prefix="joulegram-peers-", dir=arguments.directory) as directory:
        bench = Bench(Path(directory), arguments.core)
        attributes = bench.learn()
        print(f"{len(attributes)} attributes on a selected span: {', '.join(key for key, _ in attributes)}")
        print(HEADER, flush=True)
        for load in loads:
            found: dict[str, list[Figures]] = {name: [] for name in systems}
            for _ in range(arguments.rounds):
                for name in systems:
                    found[name].append(bench.measure(name, load, attributes, arguments.seconds, arguments.warm_up))
            medians = {name: Figures.median(figures) for name, figures in found.items()}
            for name, figures in medians.items():
                beside = medians.get(JOULEGRAM) if name != JOULEGRAM else None
                print(row(load.name, name, figures, beside), flush=True)


if __name__ == "__main__":
    main()
