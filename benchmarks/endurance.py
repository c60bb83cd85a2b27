"""Whether a sidecar is as fast after ten million spans as at the start: spans per CPU-second of each million.

    python benchmarks/endurance.py
    python benchmarks/endurance.py --millions 2 --percent 100

One sidecar, started once, as in benchmarks/peers.py: one core, modelled energy, an eGRID row, everything forwarded to a
sink. It takes 512-span requests of 309 kB, four at a time, without a pause. A line for each million: CPU is the
sidecar's own, user and system, from the first request of it until its last is acknowledged, so that the second or two
of work that wait at a line's end are counted in the next. The last line compares the last fifth with the first
fifth, the first million left out: it warms up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
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
    from collections.abc import Sequence

SPANS = 512
IN_FLIGHT = 4
MILLION = 1_000_000
_SETTLE_S = 120.0


def drive(port: int, percent: int, millions: int, cores: Sequence[int], out: Any) -> None:
    """Send; puts (spans, spans selected) after each million."""
    os.sched_setaffinity(0, cores)
    asyncio.run(_drive(port, percent, millions, out))


async def _drive(port: int, percent: int, millions: int, out: Any) -> None:
    bodies = Bodies(SPANS, percent)
    number = selected = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        export: Any = channel.unary_unary(EXPORT)  # type: ignore[call-arg]
        for _ in range(millions):
            end = number + -(-MILLION // SPANS)

            async def worker(end: int) -> None:
                nonlocal number, selected
                while number < end:
                    mine, number = number, number + 1
                    await export(bodies.fill(mine), wait_for_ready=True)
                    selected += bodies.selected[mine % len(bodies.selected)]

            await asyncio.gather(*(worker(end) for _ in range(IN_FLIGHT)))
            out.put((number * SPANS, selected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=10, help="of spans (default 10)")
    parser.add_argument("--percent", type=int, choices=(1, 100), default=1, help="of them selected (default 1)")
    parser.add_argument("--core", type=int, default=0, help="of the sidecar (default 0)")
    parser.add_argument("--directory", type=Path, help="where its data lies (default: a temporary one)")
    arguments = parser.parse_args()
    cores = other_cores(arguments.core)
    taken: Any = Value("q", 0)
    ports: Queue[Any] = Queue()
    sink_arguments: Any = (ports, taken, Value("q", 0), Value("b", 0), Queue(), cores)
    sink_process = Process(target=sink, args=sink_arguments, daemon=True)
    sink_process.start()
    with (
        tempfile.TemporaryDirectory(prefix="joulegram-endurance-", dir=arguments.directory) as directory,
        joulegram(Path(directory), ports.get(), arguments.core) as system,
    ):
        recorded = system.recorded
        assert recorded is not None
        out: Queue[Any] = Queue()
        client = Process(
            target=drive, args=(system.port, arguments.percent, arguments.millions, cores, out), daemon=True
        )
        print(f"{'million':>7} {'spans/CPU-s':>12} {'spans/s':>9} {'CPU':>5} {'RSS MiB':>8} {'peak':>6}", flush=True)
        used, at, before = cpu_s(system.pid), time.monotonic(), 0
        client.start()
        rates = []
        for million in range(arguments.millions):
            spans, selected = out.get(timeout=600)
            used_now, now = cpu_s(system.pid), time.monotonic()
            rates.append((spans - before) / (used_now - used))
            print(
                f"{million + 1:>7} {rates[-1]:>12,.0f} {(spans - before) / (now - at):>9,.0f} "
                f"{100 * (used_now - used) / (now - at):>4.0f}% {memory_mib(system.pid, 'VmRSS'):>8.0f} "
                f"{memory_mib(system.pid, 'VmHWM'):>6.0f}",
                flush=True,
            )
            used, at, before = used_now, now, spans
        client.join()
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline and (taken.value < spans or recorded() < selected):
            time.sleep(0.1)
        print(f"{spans} spans sent, {taken.value} forwarded, {selected} selected, {recorded():.0f} in the ledger")
        share = max(1, len(rates) // 5)
        if len(rates) > 2:
            first, last = (sum(part) / share for part in (rates[1 : 1 + share], rates[-share:]))
            print(f"the last {share} million at {last / first:.2f} of the pace of the first {share} behind the warm-up")
    sink_process.terminate()


if __name__ == "__main__":
    main()
