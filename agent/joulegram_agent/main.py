"""Runs the agent: a source, the loop on it, the socket in front, and what else it was asked to tell.

Invariants:
    * metrics and OTLP are imported where they were asked for: what an agent does not use is not in its memory.
"""

from __future__ import annotations

import logging
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent import DEFAULT_SOCKET
from joulegram_agent.cgroups import CGROUP_ROOT
from joulegram_agent.counters import HIGHEST_POWER_W, MAX_POWER_W
from joulegram_agent.local import LocalAgent
from joulegram_agent.notify import Watchdog, notify, watched
from joulegram_agent.peers import Allowed, group_numbers
from joulegram_agent.privileges import drop, identity_of
from joulegram_agent.sampler import Sampler
from joulegram_agent.sensor_sources import open_sensors
from joulegram_agent.server import AgentServer
from joulegram_agent.sources import open_reader
from joulegram_agent.state import FILE_NAME, StateFile
from joulegram_pipeline.energy import PUBLISH_S
from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from joulegram_agent.metrics_http import MetricsServer
    from joulegram_agent.otlp_export import OtlpExport
    from joulegram_agent.otlp_export_http import Target
    from joulegram_agent.privileges import Identity

PROCESSES = ("named", "all")
"""Which processes have a line in a tick."""

OTLP_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outside:
    """How the agent meets others: as whom it runs, who may ask, and whom it tells by itself.

    Args:
        version: of joulegram, for those it tells.
        user: whom it becomes when everything is open; None stays who it is.
        group: of the socket, and of the agent beside `user`; None is the user's own.
        allow_groups: who may ask beside the socket's group.
        metrics: ``host:port`` of ``/metrics``; None has none.
        otlp_endpoint: URL its own OTLP goes to; None sends none.
        otlp_interval_s: between two exports.
        hw_id: names this host in what is exported.
    """

    version: str = "unknown"
    user: str | None = None
    group: str | None = None
    allow_groups: tuple[str, ...] = ()
    metrics: str | None = None
    otlp_endpoint: str | None = None
    otlp_interval_s: float = OTLP_INTERVAL_S
    hw_id: str | None = None

    def identity(self) -> Identity:
        """Whom it becomes; raises ConfigError."""
        return identity_of(self.user, self.group)

    def allowed(self) -> Allowed:
        """Who may ask; raises ConfigError."""
        return Allowed(group_numbers("--allow-group", self.allow_groups))

    def metrics_endpoint(self) -> tuple[str, int] | None:
        """Where metrics are listened for; raises ConfigError."""
        if self.metrics is None:
            return None
        from joulegram_agent.metrics_http import endpoint_of

        return endpoint_of("--metrics", self.metrics)

    def otlp_target(self) -> tuple[Target, str] | None:
        """Where OTLP goes, and the name of this host in it; raises ConfigError."""
        if self.otlp_endpoint is None:
            return None
        if not self.hw_id:
            raise ConfigError("--hw-id", self.hw_id, "a name for this host beside --otlp-endpoint, such as node-7")
        if not self.otlp_interval_s >= PUBLISH_S:
            raise ConfigError("--otlp-interval", self.otlp_interval_s, f"at least {PUBLISH_S:g} seconds")
        from joulegram_agent.otlp_export_http import target_of

        return target_of("--otlp-endpoint", self.otlp_endpoint), self.hw_id


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
    max_power_w: int = MAX_POWER_W,
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
        max_power_w: more than one domain draws: a counter that says so is not believed, see `Accumulator`.
        state: file in which its counts survive a restart; without one they begin anew.

    Raises:
        ConfigError: as `open_reader`; or `processes` is none of `PROCESSES`, or `max_power_w` is out of bounds.
    """
    if processes not in PROCESSES:
        raise ConfigError("processes", processes, "one of " + ", ".join(PROCESSES))
    if not 1 <= max_power_w <= HIGHEST_POWER_W:
        raise ConfigError("max_power_w", max_power_w, f"watts of one domain, from 1 to {HIGHEST_POWER_W}")
    reader = open_reader(
        source,
        sysfs_root=sysfs_root,
        proc_root=proc_root,
        dev_root=dev_root,
        watts_idle=watts_idle,
        watts_max=watts_max,
    )
    sampler = Sampler(
        reader,
        proc_root=proc_root,
        cgroup_root=cgroup_root,
        every_process=processes == "all",
        max_power_w=max_power_w,
    )
    return LocalAgent(
        reader,
        sampler,
        sensors=open_sensors(sysfs_root, dev_root),
        state=None if state is None else StateFile(state),
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
    max_power_w: int = MAX_POWER_W,
    state: Path | None = None,
    outside: Outside | None = None,
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
        max_power_w: see `open_agent`.
        state: file in which the counts survive a restart; by default ``agent-state.json`` beside the socket.
        outside: whom it meets; None is nobody but those on the socket.

    Raises:
        ConfigError: an argument that cannot be used.
        BusyError: another agent listens on the socket, or somebody on the port of the metrics.
        StorageError: the socket cannot be made.
    """
    front = _Front(outside or Outside())
    agent = open_agent(
        source,
        sysfs_root=sysfs_root,
        proc_root=proc_root,
        dev_root=dev_root,
        cgroup_root=cgroup_root,
        processes=processes,
        watts_idle=watts_idle,
        watts_max=watts_max,
        max_power_w=max_power_w,
        state=state or socket.parent / FILE_NAME,
    )
    async with AsyncExitStack() as stack:
        stack.callback(agent.close)
        front.listen(stack, agent, socket)
        await stack.enter_async_context(agent)
        await front.serve(stack, agent)
        reader = agent.reader
        log.info("agent on %s: source %s, %s", socket, reader.source, reader.reason or reader.method.value)
        notify(f"READY=1\nSTATUS=source {reader.source}, {reader.method.value}")
        stack.callback(notify, "STOPPING=1")
        await agent.stopped()


