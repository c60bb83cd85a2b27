"""What a job pays for the SDK: a span with `joulegram.cpu_ns` beside a bare one, and what imports cost.

    python benchmarks/sdk.py                  spans without attributes, nothing exported, 40 rounds
    python benchmarks/sdk.py --rounds 200     longer, on a noisy machine
    JOULEGRAM_NATIVE=0 python benchmarks/sdk.py    without the compiled part

Each kind has a process of its own, as a job has one kind: in one process the interpreter, which adapts its code to the
types that it meets, would adapt to none of them. The processes take turns, so that a busy neighbour hits all alike.
Printed are the median and the least of all rounds, the median of the differences within a round, the difference of the
least, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import subprocess
import sys
import time
import timeit
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from joulegram import native
from joulegram.span_processor import JouleSpanProcessor

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from opentelemetry.trace import Tracer

SPANS = 500
KINDS: dict[str, Callable[[], SpanProcessor] | None] = {
    "bare": None,
    "with a processor that does nothing": SpanProcessor,
    "with JouleSpanProcessor": JouleSpanProcessor,
}


def spans(tracer: Tracer) -> float:
    """Microseconds of CPU time a span, one after the other."""
    began = time.thread_time_ns()
    for _ in range(SPANS):
        with tracer.start_as_current_span("span"):
            pass
    return (time.thread_time_ns() - began) / SPANS / 1000


def steps(tracer: Tracer) -> float:
    """Microseconds of CPU time a step of an asyncio task that is in a span."""

    async def main() -> float:
        with tracer.start_as_current_span("span"):
            began = time.thread_time_ns()
            for _ in range(SPANS):
                await asyncio.sleep(0)
            return (time.thread_time_ns() - began) / SPANS / 1000

    return asyncio.run(main())


def serve(pipe: Connection, kind: str, what: Callable[[Tracer], float]) -> None:
    """Run once for each word that comes, until False does."""
    provider = TracerProvider(shutdown_on_exit=False)
    make = KINDS[kind]
    if make is not None:
        provider.add_span_processor(make())
    tracer = provider.get_tracer("benchmark")
    for _ in range(10):
        what(tracer)
    while pipe.recv():
        pipe.send(what(tracer))


def measure(what: Callable[[Tracer], float], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    pipes = {}
    processes = []
    for kind in KINDS:
        pipes[kind], theirs = multiprocessing.Pipe()
        processes.append(multiprocessing.Process(target=serve, args=(theirs, kind, what), daemon=True))
        processes[-1].start()
    for _ in range(rounds):
        for kind, pipe in pipes.items():
            pipe.send(True)
            found[kind].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return found


def report(title: str, found: dict[str, list[float]]) -> None:
    print(title)
    bare = found["bare"]
    for kind, values in found.items():
        extra = statistics.median(value - base for value, base in zip(values, bare, strict=True))
        print(
            f"  {kind:<36} median {statistics.median(values):6.2f} us, least {min(values):6.2f} us; "
            f"{extra:+.2f} us in a round, {min(values) - min(bare):+.2f} us at least, "
            f"x {statistics.median(values) / statistics.median(bare):.2f}"
        )


def clock_us(clock: Callable[[], int]) -> float:
    """Microseconds a reading."""
    return min(timeit.repeat(clock, number=20_000, repeat=9)) / 20_000 * 1e6


def import_ms(code: str) -> float:
    took = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(1000 * (time.perf_counter() - began))
    return min(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    print(f"the SDK's compiled part: {native.state()}")
    report("a span:", measure(spans, rounds))
    report("a step of a task in a span:", measure(steps, rounds))
    for title, clock in (("the thread's CPU clock", time.thread_time_ns), ("the wall clock", time.perf_counter_ns)):
        print(f"{title}: {clock_us(clock):.2f} us a reading")
    empty = import_ms("pass")
    for code in ("import joulegram", "from joulegram import EnergyRecorder", "from joulegram import CarbonEstimator"):
        print(f"{code}: {import_ms(code) - empty:.1f} ms")


if __name__ == "__main__":
    main()
