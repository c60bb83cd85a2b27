"""Nodes that run at once on threads, each charged for what it spends: one works three times as hard as the other.

    joulegram run -- python examples/threaded_job.py

`init_otel` puts `joulegram.cpu_ns` on every span, so that two spans of one process that overlap share its energy by CPU
time and not equally. Alone it prints the shares; under `joulegram run` the summary has the joules.
"""

from __future__ import annotations

import argparse
import contextvars
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from joulegram import etl_node, init_otel


def burn(seconds: float) -> int:
    """Spend CPU time on this thread; how much, in nanoseconds."""
    began = time.thread_time_ns()
    while time.thread_time_ns() - began < seconds * 1e9:
        sum(range(500))
    return time.thread_time_ns() - began


def main() -> None:
    """Two nodes under one root."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time of the lighter node (%(default)s)")
    seconds = parser.parse_args().seconds
    telemetry = init_otel("kfm.etl.threaded")

    def node(name: str, factor: int) -> int:
        with etl_node(name, telemetry, domain="example"):
            return burn(factor * seconds)

    with telemetry.tracer.start_as_current_span("etl.job"), ThreadPoolExecutor(2) as pool:
        # A thread begins without a context: copying ours makes the node's span a child of the root.
        first = pool.submit(contextvars.copy_context().run, partial(node, "light", 1))
        second = pool.submit(contextvars.copy_context().run, partial(node, "heavy", 3))
        light, heavy = first.result(), second.result()
    telemetry.shutdown()
    print(f"light {light / (light + heavy):.0%}, heavy {heavy / (light + heavy):.0%} of the CPU time")


if __name__ == "__main__":
    main()
