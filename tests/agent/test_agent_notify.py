"""What systemd hears: sd_notify(3) over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.main import Outside, run_agent
from joulegram_agent.notify import Watchdog, notify, watched
from joulegram_pipeline.errors import BusyError, ConfigError
from simulators.agent_node import make_node, talking, until
from simulators.powercap import PowercapTree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager() -> Iterator[tuple[str, socket.socket]]:
    """A service manager's socket, and its address."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"{folder}/notify")
        channel.settimeout(5)
        yield f"{folder}/notify", channel


def test_a_state_is_one_datagram(manager: tuple[str, socket.socket]) -> None:
    """sd_notify(3): to a path, or to an abstract address that begins with @."""
    address, channel = manager
    assert notify("READY=1\nSTATUS=x", {"NOTIFY_SOCKET": address})
    assert channel.recv(100) == b"READY=1\nSTATUS=x"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0joulegram-test-{os.getpid()}")
        assert notify("A=1", {"NOTIFY_SOCKET": f"@joulegram-test-{os.getpid()}"})
        assert abstract.recv(100) == b"A=1"


@pytest.mark.parametrize(
    "environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "x"}, {"NOTIFY_SOCKET": "/no/such"}]
)
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    """Not started by systemd, or systemd gone: no error, and it is said that nobody heard."""
    assert notify("READY=1", environment) is False


WATCHED = [
    ({}, False),
    ({"WATCHDOG_USEC": "0"}, False),
    ({"WATCHDOG_USEC": "x"}, False),
    ({"WATCHDOG_USEC": "30000000"}, True),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, True),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, False),
]


@pytest.mark.parametrize(("environment", "expected"), WATCHED, ids=str)
def test_whether_signs_of_life_are_wanted(environment: dict[str, str], expected: bool) -> None:
    """sd_watchdog_enabled(3): a time above 0, and meant for this process."""
    assert watched(environment) is expected


def test_a_sign_of_life_is_a_published_tick(
    tmp_path: Path, manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each tick, and none without: an agent whose reads hang is told from one that works."""
    address, channel = manager
    monkeypatch.setattr("joulegram_agent.notify.notify.__defaults__", ({"NOTIFY_SOCKET": address},))
    channel.setblocking(False)
    heard: list[bytes] = []

    def listen() -> int:
        try:
            while True:
                heard.append(channel.recv(100))
        except BlockingIOError:
            return len(heard)

    async def body() -> None:
        node = make_node(tmp_path)
        async with Watchdog(node.agent):
            await asyncio.sleep(0)
            node.run(1)
            await until(lambda: listen() == 1)
            node.run(1)
            await until(lambda: listen() == 2)
            for _ in range(50):
                await asyncio.sleep(0)
            listen()

    asyncio.run(body())
    assert heard == [b"WATCHDOG=1"] * 2


def test_a_running_agent_says_ready_alive_and_stopping(
    tmp_path: Path, manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Type=notify: READY=1 comes when the socket is there, a sign of life with a tick, STOPPING=1 before it goes."""
    address, channel = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    path = tmp_path / "agent.sock"

    async def body() -> None:
        task = asyncio.create_task(run_agent(path, "powercap", sysfs_root=PowercapTree(tmp_path / "sys").root))
        ready = await asyncio.to_thread(channel.recv, 100)
        assert ready == b"READY=1\nSTATUS=source powercap, measured"
        async with talking(path) as talk:
            assert (await talk.ask("hello"))["ok"]
        assert await asyncio.to_thread(channel.recv, 100) == b"WATCHDOG=1"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(channel.recv, 100) == b"STOPPING=1"

    asyncio.run(body())


BAD = [
    (Outside(user="no-such-user"), "--user: got 'no-such-user'"),
    (Outside(group="no-such-group"), "--group: got 'no-such-group'"),
    (Outside(allow_groups=("0", "no-such-group")), "--allow-group: got 'no-such-group'"),
    (Outside(metrics="9465"), "--metrics: got '9465'"),
    (Outside(otlp_endpoint="http://127.0.0.1"), "--hw-id: got None"),
    (Outside(otlp_endpoint="127.0.0.1:4318", hw_id="h"), "--otlp-endpoint: got '127.0.0.1:4318'"),
    (Outside(otlp_endpoint="http://127.0.0.1", hw_id="h", otlp_interval_s=0.5), "--otlp-interval: got 0.5"),
    (Outside(otlp_endpoint="http://127.0.0.1", hw_id="h", otlp_interval_s=float("nan")), "--otlp-interval: got nan"),
]


@pytest.mark.parametrize(("outside", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_used_is_said_before_anything_is_opened(tmp_path: Path, outside: Outside, message: str) -> None:
    """Every flag is read first: the error quotes it, and there is no socket."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        asyncio.run(run_agent(tmp_path / "agent.sock", "none", outside=outside))
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_leaves_nothing_behind(tmp_path: Path) -> None:
    """The metrics' port is another's: an error, and the socket is gone again."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        outside = Outside(metrics=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(BusyError, match="--metrics"):
            asyncio.run(run_agent(tmp_path / "agent.sock", "none", outside=outside))
    assert list(tmp_path.iterdir()) == []