class _Front:
    """What stands in front of an agent; every argument is read before anything is opened for others.

    Raises:
        ConfigError: an argument that cannot be used.
    """

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._identity = outside.identity()
        self._allowed = outside.allowed()
        self._endpoint = outside.metrics_endpoint()
        self._otlp = outside.otlp_target()
        self._export: OtlpExport | None = None
        self._pages: MetricsServer | None = None

    def listen(self, stack: AsyncExitStack, agent: LocalAgent, socket: Path) -> None:
        """Take socket and port, then give up privileges; the stack gives them back.

        The event loop has no turn here: it would start threads, and a thread keeps the privileges it was born with.
        """
        self._server = AgentServer(agent, socket, allowed=self._allowed, owner=self._identity.owner)
        self._server.listen()
        stack.callback(self._server.close)
        # Imported and made here: afterwards the program's own files may be out of reach.
        if self._otlp is not None:
            from joulegram_agent.otlp_export import OtlpExport
            from joulegram_agent.otlp_export_payload import EnergySeries

            target, hw_id = self._otlp
            series = EnergySeries(agent.sampler, hw_id, self._outside.version)
            self._export = OtlpExport(series, target, self._outside.otlp_interval_s)
        if self._endpoint is not None:
            from joulegram_agent.metrics import AgentMetrics
            from joulegram_agent.metrics_http import MetricsServer

            more = () if self._export is None else (self._export.families,)
            metrics = AgentMetrics(agent, self._server, self._outside.version, more=more)
            self._pages = MetricsServer(self._endpoint, metrics)
            self._pages.listen()
            stack.callback(self._pages.close)
            log.info("/metrics, /healthz on %s, port %d", self._endpoint[0], self._pages.port)
        if drop(self._identity):
            log.info("running as user %d, without capabilities", os.geteuid())

    async def serve(self, stack: AsyncExitStack, agent: LocalAgent) -> None:
        """Answer, and send; after `listen`."""
        await stack.enter_async_context(self._server)
        if self._pages is not None:
            await stack.enter_async_context(self._pages)
        if self._export is not None:
            await stack.enter_async_context(self._export)
            log.info("OTLP to %s every %g s", self._export.target, self._outside.otlp_interval_s)
        if watched():
            await stack.enter_async_context(Watchdog(agent))
