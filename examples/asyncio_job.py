"""Nodes that take turns on one event loop, and one that hands its work to a thread.

    joulegram run -- python examples/asyncio_job.py

Tasks change without OpenTelemetry noticing; `joulegram.cpu_ns` follows them all the same, so that a node that waits is
not charged for who runs meanwhile. Alone it prints what each node spent, as its span has it.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from joulegram import etl_node, init_otel


class Printer(SpanProcessor):
    """Says what each span spent when it has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Print a line."""
        spent = (span.attributes or {}).get("joulegram.cpu_ns")
        print(f"{span.name}: {'not known' if spent is None else f'{int(str(spent)) / 1e6:.0f} ms of CPU time'}")


def burn(millis: float) -> None:
    """Spend CPU time on this thread."""
    until = time.thread_time_ns() + millis * 1e6
    while time.thread_time_ns() < until:
        sum(range(500))


async def main() -> None:
    """Three nodes at once under one root."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millis", type=float, default=300, help="CPU time of the parsing node (%(default)s)")
    millis = parser.parse_args().millis
    telemetry = init_otel("kfm.etl.asyncio", span_processors=[Printer()])

    async def fetch() -> None:
        with etl_node("fetch", telemetry, domain="example"):
            await asyncio.sleep(millis / 1000)  # waits for a server: no CPU time

    async def parse() -> None:
        with etl_node("parse", telemetry, domain="example"):
            for _ in range(10):
                burn(millis / 10)
                await asyncio.sleep(0)

    async def compress() -> None:
        with etl_node("compress", telemetry, domain="example"):
            await asyncio.to_thread(burn, 2 * millis)

    with telemetry.tracer.start_as_current_span("etl.job"):
        await asyncio.gather(fetch(), parse(), compress())
    telemetry.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
