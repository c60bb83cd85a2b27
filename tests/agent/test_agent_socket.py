"""The agent behind a real Unix socket: what it answers, and the page that says so."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_agent.client import AgentClient
from joulegram_agent.protocol import OPS
from joulegram_agent.server import AgentServer
from joulegram_pipeline.energy import Method, TickBatch
from joulegram_pipeline.errors import AgentError, BusyError, ConfigError, JoulegramError, StorageError
from simulators.agent_lines import PAGE, examples, part
from simulators.agent_node import J, S, make_node, served, talking, until

if TYPE_CHECKING:
    from pathlib import Path


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


def test_protocol_page_lists_the_ops() -> None:
    """docs/agent-protocol.md: a heading and a request for every op the agent has, in order."""
    headings = re.findall(r"^### `(\w+)`$", PAGE.read_text(), re.MULTILINE)
    assert tuple(headings) == OPS
    assert [example["op"] for example in examples() if "op" in example] == [*OPS, "reset"]


def test_protocol_page_examples_are_what_the_agent_says(tmp_path: Path) -> None:
    """docs/agent-protocol.md: each example request gets the line shown below it, with its id, keys and codes."""
    shown = examples()

    async def body() -> list[tuple[dict[str, Any], dict[str, Any]]]:
        async with served(tmp_path) as (node, _), talking(node.path) as talk:
            node.proc.start(4711)
            node.run(2)
            pairs = []
            for example in shown:
                if "op" in example:
                    talk.writer.write(json.dumps(example).encode() + b"\n")
                else:
                    pairs.append((example, await talk.line()))
            return pairs

    pairs = asyncio.run(body())
    assert len(pairs) == len(OPS) + 2
    for example, line in pairs:
        assert line.keys() == example.keys()
        assert (line["id"], line.get("ok")) == (example["id"], example.get("ok"))
        held = next(key for key in ("result", "error", "batch") if key in example)
        assert line[held].keys() == example[held].keys()
    refusal, told = pairs[-1], shown[3]["result"]
    assert refusal[0]["error"] == refusal[1]["error"]
    assert TickBatch.from_json(told).ticks[0].to_json() == told["ticks"][0]


@pytest.mark.parametrize("op", OPS)
def test_what_is_answered_is_what_the_schema_says(tmp_path: Path, op: str) -> None:
    """S3-03: the result of each op, before the first tick and after, is valid by its own part of the schema."""
    params: dict[str, dict[str, Any]] = {
        "ticks": {"after": 0},
        "name": {"pids": [4711, 5]},
        "window": {"start_ns": 0, "end_ns": "9000000000000000000"},
    }

    async def body() -> list[dict[str, Any]]:
        async with served(tmp_path) as (node, _), talking(node.path) as talk:
            node.proc.start(4711)
            if op == "unsubscribe":
                await talk.ask("subscribe")
            lines = [await talk.ask(op, **params.get(op, {}))] if op != "window" else []
            if op in {"subscribe", "unsubscribe"}:
                return lines
            node.run(1)
            node.tree.faults = {"package-0/dram": 5}
            node.run(2)
            return [*lines, await talk.ask(op, **params.get(op, {}))]

    for line in asyncio.run(body()):
        assert [error.message for error in part(f"{op}_result").iter_errors(line["result"])] == []
