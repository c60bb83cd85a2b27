"""A tracer with JouleSpanProcessor whose spans are kept, work of a known CPU time, and a loop that is not followed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from joulegram.cpu_watch import SHORT_NS
from joulegram.span_processor import CPU_NS, JouleSpanProcessor

MS = 1_000_000
SLACK_NS = 15 * MS
"""What the code around the burning may take on a busy machine; it is CPU time, so waiting is not in it."""


class Spans:
    """A tracer whose spans are kept."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()
        self.processor = JouleSpanProcessor()
        self.provider = TracerProvider(shutdown_on_exit=False)
        # First the exporter: the attribute must be there whatever the order.
        self.provider.add_span_processor(SimpleSpanProcessor(self.kept))
        self.provider.add_span_processor(self.processor)
        self.tracer = self.provider.get_tracer("test")

    def cpu_ns(self) -> dict[str, Any]:
        """The attribute of every ended span by name; None where it is absent."""
        return {span.name: (span.attributes or {}).get(CPU_NS) for span in self.kept.get_finished_spans()}


class ForeignHandle(asyncio.Handle):
    """As in a loop of another make: it enters contexts itself."""

    def _run(self) -> None:
        self._context.run(self._callback, *self._args)  # type: ignore[attr-defined]


class ForeignLoop(asyncio.SelectorEventLoop):
    """Where tasks change unseen, as in uvloop."""

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = ForeignHandle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle


def burn(millis: int) -> None:
    """Spend CPU time of this thread."""
    until = time.thread_time_ns() + millis * MS
    while time.thread_time_ns() < until:
        pass


def near(got: Any, millis: int) -> bool:
    return isinstance(got, int) and millis * MS - SHORT_NS <= got <= millis * MS + SLACK_NS
