"""The agent's client: a source of ticks that comes back, and takes no nonsense."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_agent.client import AgentClient
from joulegram_agent.sampler import Sampler
from joulegram_agent.server import AgentServer
from joulegram_pipeline.errors import AgentError
from simulators.agent_node import J, S, make_node, served

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from joulegram_pipeline.energy import TickBatch


def test_client_is_a_tick_source(tmp_path: Path) -> None:
    """S3-03: what the agent published comes out of the client unchanged, above `after` only."""

    async def body() -> tuple[TickBatch, TickBatch, TickBatch]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            node.run(3)
            return node.agent.sampler.batch(0), await client.ticks(0), await client.ticks(2)

    local, everything, last = asyncio.run(body())
    assert everything == local
    assert [tick.energy_uj["package-0"] for tick in everything.ticks] == [10 * J] * 3
    assert [tick.seq for tick in last.ticks] == [3]


def test_client_reconnects_and_names_again(tmp_path: Path) -> None:
    """S3-08: an agent that came back is found again, and what was named is named there too."""

    async def body() -> tuple[str, str, frozenset[int]]:
        node = make_node(tmp_path / "a")
        node.proc.start(10)
        again = make_node(tmp_path / "b")
        again.proc.start(10)
        again.clock.advance(S)
        again.agent.sampler = Sampler(again.agent.reader, proc_root=again.proc.root, clock=again.clock)
        again.agent.sampler.sample()
        async with AgentClient(node.path) as client:
            async with AgentServer(node.agent, node.path):
                await client.name([10])
                first = (await client.ticks(0)).epoch
            with pytest.raises(AgentError, match=re.escape(str(node.path))):
                await client.ticks(0)
            async with AgentServer(again.agent, node.path):
                second = (await client.ticks(0)).epoch
                return first, second, again.agent.sampler.trees.roots

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second, roots = asyncio.run(body())
    assert first != second
    assert roots == {10}


def test_missing_socket_is_an_agent_error_with_its_path(tmp_path: Path) -> None:
    """S3-08: no agent is a condition the caller can go on with, in words that name the socket."""

    async def body() -> None:
        async with AgentClient(tmp_path / "absent.sock") as client:
            await client.ticks(0)

    with pytest.raises(AgentError, match=r"absent\.sock.*No such file"):
        asyncio.run(body())


ANSWERS_NO_CLIENT_TAKES = [
    b"",
    b"hello\n",
    b"[]\n",
    b'{"v":1,"id":99,"ok":true,"result":{}}\n',
    b'{"v":1,"id":1,"ok":true}\n',
    b'{"v":1,"id":1,"ok":true,"result":{}}\n',
    b'{"v":1,"id":1,"ok":true,"result":{"epoch":1,"source":1,"method":"guessed","domains":[],"ticks":[]}}\n',
    b'{"v":1,"id":1,"ok":false,"error":{"code":"busy","message":"full"}}\n',
    b'{"v":1,"id":null,"ok":false,"error":"?"}\n',
    b"[" * 100_000 + b"\n",
]


@pytest.mark.parametrize("answer", ANSWERS_NO_CLIENT_TAKES, ids=range(len(ANSWERS_NO_CLIENT_TAKES)))
def test_nonsense_from_an_agent_is_an_agent_error(tmp_path: Path, answer: bytes) -> None:
    """S3-08: whatever listens there, the caller gets AgentError and nothing else."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async def body() -> None:
        server = await asyncio.start_unix_server(reply, tmp_path / "s")
        async with server, AgentClient(tmp_path / "s") as client:
            with pytest.raises(AgentError):
                await client.ticks(0)

    asyncio.run(body())


def test_silent_agent_times_out(tmp_path: Path) -> None:
    """S3-08: an agent that never answers holds its caller up for the timeout and no longer."""

    async def body() -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "s"))
            silent.listen()
            async with AgentClient(tmp_path / "s", timeout_s=0.05) as client:
                await client.ticks(0)

    with pytest.raises(AgentError, match=r"within 0\.05 s"):
        asyncio.run(body())


def test_cancelled_question_does_not_shift_the_next_answer(tmp_path: Path) -> None:
    """S3-08: after a question was given up, the next gets its own answer."""

    async def body() -> dict[str, Any]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            await client.hello()
            asked: Awaitable[Any] = asyncio.create_task(client.ticks(0))
            await asyncio.sleep(0)
            assert isinstance(asked, asyncio.Task)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            return await client.counters()

    assert "unplaced_uj" in asyncio.run(body())
