"""Runs the agent: a source, the loop on it, and the socket in front."""

from __future__ import annotations

import logging
from pathlib import Path

from joulegram_agent import DEFAULT_SOCKET
from joulegram_agent.cgroups import CGROUP_ROOT
from joulegram_agent.local import LocalAgent
from joulegram_agent.sampler import Sampler
from joulegram_agent.sensor_sources import open_sensors
from joulegram_agent.server import AgentServer
from joulegram_agent.sources import open_reader
from joulegram_agent.state import FILE_NAME, StateFile
from joulegram_pipeline.errors import ConfigError

PROCESSES = ("named", "all")
"""Which processes have a line in a tick."""

log = logging.getLogger(__name__)


def open_agent(
    source: str = "auto",
    *,
    sysfs_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    dev_root: Path = Path("/dev"),
    cgroup_root: Path = CGROUP_ROOT,
    processes: str = "named",
    watts_idle: float | None = None,
    watts_max: float | None = None,
    state: Path | None = None,
) -> LocalAgent:
    """An agent that is not entered yet.

    Args:
        source: see `open_reader`, as for the other roots and the watts.
        sysfs_root: ``/sys``, or where the host's is mounted.
        proc_root: ``/proc``, or where the host's is mounted.
        dev_root: ``/dev``, or where the host's is mounted.
        cgroup_root: ``/sys/fs/cgroup``, or where the host's is mounted.
        processes: one of `PROCESSES`: the named with their descendants, or every one besides.
        watts_idle: for the model, watts of an idle logical CPU.
        watts_max: for the model, watts of a busy logical CPU.
        state: file in which its counts survive a restart; without one they begin anew.

    Raises:
        ConfigError: as `open_reader`; or `processes` is none of `PROCESSES`.
    """
    if processes not in PROCESSES:
        raise ConfigError("processes", processes, "one of " + ", ".join(PROCESSES))
    reader = open_reader(
        source,
        sysfs_root=sysfs_root,
        proc_root=proc_root,
        dev_root=dev_root,
        watts_idle=watts_idle,
        watts_max=watts_max,
    )
    sampler = Sampler(reader, proc_root=proc_root, cgroup_root=cgroup_root, every_process=processes == "all")
    return LocalAgent(
        reader, sampler, sensors=open_sensors(sysfs_root), state=None if state is None else StateFile(state)
    )


async def run_agent(
    socket: Path = DEFAULT_SOCKET,
    source: str = "auto",
    *,
    sysfs_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    dev_root: Path = Path("/dev"),
    cgroup_root: Path = CGROUP_ROOT,
    processes: str = "named",
    watts_idle: float | None = None,
    watts_max: float | None = None,
    state: Path | None = None,
) -> None:
    """Measure and serve until cancelled; missing hardware is said, not fatal.

    Args:
        socket: path of the Unix socket.
        source: see `open_reader`.
        sysfs_root: ``/sys``, or where the host's is mounted.
        proc_root: ``/proc``, or where the host's is mounted.
        dev_root: ``/dev``, or where the host's is mounted.
        cgroup_root: ``/sys/fs/cgroup``, or where the host's is mounted.
        processes: see `open_agent`.
        watts_idle: see `open_reader`.
        watts_max: see `open_reader`.
        state: file in which the counts survive a restart; by default ``agent-state.json`` beside the socket.

    Raises:
        ConfigError: an argument that cannot be used.
        BusyError: another agent listens on the socket.
        StorageError: the socket cannot be made.
    """
    agent = open_agent(
        source,
        sysfs_root=sysfs_root,
        proc_root=proc_root,
        dev_root=dev_root,
        cgroup_root=cgroup_root,
        processes=processes,
        watts_idle=watts_idle,
        watts_max=watts_max,
        state=state or socket.parent / FILE_NAME,
    )
    async with agent, AgentServer(agent, socket):
        reader = agent.reader
        log.info("agent on %s: source %s, %s", socket, reader.source, reader.reason or reader.method.value)
        await agent.stopped()
