"""What a sidecar costs that has nothing to do, or 10 000 spans a second: CPU, memory, time to the acknowledgement.

    python benchmarks/idle.py
    python benchmarks/idle.py --seconds 20 --loads 0,10000/1
    python benchmarks/idle.py --agent
    python benchmarks/idle.py --breakdown

A sidecar on a core of its own with modelled energy (a tick a second), an eGRID row and a sink to forward to. A load is
0, or spans a second in requests of 100, and the per cent of them that are selected; requests are sent at their times,
whether or not those before were answered, and the time to the acknowledgement counts from there. CPU is the sidecar's
own, user and system, in per cent of a core. Aims: idle 0.5 % and 45 MiB; 10 000 spans/s 10 %, 64 MiB, p99 10 ms.

Energy is modelled inside the sidecar; with --agent a `joulegram agent` models it in a process of its own, as on a node
of a cluster, and the second line of a load is that process.

--breakdown says what an idle sidecar's memory is made of: by kind of mapping (/proc/PID/smaps), and what each of the
largest imports adds to the memory of a Python that has imported nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from multiprocessing import Process, Queue, Value
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

ROOT = Path(__file__).parents[1]
# In place of this folder, whose `peers` would hide that of the tests.
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.hot_path import EXPORT, cpu_s, memory_mib  # noqa: E402
from benchmarks.peers_load import Bodies, sink  # noqa: E402
from benchmarks.peers_systems import joulegram, other_cores  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SPANS = 100
IMPORTS = (
    "asyncio",
    "grpc.aio",
    "google.protobuf.json_format",
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    "pydantic",
    "typer",
    "yaml",
    "uvicorn",
    "prometheus_client",
    "orjson",
    "zstandard",
    "httptools",
    "cryptography.x509",
    "psutil",
    "jsonschema",
    "grpc_status.rpc_status",
    "grpc_reflection.v1alpha.reflection",
    "joulegram_processor.machine",
    "joulegram_service.cli",
    "joulegram_service.config",
    "joulegram_service.sidecar",
)


def drive(port: int, rate: int, percent: int, seconds: float, cores: Sequence[int], out: Any) -> None:
    """Send at a pace; puts (spans sent, seconds to each acknowledgement)."""
    os.sched_setaffinity(0, cores)
    out.put(asyncio.run(_drive(port, rate, percent, seconds)))


async def _drive(port: int, rate: int, percent: int, seconds: float) -> tuple[int, list[float]]:
    bodies = Bodies(SPANS, percent)
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        export: Any = channel.unary_unary(EXPORT)  # type: ignore[call-arg]
        await export(b"")
        begun = time.perf_counter()

        async def send(body: bytes, due: float) -> None:
            await export(body)
            latencies.append(time.perf_counter() - due)

        async with asyncio.TaskGroup() as tasks:
            for number in range(round(rate / SPANS * seconds)):
                due = begun + number * SPANS / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(send(bodies.fill(number), due))
    return len(latencies) * SPANS, latencies


@contextmanager
def own_agent(directory: Path, cores: Sequence[int]) -> Iterator[tuple[Path, int]]:
    """`joulegram agent` as people start it: its socket and process id, once it listens."""
    socket = directory / "agent.sock"
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "joulegram_service", "agent"]
    with (directory / "agent.log").open("w") as stderr:
        process = subprocess.Popen([*command, "--source=model", f"--socket={socket}"], stderr=stderr)
    try:
        while not socket.exists():
            assert process.poll() is None, (directory / "agent.log").read_text()
            time.sleep(0.05)
        yield socket, process.pid
    finally:
        process.terminate()
        process.wait(60)


def measure(load: str, seconds: float, core: int, parent: Path | None, *, with_agent: bool) -> None:
    """One load on a fresh sidecar; prints its line, and the agent's behind it where it has one of its own."""
    rate, percent = (int(part) for part in (load + "/1").split("/")[:2])
    cores = other_cores(core)
    ports: Queue[Any] = Queue()
    sink_arguments: Any = (ports, Value("q", 0), Value("q", 0), Value("b", 0), Queue(), cores)
    sink_process = Process(target=sink, args=sink_arguments, daemon=True)
    sink_process.start()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="joulegram-idle-", dir=parent)))
        agent_socket, agent_pid = stack.enter_context(own_agent(directory, cores)) if with_agent else (None, None)
        system = stack.enter_context(joulegram(directory, ports.get(), core, agent_socket=agent_socket))
        time.sleep(3)
        pids = [system.pid] if agent_pid is None else [system.pid, agent_pid]
        before, begun = [cpu_s(pid) for pid in pids], time.monotonic()
        latencies: list[float] = []
        if rate:
            out: Queue[Any] = Queue()
            client = Process(target=drive, args=(system.port, rate, percent, seconds, cores, out), daemon=True)
            client.start()
            _, latencies = out.get()
            client.join()
        else:
            time.sleep(seconds)
        wall_s = time.monotonic() - begun
        used = [100 * (cpu_s(pid) - cpu) / wall_s for pid, cpu in zip(pids, before, strict=True)]
        latencies.sort()
        p50, p99 = (f"{1000 * latencies[int(len(latencies) * at)]:.1f}" if latencies else "" for at in (0.5, 0.99))
        for name, pid, share, times in zip((load, "its agent"), pids, used, (f"{p50:>8} {p99:>8}", ""), strict=False):
            rss, anonymous, peak = (memory_mib(pid, kind) for kind in ("VmRSS", "RssAnon", "VmHWM"))
            print(f"{name:>10} {share:>8.2f} {rss:>8.1f} {anonymous:>8.1f} {peak:>8.1f} {times}".rstrip(), flush=True)
    sink_process.terminate()


