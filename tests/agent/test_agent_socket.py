"""The agent behind a real Unix socket: what it answers, what it survives, and its client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_agent.client import AgentClient
from joulegram_agent.local import MAX_NAMED, LocalAgent
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.protocol import MAX_REQUEST_BYTES, OPS
from joulegram_agent.sampler import Sampler
from joulegram_agent.server import AgentServer
from joulegram_pipeline.energy import Method, TickBatch
from joulegram_pipeline.errors import AgentError, BusyError, ConfigError, JoulegramError, StorageError
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc, ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

J = 1_000_000
S = 1_000_000_000
DOC = Path(__file__).parents[2] / "docs" / "agent-protocol.md"


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
            self.agent.sampler.sample()


def make_node(root: Path) -> Node:
    tree = PowercapTree(root / "sys")
    proc, clock = FakeProc(root / "proc"), ManualClock()
    reader = PowercapReader(tree.root, tree.open_counter)
    agent = LocalAgent(reader, Sampler(reader, proc_root=proc.root, clock=clock))
    agent.sampler.sample()
    return Node(tree, proc, clock, agent, root / "agent.sock")


@asynccontextmanager
async def served(root: Path, **options: Any) -> AsyncIterator[tuple[Node, AgentServer]]:
    node = make_node(root)
    async with AgentServer(node.agent, node.path, **options) as server:
        yield node, server


async def converse(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Write the lines, close our side, and read every answer until the agent closes its own."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"".join(lines))
    writer.write_eof()
    answers = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    return answers


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


def test_socket_mode_is_0660(tmp_path: Path) -> None:
    """S3-03: owner and group may ask, nobody else; the socket is gone afterwards."""

    async def body() -> int:
        async with served(tmp_path) as (node, _):
            return stat.S_IMODE(node.path.stat().st_mode)

    before = os.umask(0o022)
    try:
        assert asyncio.run(body()) == 0o660
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert not (tmp_path / "agent.sock").exists()


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


def test_hello_says_what_the_agent_is(tmp_path: Path) -> None:
    """Design section 4: source, method, domains and epoch before any tick."""

    async def body() -> dict[str, Any]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            return await client.hello()

    hello = asyncio.run(body())
    assert (hello["protocol"], hello["source"], hello["method"]) == (1, "powercap", Method.MEASURED.value)
    assert [domain["id"] for domain in hello["domains"]] == ["package-0", "package-0/dram"]


def test_window_is_made_of_whole_ticks(tmp_path: Path) -> None:
    """Design section 4: a window of 1.2 s that touches three ticks gives three ticks' energy and says so."""

    async def body() -> tuple[int, dict[str, Any], dict[str, Any]]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            opened = node.clock.wall_ns()
            node.run(5)
            aligned = await client.window(opened + S, opened + 3 * S)
            return opened, await client.window(opened + 900_000_000, opened + 2_100_000_000), aligned

    opened, window, aligned = asyncio.run(body())
    assert (aligned["start_ns"], aligned["end_ns"], aligned["ticks"]) == (str(opened + S), str(opened + 3 * S), 2)
    assert (window["start_ns"], window["end_ns"], window["ticks"]) == (str(opened), str(opened + 3 * S), 3)
    assert window["energy_uj"] == {"package-0": 30 * J, "package-0/dram": 0}


def test_window_with_a_gap_has_no_energy_for_that_domain(tmp_path: Path) -> None:
    """D-05, D-10: a domain that failed in one of the ticks is missing from the sum, with the reason."""

    async def body() -> dict[str, Any]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            opened = node.clock.wall_ns()
            node.run(1)
            node.tree.reset("package-0")
            node.run(2)
            return await client.window(opened, opened + 3 * S)

    window = asyncio.run(body())
    assert window["energy_uj"] == {"package-0/dram": 0}
    assert window["gaps"] == [{"domain": "package-0", "reason": "counter_reset"}]


