"""What the agent's socket refuses, and bounds: nobody on it can keep it from the others."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_agent import MAX_NAMED
from joulegram_agent.client import AgentClient
from joulegram_agent.conversation import Limits
from joulegram_agent.protocol import MAX_REQUEST_BYTES
from joulegram_pipeline.errors import AgentError
from simulators.agent_node import refused, request, served, until

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = [
    (b'{"v":2,"id":1,"op":"hello"}\n', (1, "unknown_version")),
    (b'{"id":"a","op":"hello"}\n', ("a", "unknown_version")),
    (b'{"v":true,"id":1,"op":"hello"}\n', (1, "unknown_version")),
    (b'{"v":1,"id":1,"op":"reset"}\n', (1, "unknown_op")),
    (b'{"v":1,"id":1,"op":["hello"]}\n', (1, "unknown_op")),
    (b'{"v":1,"id":{"x":1}}\n', (None, "unknown_op")),
    (b'{"v":1,"id":1e999,"op":"ticks"}\n', (None, "bad_params")),
    (b'{"v":1,"id":1,"op":"ticks","after":-1}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"ticks","after":true}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"ticks","after":NaN}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"name"}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"name","pids":[0]}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"name","pids":["../1"]}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"window","start_ns":0,"end_ns":999999999}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"window","start_ns":"x","end_ns":9}\n', (1, "bad_params")),
    (b'{"v":1,"id":1,"op":"window","start_ns":0,"end_ns":2000000000}\n', (1, "refused")),
]


def test_refusals_keep_the_connection(tmp_path: Path) -> None:
    """Protocol: on one connection, every refused request is answered with its id and code."""
    assert refused(tmp_path, *(line for line, _ in REFUSED)) == [answer for _, answer in REFUSED]


HOSTILE = [
    b"\n",
    b"hello\n",
    b"[1]\n",
    b"null\n",
    b"\xff\xfe\x00\n",
    b'{"v":1,\n',
    b"[" * 60_000 + b"\n",
    b'{"v":1' + b"0" * 10_000 + b"}\n",
    b"x" * (MAX_REQUEST_BYTES * 3) + b"\n",
    b"x" * (MAX_REQUEST_BYTES * 3),
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_lines_close_their_connection_only(tmp_path: Path, line: bytes) -> None:
    """Protocol: what is no request ends its connection, unread lines and all; the next client is served."""

    async def body() -> tuple[bytes, dict[str, Any]]:
        async with served(tmp_path) as (node, _):
            reader, writer = await asyncio.open_unix_connection(node.path)
            writer.write(line + request("hello"))
            try:
                if not line.endswith(b"\n"):
                    writer.write_eof()
                reply = await reader.read()
            except ConnectionError:
                reply = b""  # closed on us while we were still writing
            writer.close()
            async with AgentClient(node.path) as client:
                return reply, await client.hello()

    reply, hello = asyncio.run(body())
    assert b'"ok":true' not in reply
    assert hello["protocol"] == 1


def test_half_a_line_is_no_request(tmp_path: Path) -> None:
    """Protocol: a line without its end is not answered."""
    assert refused(tmp_path, b'{"v":1,"id":1,"op":"hello"}') == []


def test_too_many_names_are_refused(tmp_path: Path) -> None:
    """Design section 4: naming costs at every tick, so it is bounded, over all connections together."""

    async def body() -> None:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            node.agent.sampler.trees._roots = dict.fromkeys(range(100000, 100000 + MAX_NAMED), 1)
            node.proc.start(10)
            await client.name([10])

    with pytest.raises(AgentError, match="refused"):
        asyncio.run(body())


def test_connections_are_bounded(tmp_path: Path) -> None:
    """Protocol: one connection too many is told busy and closed; a freed place is usable again."""

    async def body() -> tuple[str, dict[str, Any]]:
        async with served(tmp_path, Limits(connections=2)) as (node, server), AgentClient(node.path) as three:
            async with AgentClient(node.path) as one, AgentClient(node.path) as two:
                await one.hello()
                await two.hello()
                with pytest.raises(AgentError) as caught:
                    await three.hello()
            await until(lambda: server.connections == 0)
            return str(caught.value), await three.hello()

    message, hello = asyncio.run(body())
    assert str(tmp_path) in message
    assert hello["protocol"] == 1


def test_idle_connections_are_closed(tmp_path: Path) -> None:
    """Protocol: a peer that asks nothing, or dribbles half a line, does not hold a place."""

    async def body() -> bytes:
        async with served(tmp_path, Limits(idle_s=0.05)) as (node, _):
            reader, writer = await asyncio.open_unix_connection(node.path)
            writer.write(b'{"v":1')
            left = await reader.read()
            writer.close()
            return left

    assert asyncio.run(body()) == b""


def test_peer_that_does_not_read_is_closed(tmp_path: Path) -> None:
    """Protocol: answers nobody takes do not pile up: the connection ends and the agent goes on."""

    async def body() -> int:
        async with served(tmp_path, Limits(take_s=0.1)) as (node, server):
            node.run(600)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(node.path))
                peer.sendall(request("ticks", after=0) * 100)
                await until(lambda: server.connections == 1)
                await until(lambda: server.connections == 0)
            async with AgentClient(node.path) as client:
                return len((await client.ticks(0)).ticks)

    assert asyncio.run(body()) == 600