def breakdown(core: int) -> None:
    """What an idle sidecar's memory is made of."""
    with (
        tempfile.TemporaryDirectory(prefix="joulegram-idle-") as directory,
        joulegram(Path(directory), 9, core) as system,
    ):
        time.sleep(3)
        kinds = mappings(system.pid)
    print("resident MiB of an idle sidecar, by mapping:")
    for kind, kib in kinds.most_common(14):
        print(f"{kib / 1024:>8.1f}  {kind}")
    print(f"{sum(kinds.values()) / 1024:>8.1f}  together\n")
    print("resident MiB of a Python after an import alone, and what it adds:")
    floor = after_import("sys")
    print(f"{floor:>8.1f}          nothing")
    for name in IMPORTS:
        total = after_import(name)
        print(f"{total:>8.1f} {total - floor:>+7.1f}  {name}")


def mappings(pid: int) -> Counter[str]:
    """Resident KiB by what is mapped: the libraries by their names, and what has none."""
    found: Counter[str] = Counter()
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)", line):
            path = match[1]
            kind = Path(path).name.partition(".")[0] if path.startswith("/") else path or "without a name (heaps)"
        elif line.startswith("Rss:"):
            found[kind] += int(line.split()[1])
    return found


def after_import(name: str) -> float:
    """Resident MiB of a fresh Python that imported this."""
    program = f"import {name}, re; print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="each load (default 60)")
    parser.add_argument("--loads", default="0,10000/1,10000/100", help="spans/s and per cent selected, comma-separated")
    parser.add_argument("--core", type=int, default=0, help="of the sidecar (default 0)")
    parser.add_argument("--directory", type=Path, help="where its data lies (default: a temporary one)")
    parser.add_argument("--agent", action="store_true", help="measure energy in a process of its own")
    parser.add_argument("--breakdown", action="store_true", help="say what memory is made of instead")
    arguments = parser.parse_args()
    if arguments.breakdown:
        breakdown(arguments.core)
        return
    print(
        f"{'spans/s, %':>10} {'CPU %':>8} {'RSS MiB':>8} {'anon':>8} {'peak':>8} {'p50 ms':>8} {'p99 ms':>8}",
        flush=True,
    )
    for load in arguments.loads.split(","):
        measure(load, arguments.seconds, arguments.core, arguments.directory, with_agent=arguments.agent)


if __name__ == "__main__":
    main()
