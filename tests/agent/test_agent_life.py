"""The agent in this process, in real time: start, ticks, the last tick, stop."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.client import AgentClient
from joulegram_agent.local import LocalAgent
from joulegram_agent.main import open_agent, run_agent
from joulegram_agent.reader import NoEnergyReader, Reading
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.errors import AgentError, BusyError
from simulators.powercap import PowercapTree

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_pipeline.energy import TickBatch, TickSource


def test_local_agent_ticks_in_real_time(tmp_path: Path) -> None:
    """S3-03: entered, it samples; the tick that passes an instant comes within about a second of it."""
    PowercapTree(tmp_path)

    async def body() -> tuple[bool, bool, TickBatch, int]:
        agent = open_agent(sysfs_root=tmp_path)
        source: TickSource = agent
        async with agent:
            end_ns = time.time_ns() + 200_000_000
            early = await agent.final_tick(end_ns, timeout_s=0.01)
            passed = await agent.final_tick(end_ns)
            return early, passed, await source.ticks(0), end_ns

    early, passed, batch, end_ns = asyncio.run(body())
    assert (early, passed) == (False, True)
    (tick,) = batch.ticks
    assert tick.end_ns >= end_ns
    assert tick.end_ns - tick.start_ns >= 990_000_000
    assert tick.energy_uj == {"package-0": 0, "package-0/dram": 0}


def test_run_agent_serves_until_cancelled(tmp_path: Path) -> None:
    """S3-03: the daemon serves its socket without any counters, and leaves nothing when it is stopped."""
    path = tmp_path / "agent.sock"

    async def body() -> dict[str, object]:
        task = asyncio.create_task(run_agent(path, sysfs_root=tmp_path))
        while not path.exists():  # noqa: ASYNC110  (the daemon's only sign of life is its socket)
            await asyncio.sleep(0)
        async with AgentClient(path) as client:
            hello = await client.hello()
            with pytest.raises(BusyError):
                await run_agent(path, "none")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return hello

    hello = asyncio.run(body())
    assert (hello["source"], hello["method"]) == ("model", "modelled")
    assert str(hello["reason"]).startswith("no_powercap: ")
    assert not path.exists()


def test_loop_that_died_is_an_agent_error() -> None:
    """S3-08: an agent that no longer samples says so, and does not answer with old ticks for ever."""

    class Broken(NoEnergyReader):
        reads = 0

        def read(self) -> Reading:
            self.reads += 1
            if self.reads > 1:
                raise RuntimeError("broken")
            return Reading()

    async def body() -> None:
        reader = Broken("test")
        agent = LocalAgent(reader, Sampler(reader, sample_s=0.001))
        async with agent:
            with pytest.raises(RuntimeError, match="broken"):
                await agent.stopped()
            with pytest.raises(AgentError, match="ended"):
                await agent.ticks(0)
            assert not await agent.final_tick(2**62, timeout_s=0.01)

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(body())


def test_names_of_the_caller_itself(tmp_path: Path) -> None:
    """Design section 4: in-process, what is named adds up, and a second holder's release leaves it alone."""

    async def body() -> list[frozenset[int]]:
        agent = open_agent("none")
        me, parent = os.getpid(), os.getppid()
        await agent.name([parent])
        await agent.name([me])
        agent.name_for("other", [parent])
        before = agent.sampler.trees.roots
        agent.release("other")
        return [before, agent.sampler.trees.roots]

    before, after = asyncio.run(body())
    assert before == after
    assert len(before) == 2
