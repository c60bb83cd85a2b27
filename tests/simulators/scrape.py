"""An agent's metrics listener and what it answers, over a real port."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from joulegram_agent.metrics import AgentMetrics
from joulegram_agent.metrics_http import MetricsServer
from simulators.agent_node import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from simulators.agent_node import Node

METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def scraped(
    root: Path, *, now_s: Callable[[], float] = time.monotonic, **options: Any
) -> AsyncIterator[tuple[Node, AgentMetrics, MetricsServer]]:
    """A served agent with a metrics listener on a free port."""
    async with served(root, **options) as (node, server):
        metrics = AgentMetrics(node.agent, server, "1.2.3", clock=node.clock)
        async with MetricsServer(("127.0.0.1", 0), metrics, head_s=0.3, now_s=now_s) as listener:
            yield node, metrics, listener


async def get(listener: MetricsServer, raw: bytes, *, eof: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Send bytes; status, headers and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(raw)
    if eof:
        writer.write_eof()
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}, body


def values(page: bytes) -> dict[str, float]:
    """Values by name and labels, as ``name{a=b}``."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
