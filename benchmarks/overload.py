"""What is left of a sidecar under ten times what it can take, and after an upstream that was away for ten minutes.

    python benchmarks/overload.py
    python benchmarks/overload.py --outage
    python benchmarks/overload.py --outage --spans 1000000

Overload: 512-span requests of 309 kB from a client process, four at a time, give the unloaded maximum. Then a sidecar
that may hold 4 MiB of requests in flight gets TIMES as many at once (4 x 10, 12 MB), from clients who come again 10 ms
after a refusal, sooner than they are told. Aims: what is accepted a second within 20 % of the maximum, each refusal
UNAVAILABLE with RetryInfo, and memory under its cap: 384 MiB above idle. Of these 8 are the receiver's limits, 32 what
was just written, 64 the outbox, 48 what is being sent, the rest the work on 8 MiB at a time, gRPC's buffers, the heap.

Outage: nobody listens at the upstream's port while --spans (6 000 000) come in requests of 100, 603 bytes a span: what
10 000 spans/s bring in ten minutes, as fast as the sidecar takes it. Then somebody listens, and counts. Aims: all is
delivered; memory at most 384 MiB above idle.

The sidecar is on a core of its own, with modelled energy and an eGRID row; 1 % of the spans are selected.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from multiprocessing import Process, Queue, Value
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_status import rpc_status

ROOT = Path(__file__).parents[1]
# In place of this folder, whose `peers` would hide that of the tests.
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.hot_path import EXPORT, cpu_s, memory_mib, metric  # noqa: E402
from benchmarks.peers_load import MARK, Bodies  # noqa: E402
from benchmarks.peers_systems import joulegram, other_cores  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.peers_systems import Joulegram

CAP_MIB = 384
IN_FLIGHT, TIMES = 4, 10
RETRY_S = 0.01
LIMITED = {"receiver": {"limits": {"in_flight": "4MiB", "queue": "4MiB"}}}


class Sidecar:
    """What is looked at of a sidecar; made while it is idle."""

    def __init__(self, running: Joulegram) -> None:
        self.running = running
        self.idle_mib = memory_mib(running.pid, "VmRSS")

    def wait_forwarded(self, timeout_s: float) -> bool:
        """Until it has nothing more to send; whether it came to that."""
        until = time.monotonic() + timeout_s
        while metric(self.running.metrics_port, "joulegram_sink_forward_backlog_bytes") > 0:
            if time.monotonic() > until:
                return False
            time.sleep(0.2)
        return True

    def memory(self) -> str:
        """Idle and peak, and whether the cap was kept."""
        peak = memory_mib(self.running.pid, "VmHWM")
        word = "under" if peak - self.idle_mib < CAP_MIB else "ABOVE"
        return f"RSS {self.idle_mib:.0f} MiB idle, {peak:.0f} at most: {word} the cap of {CAP_MIB} more"


@contextmanager
def sidecar(parent: Path | None, upstream_port: int, core: int, config: dict[str, Any]) -> Iterator[Sidecar]:
    """`joulegram serve` on one core, with a configuration, until it is at rest; its data goes with it."""
    with (
        tempfile.TemporaryDirectory(prefix="joulegram-overload-", dir=parent) as directory,
        joulegram(Path(directory), upstream_port, core, config) as running,
    ):
        time.sleep(2)
        yield Sidecar(running)


def sink(port: int, ready: Any, taken: Any, cores: Sequence[int]) -> None:
    """An OTLP/gRPC server on a port of our choice that counts spans; puts None when it listens."""
    os.sched_setaffinity(0, cores)

    async def serve() -> None:
        class Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]
            def service(self, handler_call_details: Any) -> Any:  # noqa: ARG002 - any method
                return grpc.unary_unary_rpc_method_handler(handle)

        async def handle(body: bytes, _: Any) -> bytes:
            taken.value += body.count(MARK)
            return b""

        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers((Handler(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        ready.put(None)
        await server.wait_for_termination()

    asyncio.run(serve())


@contextmanager
def listening(port: int, cores: Sequence[int]) -> Iterator[Any]:
    """The sink in a process of its own; gives the count of spans taken."""
    taken: Any = Value("q", 0)
    ready: Queue[Any] = Queue()
    process = Process(target=sink, args=(port, ready, taken, cores), daemon=True)
    process.start()
    ready.get()
    try:
        yield taken
    finally:
        process.kill()
        process.join()


def drive(port: int, load: dict[str, int], seconds: float, cores: Sequence[int], out: Any) -> None:
    """Send; puts (spans accepted, refusals, refusals that were not as they should be, seconds)."""
    os.sched_setaffinity(0, cores)
    out.put(asyncio.run(_drive(port, load["spans"], load["in_flight"], load["most"], seconds)))


async def _drive(port: int, spans: int, in_flight: int, most: int, seconds: float) -> tuple[int, int, int, float]:
    bodies = Bodies(spans, 1)
    number = accepted = refused = wrong = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        export: Any = channel.unary_unary(EXPORT)  # type: ignore[call-arg]
        await export(b"")
        begun = time.monotonic()

        async def worker() -> None:
            nonlocal number, accepted, refused, wrong
            while time.monotonic() - begun < seconds and number * spans < most:
                mine, number = number, number + 1
                body = bodies.fill(mine)
                while time.monotonic() - begun < seconds:
                    try:
                        await export(body)
                    except grpc.aio.AioRpcError as error:
                        refused += 1
                        status = rpc_status.from_call(error)  # type: ignore[arg-type]
                        has_delay = status is not None and any("RetryInfo" in each.type_url for each in status.details)
                        wrong += error.code() is not grpc.StatusCode.UNAVAILABLE or not has_delay
                        await asyncio.sleep(RETRY_S)
                    else:
                        accepted += spans
                        break

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return accepted, refused, wrong, time.monotonic() - begun


def send(port: int, load: dict[str, int], seconds: float, cores: Sequence[int]) -> tuple[int, int, int, float]:
    """`drive` in a process of its own."""
    out: Queue[Any] = Queue()
    client = Process(target=drive, args=(port, load, seconds, cores, out), daemon=True)
    client.start()
    found: tuple[int, int, int, float] = out.get()
    client.join()
    return found


def overload(arguments: argparse.Namespace, cores: Sequence[int]) -> None:
    """The unloaded maximum, and what is accepted under more."""
    rates = []
    for name, times in (("unloaded", 1), (f"{TIMES} times", TIMES)):
        port = free_port()
        config = LIMITED if times > 1 else {}
        with listening(port, cores) as taken, sidecar(arguments.directory, port, arguments.core, config) as system:
            load = {"spans": 512, "in_flight": IN_FLIGHT * times, "most": 1 << 60}
            send(system.running.port, load, 2.0, cores)
            before = cpu_s(system.running.pid)
            accepted, refused, wrong, seconds = send(system.running.port, load, arguments.seconds, cores)
            used = cpu_s(system.running.pid) - before
            rates.append(accepted / seconds)
            attempts = accepted // 512 + refused
            print(
                f"{name:>9}: {rates[-1]:>8,.0f} spans/s accepted, {accepted / used:,.0f} per CPU-second; {refused} of "
                f"{attempts} refused, {wrong} of them without RetryInfo or not UNAVAILABLE; {system.memory()}",
                flush=True,
            )
            system.wait_forwarded(120)
            time.sleep(2)
            assert taken.value >= accepted
    print(f"accepted under {TIMES} times the clients: {rates[1] / rates[0]:.2f} of the maximum")


def outage(arguments: argparse.Namespace, cores: Sequence[int]) -> None:
    """Everything at once, and nobody to give it to; then somebody."""
    port = free_port()
    with sidecar(arguments.directory, port, arguments.core, {}) as system:
        load = {"spans": 100, "in_flight": 8, "most": arguments.spans}
        accepted, refused, _, seconds = send(system.running.port, load, 3600.0, cores)
        print(f"away: {accepted} spans in {seconds:.0f} s, {refused} refusals; {system.memory()}", flush=True)
        begun = time.monotonic()
        with listening(port, cores) as taken:
            time.sleep(3)
            done = system.wait_forwarded(1200)
            until = time.monotonic() + 10
            while taken.value < accepted and time.monotonic() < until:
                time.sleep(0.1)
            print(
                f"back: {taken.value} spans delivered of {accepted} in {time.monotonic() - begun:.0f} s"
                f"{'' if done else ', NOT ALL'}; {system.memory()}"
            )


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage", action="store_true", help="the upstream that is away")
    parser.add_argument("--seconds", type=float, default=15.0, help="of sending, each load (default 15)")
    parser.add_argument("--spans", type=int, default=6_000_000, help="of the outage (default 6000000)")
    parser.add_argument("--core", type=int, default=0, help="of the sidecar (default 0)")
    parser.add_argument("--directory", type=Path, help="where its data lies (default: a temporary one)")
    arguments = parser.parse_args()
    (outage if arguments.outage else overload)(arguments, other_cores(arguments.core))


if __name__ == "__main__":
    main()
