"""What a job pays for the SDK: a span with `joulegram.cpu_ns` beside a bare one, and what imports cost.

    python benchmarks/sdk.py                  spans without attributes, nothing exported, 40 rounds
    python benchmarks/sdk.py --rounds 200     longer, on a noisy machine

Rounds alternate, so that a busy neighbour hits all alike; the figure is the median of the differences within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from joulegram.span_processor import JouleSpanProcessor

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Tracer

SPANS = 2000
KINDS: dict[str, Callable[[], SpanProcessor] | None] = {
    "bare": None,
    "with a processor that does nothing": SpanProcessor,
    "with JouleSpanProcessor": JouleSpanProcessor,
}


def spans(tracer: Tracer) -> float:
    """Microseconds a span, one after the other."""
    began = time.perf_counter_ns()
    for _ in range(SPANS):
        with tracer.start_as_current_span("span"):
            pass
    return (time.perf_counter_ns() - began) / SPANS / 1000


def steps(tracer: Tracer) -> float:
    """Microseconds a step of an asyncio task that is in a span."""

    async def main() -> float:
        with tracer.start_as_current_span("span"):
            began = time.perf_counter_ns()
            for _ in range(SPANS):
                await asyncio.sleep(0)
            return (time.perf_counter_ns() - began) / SPANS / 1000

    return asyncio.run(main())


def measure(what: Callable[[Tracer], float], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, make in KINDS.items():
            provider = TracerProvider(shutdown_on_exit=False)
            if make is not None:
                provider.add_span_processor(make())
            found[kind].append(what(provider.get_tracer("benchmark")))
            provider.shutdown()
    return found


def report(title: str, found: dict[str, list[float]]) -> None:
    print(title)
    bare = found["bare"]
    for kind, values in found.items():
        extra = statistics.median(value - base for value, base in zip(values, bare, strict=True))
        print(f"  {kind:<36} median {statistics.median(values):6.2f} us, least {min(values):6.2f} us, +{extra:.2f} us")


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
    report("a span:", measure(spans, rounds))
    report("a step of a task in a span:", measure(steps, rounds))
    empty = import_ms("pass")
    for code in ("import joulegram", "from joulegram import EnergyRecorder", "from joulegram import CarbonEstimator"):
        print(f"{code}: {import_ms(code) - empty:.1f} ms")


if __name__ == "__main__":
    main()
