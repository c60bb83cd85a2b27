"""The load that benchmarks/peers.py puts on every system alike: request bodies, the client, and the sink.

Invariants:
    * a body is made once; its ids and times are written into place before each send, so that the client costs little;
    * every request is one trace: its first span is the root, the others its children, all of one encoded length;
    * every span has fresh ids and ended within the last 34 ms;
    * spans that are selected stand evenly over the requests, and the root of a trace that has one is itself selected.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import grpc
from benchmarks.hot_path import EXPORT, serve_raw
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

SPAN_BYTES = 603
"""What a span takes in a request, as in the figures that the aims rest on."""

STEPS = 16
SELECTED_PREFIX = "etl."
SELECTED_NAMES = tuple(f"{SELECTED_PREFIX}node.step_{step:02d}" for step in range(STEPS))
OTHER_NAMES = tuple(f"web.page.step_{step:02d}" for step in range(STEPS))
MARK = b"bench.sequence.mark"
"""A key that every span has once: what the sink counts."""

ADDED = b"carbon.table"
"""A key that every selected span gains once."""

_TRACE, _SPAN, _PARENT = b"TRACE-ID" * 2, b"SPAN--ID", b"PARENTID"
_START, _END = 0x1122334455667701, 0x1122334455667702
_LOW_BYTES = 3
"""Of a time these say where in 16.8 ms; what stands above them is the clock and is written anew."""

_WINDOW_NS = 1 << 8 * _LOW_BYTES
_RETRY_S = 0.01


@dataclass(frozen=True)
class Load:
    """One cell: what is sent, and how."""

    spans: int
    gzip: bool
    percent: int
    in_flight: int

    @property
    def name(self) -> str:
        """As it is chosen on the command line."""
        return f"{self.spans}/{'gzip' if self.gzip else 'none'}/{self.percent}"


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf's wire format."""
    length, size = bytearray(), len(content)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((number << 3 | 2, *length, size)) + content