def test_counters_are_those_of_the_last_tick(tmp_path: Path) -> None:
    """S3-03: accumulated totals; asking between ticks shows nothing finer than a tick."""

    async def body() -> list[dict[str, Any]]:
        async with served(tmp_path) as (node, _), AgentClient(node.path) as client:
            node.run(2)
            first = await client.counters()
            node.tree.advance({"package-0": 5})
            node.clock.advance(S // 2)
            node.agent.sampler.sample()
            return [first, await client.counters()]

    first, second = asyncio.run(body())
    assert first["energy_uj"] == {"package-0": 20 * J, "package-0/dram": 0}
    assert second == first


def test_names_end_with_their_connection(tmp_path: Path) -> None:
    """Design section 4: a process is read while a connection that named it lives; another's name keeps it."""

    async def body() -> list[frozenset[int]]:
        async with served(tmp_path) as (node, server):
            node.proc.start(10)
            node.proc.start(20)
            roots = node.agent.sampler.trees
            seen = []
            async with AgentClient(node.path) as other:
                async with AgentClient(node.path) as client:
                    await client.name([10, 20, 4242])
                    await other.name([20])
                    seen.append(roots.roots)
                await until(lambda: server.connections == 1)
                seen.append(roots.roots)
            await until(lambda: server.connections == 0)
            return [*seen, roots.roots]

    assert asyncio.run(body()) == [{10, 20}, {20}, frozenset()]


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
        async with served(tmp_path, max_connections=2) as (node, server), AgentClient(node.path) as three:
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
        async with served(tmp_path, idle_s=0.05) as (node, _):
            reader, writer = await asyncio.open_unix_connection(node.path)
            writer.write(b'{"v":1')
            left = await reader.read()
            writer.close()
            return left

    assert asyncio.run(body()) == b""


def test_peer_that_does_not_read_is_closed(tmp_path: Path) -> None:
    """Protocol: answers nobody takes do not pile up: the connection ends and the agent goes on."""

    async def body() -> int:
        async with served(tmp_path, idle_s=0.1) as (node, server):
            node.run(600)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(node.path))
                peer.sendall(request("ticks", after=0) * 100)
                await until(lambda: server.connections == 1)
                await until(lambda: server.connections == 0)
            async with AgentClient(node.path) as client:
                return len((await client.ticks(0)).ticks)

    assert asyncio.run(body()) == 600


def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """S3-03: a socket left by a crash is no obstacle; a second agent on a live one is refused and harms nothing."""

    async def body() -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "agent.sock"))
        async with served(tmp_path) as (node, _):
            with pytest.raises(BusyError, match=r"agent\.sock.*in use"):
                async with AgentServer(node.agent, node.path):
                    pass
            async with AgentClient(node.path) as client:
                return await client.hello()

    assert asyncio.run(body())["protocol"] == 1


BAD_PATHS: list[tuple[str, type[JoulegramError]]] = [
    ("file", ConfigError),
    ("x" * 120, ConfigError),
    ("absent/agent.sock", StorageError),
]


@pytest.mark.parametrize(("name", "error"), BAD_PATHS, ids=["a file", "too long", "no directory"])
def test_unusable_socket_paths_are_refused(tmp_path: Path, name: str, error: type[JoulegramError]) -> None:
    """A path that cannot be a socket is an error that quotes it; a file that stands there is left alone."""
    (tmp_path / "file").write_text("mine")

    async def body() -> None:
        async with AgentServer(make_node(tmp_path).agent, tmp_path / name):
            pass

    with pytest.raises(error, match=re.escape(name)):
        asyncio.run(body())
    assert (tmp_path / "file").read_text() == "mine"


def test_stop_with_open_connections(tmp_path: Path) -> None:
    """S3-03: the server stops at once though clients are connected, and they see it as an AgentError."""

    async def body() -> None:
        async with AgentClient(tmp_path / "agent.sock") as client:
            async with served(tmp_path):
                await client.hello()
            await client.hello()

    with pytest.raises(AgentError):
        asyncio.run(asyncio.wait_for(body(), 5))


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


def doc_examples() -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", DOC.read_text(), re.DOTALL)]


def test_protocol_page_lists_the_ops() -> None:
    """docs/agent-protocol.md: a heading and a request for every op the agent has, in order."""
    headings = re.findall(r"^### `(\w+)`$", DOC.read_text(), re.MULTILINE)
    assert tuple(headings) == OPS
    assert [example["op"] for example in doc_examples() if "op" in example] == [*OPS, "reset"]


def test_protocol_page_examples_are_what_the_agent_says(tmp_path: Path) -> None:
    """docs/agent-protocol.md: each example request is answered with the id, keys and codes of the example answer."""
    examples = doc_examples()
    pairs = list(zip(examples[::2], examples[1::2], strict=True))

    async def body() -> list[dict[str, Any]]:
        async with served(tmp_path) as (node, _):
            node.proc.start(4711)
            node.run(2)
            return await converse(node.path, *(json.dumps(ask).encode() + b"\n" for ask, _ in pairs))

    for (_, example), answer in zip(pairs, asyncio.run(body()), strict=True):
        assert answer.keys() == example.keys()
        assert (answer["id"], answer["ok"]) == (example["id"], example["ok"])
        if example["ok"]:
            assert answer["result"].keys() == example["result"].keys()
        else:
            assert answer["error"] == example["error"]
    tick = examples[3]["result"]["ticks"][0]
    assert TickBatch.from_json(examples[3]["result"]).ticks[0].to_json() == tick
