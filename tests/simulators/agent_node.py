"""A served agent whose time moves by hand, and lines said to its socket."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulegram_agent.local import LocalAgent
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.protocol import MAX_ANSWER_BYTES
from joulegram_agent.sampler import Sampler
from joulegram_agent.server import AgentServer
from joulegram_schemas import validate
from simulators.agent_lines import SCHEMA
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from joulegram_agent.conversation import Limits

J = 1_000_000
S = 1_000_000_000


@dataclass
class Node:
    """A served agent whose time moves by hand."""

    tree: PowercapTree
    proc: FakeProc
    clock: ManualClock
    agent: LocalAgent
    path: Path

    def run(self, seconds: int, watts: int = 10) -> None:
        for _ in range(seconds):
            self.tree.advance_watts({"package-0": watts}, 1_000)
            self.clock.advance(S)
            tick = self.agent.sampler.sample()
            if tick is not None:
                self.agent.published(tick)


def make_node(root: Path) -> Node:
    tree = PowercapTree(root / "sys")
    proc, clock = FakeProc(root / "proc"), ManualClock()
    reader = PowercapReader(tree.root, tree.open_counter)
    agent = LocalAgent(reader, Sampler(reader, proc_root=proc.root, clock=clock))
    agent.sampler.sample()
    return Node(tree, proc, clock, agent, root / "agent.sock")


@asynccontextmanager
async def served(root: Path, limits: Limits | None = None, **options: Any) -> AsyncIterator[tuple[Node, AgentServer]]:
    node = make_node(root)
    async with AgentServer(node.agent, node.path, limits, **options) as server:
        yield node, server


async def converse(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Write the lines, close our side, and read every answer until the agent closes its own; the schema takes each."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"".join(lines))
    writer.write_eof()
    answers = [said(line) for line in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    return answers


def said(line: bytes) -> dict[str, Any]:
    """A line of the agent's, which the schema takes; SchemaError if it does not."""
    read: dict[str, Any] = json.loads(line)
    validate(SCHEMA, read)
    return read


@asynccontextmanager
async def talking(path: Path) -> AsyncIterator[Talk]:
    """A connection to the agent, line by line."""
    reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER_BYTES)
    try:
        yield Talk(reader, writer)
    finally:
        writer.close()


@dataclass
class Talk:
    """See `talking`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, op: str, **params: Any) -> dict[str, Any]:
        """The next line after a request."""
        self.writer.write(request(op, **params))
        return await self.line()

    async def line(self) -> dict[str, Any]:
        """The next line, within 5 s."""
        async with asyncio.timeout(5):
            return said(await self.reader.readline())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (the server has no event for this, and needs none)
            await asyncio.sleep(0)


def request(op: str, **params: Any) -> bytes:
    return json.dumps({"v": 1, "id": 7, "op": op, **params}).encode() + b"\n"


def refused(root: Path, *lines: bytes) -> list[tuple[Any, str]]:
    """The id and code of every answer, all of which must be refusals."""

    async def ask() -> list[dict[str, Any]]:
        async with served(root) as (node, _):
            return await converse(node.path, *lines)

    answers = asyncio.run(ask())
    assert all(answer["ok"] is False and answer["error"]["message"] for answer in answers)
    return [(answer["id"], answer["error"]["code"]) for answer in answers]