def selected_of(number: int, spans: int, percent: int) -> tuple[int, ...]:
    """Which spans of the `number`-th request are selected; over many requests exactly `percent` of all."""
    count = (number + 1) * spans * percent // 100 - number * spans * percent // 100
    return tuple(index * spans // count for index in range(count))


class Bodies:
    """The requests of a load, in an order that repeats.

    Args:
        spans: of each request.
        percent: of all spans that are selected.
    """

    def __init__(self, spans: int, percent: int) -> None:
        self._chance = random.Random(1)
        self._children = spans - 1
        period = 100 // gcd(spans * percent, 100)
        self.selected = [len(selected_of(number, spans, percent)) for number in range(period)]
        made = [self._make(spans, set(selected_of(number, spans, percent))) for number in range(period)]
        self._bodies = [body for body, _, _ in made]
        _, self._root_at, self._child_at = made[0]
        self._stride = 0 if spans == 1 else (len(made[0][0]) - self._child_at) // self._children
        self._same = [bytes([byte]) * self._children for byte in range(256)]
        sample = self._bodies[0]
        self._root = {mark: sample.index(mark, self._root_at) for mark in (_TRACE, _SPAN)}
        self._child = (
            {mark: sample.index(mark, self._child_at) for mark in (_TRACE, _SPAN, _PARENT)} if spans > 1 else {}
        )
        self._root_times, self._child_times = self._times(sample, self._root_at), self._times(sample, self._child_at)
        for body in self._bodies:
            self._spread(body)

    def fill(self, number: int) -> bytes:
        """The `number`-th request, with ids and times of its own."""
        body = self._bodies[number % len(self._bodies)]
        ids = os.urandom(16 + 8 * self._children)
        trace, root, rest = ids[:8], ids[8:16], memoryview(ids)[16:]
        clock = (time.time_ns() // _WINDOW_NS - 1).to_bytes(8 - _LOW_BYTES, "little")
        body[self._root[_TRACE] : self._root[_TRACE] + 8] = trace
        body[self._root[_SPAN] : self._root[_SPAN] + 8] = root
        for at in self._root_times:
            body[at + _LOW_BYTES : at + 8] = clock
        if self._children:
            count, same = self._children, self._same
            for byte in range(8):
                self._put(body, self._child[_TRACE] + byte, same[trace[byte]])
                self._put(body, self._child[_PARENT] + byte, same[root[byte]])
                self._put(body, self._child[_SPAN] + byte, rest[count * byte : count * byte + count])
            for at in self._child_times:
                for byte, value in enumerate(clock):
                    self._put(body, at + _LOW_BYTES + byte, same[value])
        return bytes(body)

    def _put(self, body: bytearray, at: int, column: bytes | memoryview) -> None:
        """Write one byte into every child, `at` being its place in the first."""
        body[at : len(body) : self._stride] = column

    def _make(self, spans: int, selected: set[int]) -> tuple[bytearray, int, int]:
        """A body, where its root begins, and where its first child does."""
        scope = field(1, InstrumentationScope(name="bench").SerializeToString())
        encoded = [self._span(index, selected=index in selected) for index in range(spans)]
        inner = scope + b"".join(encoded)
        resource = Resource()
        for key, value in (("service.name", "bench"), ("kfm.run_id", "bench-run-0001"), ("kfm.component", "etl")):
            resource.attributes.add(key=key).value.string_value = value
        body = bytearray(field(1, field(1, resource.SerializeToString()) + field(2, inner)))
        root_at = len(body) - len(inner) + len(scope)
        return body, root_at, root_at + len(encoded[0])

    def _span(self, index: int, *, selected: bool) -> bytes:
        names = SELECTED_NAMES if selected else OTHER_NAMES
        span = Span(trace_id=_TRACE, span_id=_SPAN, name=names[index % STEPS], kind=Span.SPAN_KIND_INTERNAL)
        span.start_time_unix_nano, span.end_time_unix_nano = _START, _END
        if index:
            span.parent_span_id = _PARENT
        # A third of the text is random, so that it compresses about as telemetry does.
        for number in range(10):
            value = f"value-of-{index % 7:06d}-{number:02d}" if number % 3 else f"{self._chance.getrandbits(96):024x}"
            span.attributes.add(key=f"bench.attribute.{number:02d}").value.string_value = value
        mark = span.attributes.add(key=MARK.decode())
        mark.value.string_value = ""
        pad = SPAN_BYTES - len(field(2, span.SerializeToString()))
        mark.value.string_value = f"{self._chance.getrandbits(4 * pad):0{pad}x}"
        encoded = field(2, span.SerializeToString())
        assert len(encoded) == SPAN_BYTES
        return encoded

    @staticmethod
    def _times(sample: bytearray, begin: int) -> tuple[int, ...]:
        marks = (_START.to_bytes(8, "little"), _END.to_bytes(8, "little"))
        return tuple(at for mark in marks if (at := sample.find(mark, begin)) >= 0)

    def _spread(self, body: bytearray) -> None:
        """Give every span its place in the window: the root covers it, a child lasts 1 to 10 ms."""
        low = slice(0, _LOW_BYTES)
        for at, value in zip(self._root_times, (0, _WINDOW_NS - 1), strict=True):
            body[at : at + _LOW_BYTES] = value.to_bytes(8, "little")[low]
        for child in range(self._children):
            start = self._chance.randrange(0, _WINDOW_NS - 10_000_000)
            end = start + self._chance.randrange(1_000_000, 10_000_000)
            for at, value in zip(self._child_times, (start, end), strict=True):
                here = at + child * self._stride
                body[here : here + _LOW_BYTES] = value.to_bytes(8, "little")[low]


@dataclass(frozen=True)
class Sent:
    """What a client did."""

    spans: int
    selected: int
    refused: int
    latencies_s: list[float]


def drive(port: int, load: Load, seconds: float, cores: Sequence[int], out: Any) -> None:
    """Send for some seconds from these cores; puts a `Sent`."""
    os.sched_setaffinity(0, cores)
    out.put(asyncio.run(_drive(port, load, seconds)))


async def _drive(port: int, load: Load, seconds: float) -> Sent:
    bodies = Bodies(load.spans, load.percent)
    latencies: list[float] = []
    sent = selected = refused = number = 0
    compression = grpc.Compression.Gzip if load.gzip else grpc.Compression.NoCompression
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", compression=compression) as channel:
        export: Any = channel.unary_unary(EXPORT)  # type: ignore[call-arg]
        await export(b"")
        deadline = time.monotonic() + seconds

        async def worker() -> None:
            nonlocal sent, selected, refused, number
            while time.monotonic() < deadline:
                mine, number = number, number + 1
                body = bodies.fill(mine)
                while True:
                    start = time.perf_counter()
                    try:
                        await export(body)
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}:
                            raise
                        refused += 1
                        await asyncio.sleep(_RETRY_S)
                        continue
                    latencies.append(time.perf_counter() - start)
                    break
                sent += load.spans
                selected += bodies.selected[mine % len(bodies.selected)]

        await asyncio.gather(*(worker() for _ in range(load.in_flight)))
    return Sent(sent, selected, refused, latencies)


def sink(ports: Any, taken: Any, added: Any, look: Any, first: Any, cores: Sequence[int]) -> None:
    """An OTLP/gRPC server that counts the spans it takes.

    Args:
        ports: gets the port.
        taken: shared count of spans.
        added: shared count of spans with what was added, while `look` is set.
        look: shared flag.
        first: gets the first request with something added, while `look` is set.
        cores: it runs on these.
    """
    os.sched_setaffinity(0, cores)

    def handle(body: bytes) -> bytes:
        more = body.count(MARK)
        if look.value and (joined := body.count(ADDED)):
            with added.get_lock():
                if not added.value:
                    first.put(body)
                added.value += joined
        with taken.get_lock():
            taken.value += more
        return b""

    serve_raw(handle, ports)
