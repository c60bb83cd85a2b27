"""An outbox and its forwarder through an outage, in a process of its own so that its memory can be told.

    python outage_main.py DIRECTORY PORT SECONDS

Takes what SECONDS of 10 000 spans a second bring, in requests of 100 spans, as fast as it can, with snapshots of the
engine as often as there would be; says ``fed``, and ends when everything is taken upstream. The last line is JSON:
`base_kib`, `fed_kib` and `peak_kib` of memory, `appended_bytes`, and `on_disk_bytes` at the end of the outage.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import Outgoing, RecordKind
from joulegram_sink.outbox import MAX_BACKLOG_BYTES, Outbox
from joulegram_sink.upstream import Destination, Upstreams
from joulegram_sink.upstream_destination import Retry

REQUESTS_PER_S = 100
SPANS_PER_REQUEST = 100
SNAPSHOT_S = 60


def template() -> bytes:
    """A request of spans of 96 bytes; its number is put in front, as the scope of an empty part."""
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for number in range(SPANS_PER_REQUEST):
        scope.spans.add(trace_id=bytes(15) + b"\1", span_id=number.to_bytes(8, "big"), name="s" * 64)
    return bytes(message.SerializeToString())


def numbered(number: int) -> bytes:
    """What says which request it is; 14 bytes that stand nowhere else."""
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().scope.name = f"<{number:08d}>"
    return bytes(message.SerializeToString())


def memory_kib(name: str) -> int:
    """A line of /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


async def main(directory: Path, port: int, seconds: int) -> None:
    metrics = Metrics()
    retry = Retry(initial_interval_s=0.05, max_interval_s=0.5)
    destination = Destination("upstream", f"grpc://127.0.0.1:{port}", retry=retry)
    spans = template()
    async with Outbox(directory / "outbox", metrics, {"upstream": MAX_BACKLOG_BYTES}) as outbox:
        upstream = Upstreams((destination,), outbox, metrics, directory / "deadletter")
        async with upstream:
            base_kib = memory_kib("VmRSS")
            for second in range(seconds):
                begin = second * REQUESTS_PER_S
                items = [
                    Outgoing((lsn, 0), RecordKind.TRACES, numbered(lsn) + spans, ())
                    for lsn in range(begin, begin + REQUESTS_PER_S)
                ]
                await asyncio.to_thread(outbox.append, items)
                if second % SNAPSHOT_S == SNAPSHOT_S - 1:
                    await asyncio.to_thread(outbox.sync)
            fed_kib, on_disk = memory_kib("VmHWM"), outbox.disk_bytes
            (status,) = upstream.status()
            sys.stdout.write("fed\n")
            sys.stdout.flush()
            assert await upstream.drain(60)
    said = {
        "base_kib": base_kib,
        "fed_kib": fed_kib,
        "peak_kib": memory_kib("VmHWM"),
        "appended_bytes": seconds * REQUESTS_PER_S * (len(spans) + len(numbered(0))),
        "on_disk_bytes": on_disk,
        "backlog_bytes": status.backlog_bytes,
    }
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
