"""What the command line hands on to the agent, and the sidecar to the agent inside it."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from joulegram_agent.client import AgentClient
from joulegram_agent.counters import MAX_POWER_W
from joulegram_pipeline.energy import Gap
from joulegram_service.config import Config
from simulators.cgroupfs import IDS, CgroupTree, in_docker
from simulators.powercap import PowercapTree
from simulators.sidecar import Agent, Serve, archived_ticks, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def test_containers_and_all_processes_are_in_the_sidecars_ticks(tmp_path: Path) -> None:
    """Issue 5, deliver 3: --cgroup-root and --processes of `serve` arrive: a container and we ourselves have lines."""
    tree = CgroupTree(tmp_path / "cgroup")
    tree.create(in_docker(0))
    busy = threading.Event()

    def both() -> bool:
        tree.spend(in_docker(0), 5_000_000)
        log = b"".join(path.read_bytes() for path in tmp_path.glob("data/spool/*.wal"))
        return f'"container/{IDS[0]}":'.encode() in log and f'"{os.getpid()}":'.encode() in log

    with Serve(tmp_path, "--source=none", f"--cgroup-root={tree.root}", "--processes=all") as serve:
        burner = threading.Thread(target=_burn, args=(busy,))
        burner.start()
        try:
            serve.wait_ready()
            wait_until(both, "a tick with both", log=serve.log)
        finally:
            busy.set()
            burner.join()


JUMP_UJ = 50_000_000
"""Plausible at once by default; at a limit of 1 W it would have taken 50 s, which no slow machine makes of it."""


def test_the_limit_of_power_is_the_agents(tmp_path: Path) -> None:
    """D-13: `joulegram agent --max-power 1` believes no 50 J at once, and makes a gap of them."""
    tree = PowercapTree(tmp_path / "sys", dram=False)

    async def gaps() -> object:
        async with AgentClient(agent.socket) as client:
            return (await client.counters())["gaps"]

    with Agent(tmp_path, tree, "--max-power=1") as agent:
        agent.wait_ready()
        tree.advance({"package-0": JUMP_UJ})
        wait_until(lambda: bool(asyncio.run(gaps())), "a gap", log=agent.log)
        assert asyncio.run(gaps()) == {"package-0": {"counter_reset": 1}}


def test_the_limit_of_power_is_the_sidecars(tmp_path: Path) -> None:
    """D-13: `agent.max_power_w: 1` does the same for the agent inside; the default is the agent's own."""
    assert Config().agent.max_power_w == MAX_POWER_W
    tree = PowercapTree(tmp_path / "sys", dram=False)
    (tmp_path / "joulegram.yaml").write_text("agent: {source: powercap, max_power_w: 1}\n")
    with Serve(tmp_path, "--config=joulegram.yaml", f"--sysfs-root={tree.root}") as serve:
        serve.wait_ready()
        wait_until(lambda: bool(archived_ticks(serve.data)), "a tick", log=serve.log)
        tree.advance({"package-0": JUMP_UJ})

        def gaps() -> list[Gap]:
            return [gap for tick in archived_ticks(serve.data) for gap in tick.gaps]

        wait_until(lambda: bool(gaps()), "a tick with a gap", log=serve.log)
        assert gaps() == [Gap("package-0", "counter_reset")]


def _burn(stop: threading.Event) -> None:
    while not stop.is_set():
        pass
