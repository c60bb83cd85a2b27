"""The sidecar: every component made, wired, started downstream first and stopped in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from joulegram import __version__
from joulegram_agent import DEFAULT_SOCKET
from joulegram_agent.main import open_agent
from joulegram_agent.subscriber import Subscriber
from joulegram_pipeline.errors import RetryableError
from joulegram_pipeline.files import DirectoryLock, safe_mkdir
from joulegram_pipeline.life import enter_all, start_task
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_processor.machine import Machine
from joulegram_processor.machine_types import Settings
from joulegram_processor.select import Selector
from joulegram_receiver.memory import MemoryKeeper
from joulegram_receiver.poller import Poller
from joulegram_receiver.spool import Spool
from joulegram_service.carbon_model import build_carbon
from joulegram_service.engine import Engine, Sinks
from joulegram_service.health import HealthServer
from joulegram_service.hops import build_hops
from joulegram_service.own_metrics import OwnMetrics
from joulegram_service.processes import is_ours
from joulegram_service.receivers import build_receivers
from joulegram_service.stages import stages
from joulegram_sink.documents import RunDocuments
from joulegram_sink.ledger import Ledger
from joulegram_sink.outbox import Outbox
from joulegram_sink.tick_archive import TickArchive
from joulegram_sink.upstream import Upstreams

if TYPE_CHECKING:
    from types import TracebackType

    from joulegram_pipeline.records import RunRecord
    from joulegram_service.config import Config
    from joulegram_service.pipelines_page import Stage

log = logging.getLogger(__name__)

LAST_TICKS_S = 2.5
"""How long a stop waits for the tick that covers the last spans; an agent publishes one a second."""

REPLAY_S = 10.0
"""How long a start waits for the replay before it asks the agent; ticks that come twice are dropped by the machine."""

MAX_NAMED = 256
"""Processes named to the agent at most; spans of others have scope host."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie under the data directory (docs/architecture.md)."""

    data_dir: Path

    @property
    def spool(self) -> Path:
        return self.data_dir / "spool"

    @property
    def outbox(self) -> Path:
        return self.data_dir / "outbox"

    @property
    def deadletter(self) -> Path:
        return self.data_dir / "deadletter"

    @property
    def ticks(self) -> Path:
        return self.data_dir / "ticks"

    @property
    def state(self) -> Path:
        return self.data_dir / "state" / "machine.json"

    @property
    def ledger(self) -> Path:
        return self.data_dir / "ledger" / "telemetry"


class Sidecar:
    """The whole sidecar; an async context manager.

    Args:
        config: read and checked.
        default_run: the run of spans that name none (`joulegram run`); None makes it their trace.

    Raises (on enter):
        ConfigError: a key whose value cannot be used.
        BusyError: a port or the data directory is taken.
        StorageError: the data directory cannot be written.
    """

    def __init__(self, config: Config, default_run: str | None = None) -> None:
        self.config = config
        self.layout = Layout(config.data_dir)
        self.metrics = Metrics()
        self.documents: dict[str, dict[str, Path]] = {}
        """Files written for the runs of this process."""
        self._default_run = default_run
        self._stack = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._upstreams: Upstreams | None = None
        self._selected_before = 0
        self._seen: set[int] = set()
        """Processes that spans named, here or not."""
        self._named: set[int] = set()
        """Those of them that live here."""
        self._naming: set[asyncio.Task[None]] = set()
        self._started = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        self._started = True
        if self._named:  # by the log's end, which was replayed meanwhile: an agent forgets with its connection
            await self._name(set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started = False
        await self._stack.__aexit__(kind, value, trace)

    async def _start(self, stack: AsyncExitStack) -> None:
        config, layout, metrics = self.config, self.layout, self.metrics
        carbon, identity = build_carbon(config)
        stack.enter_context(DirectoryLock(config.data_dir))
        ledger = self.ledger = stack.enter_context(Ledger(safe_mkdir(layout.ledger), metrics))
        archive = TickArchive(layout.ticks, config.energy.retention)
        stack.callback(archive.close)
        roots = config.stac.roots if config.stac.roots is not None else implied_roots(Path.cwd())
        documents = RunDocuments(config.data_dir, roots, __version__, metrics, config.stac.key)
        hops = build_hops(config)
        outbox = Outbox(layout.outbox, metrics, {hop.name: hop.queue_bytes for hop in hops}) if hops else None

        self.spool = Spool(
            layout.spool,
            metrics,
            max_queued_bytes=config.receiver.limits.queue,
            sync=config.spool.sync,
            sync_interval_s=config.spool.sync_interval / 1e9,
            max_bytes=config.spool.max_bytes,
            policy=config.spool.policy,
            min_free_bytes=config.spool.min_free_bytes,
        )
        settings = Settings(
            selector=Selector(config.selector.names, config.selector.attributes),
            forwarding=outbox is not None,
            default_run=self._default_run,
            max_wait_ns=config.energy.max_wait,
            settle_after_ns=config.energy.settle_after,
            retention_ns=config.energy.retention,
            share_idle=config.energy.idle == "share",
            run_idle_ns=config.run.idle_timeout,
            local_energy=config.agent.source != "none",
        )
        self.machine = Machine(settings, carbon, identity, self.spool, metrics)
        self._sinks = Sinks(ledger, outbox, archive, documents)
        self.engine = Engine(
            self.machine,
            self.spool,
            self._sinks,
            layout.state,
            metrics,
            self._on_pids,
            self._on_run,
        )
        self.receivers = build_receivers(
            config.receiver, self.spool, metrics, self.machine.extract, lambda: self.spool.fullness
        )
        self.health = HealthServer(config.telemetry.metrics.endpoint, metrics, self._alive, self._ready, self._stages)

        # Downstream first, so that each finds its consumer ready; left in reverse, so that the receiver stops taking
        # before the poller brings its last tick, the engine commits it, and the upstream has had its chance.
        if outbox is not None:
            self._upstreams = Upstreams(hops, outbox, metrics, layout.deadletter)
            await enter_all(stack, [outbox, self._upstreams])
        await enter_all(stack, [self.spool, self.engine])
        stack.push_async_callback(self._drain)
        agent_socket = config.agent.socket
        if agent_socket is None and config.agent.source == "auto" and os.access(DEFAULT_SOCKET, os.R_OK | os.W_OK):
            agent_socket = DEFAULT_SOCKET
        if agent_socket is not None:
            source: Any = Subscriber(agent_socket)
        else:
            source = open_agent(
                config.agent.source,
                sysfs_root=config.agent.sysfs_root,
                proc_root=config.agent.proc_root,
                dev_root=config.agent.dev_root,
                cgroup_root=config.agent.cgroup_root,
                processes=config.agent.processes,
                max_power_w=config.agent.max_power_w,
            )
        self.agent = source
        # The ticks behind the snapshot are known when they are replayed; asked for before, they would come twice.
        await self.engine.drain(REPLAY_S)
        if self.machine.names_processes:  # of a `joulegram run` that was killed: it would give later spans nothing
            await self._control({"type": "run.forget"})
        self.poller = Poller(source, self.spool, last_end_ns=self.machine.store.watermark_ns)
        await enter_all(stack, [source, self.poller])
        interval_ns = config.telemetry.metrics.otlp_interval
        if interval_ns is not None:
            own = OwnMetrics(metrics.registry, self.spool, __version__, config.host.hw_id, interval_ns / 1e9)
            await enter_all(stack, [own])
        stack.push_async_callback(self._bring_last_ticks)
        await enter_all(stack, [MemoryKeeper()])
        for listener in (self.receivers.grpc, self.receivers.http):
            if listener is not None:
                await enter_all(stack, [listener])
        stack.callback(self.receivers.health.close)  # before the listeners stop: an open Watch would hold them
        await enter_all(stack, [self.health])
        self.receivers.health.set_serving(True)

    @property
    def grpc_port(self) -> int:
        """Where OTLP/gRPC is taken."""
        return self.receivers.grpc.port

    @property
    def http_port(self) -> int:
        """Where OTLP/HTTP is taken; 0 where it is not."""
        return 0 if self.receivers.http is None else self.receivers.http.port

    # -- what `joulegram run` tells it -------------------------------------------------------------------------

    async def begin_run(self, run_id: str, pid: int) -> None:
        """Name the process tree whose energy the spans that come from now on share."""
        await self.engine.drain(LAST_TICKS_S)
        self._selected_before = self.machine.selected
        await self._name({pid})
        await self._control({"type": "run.start", "run_id": run_id, "pid": pid, "alone": True})

    @property
    def has_spans(self) -> bool:
        """Whether a span to join has come since the run began."""
        return self.machine.selected > self._selected_before

    async def end_run(self, run_id: str, status: str, budget_s: float) -> bool:
        """Bring the energy up to now into the log, end the run there, and wait until that is committed."""
        deadline = time.monotonic() + budget_s
        await self.poller.flush_until(time.time_ns(), budget_s)
        end = {"type": "run.end", "run_id": run_id, "status": status, "ended_by": "command_exit", "alone": True}
        await self._control(end)
        return await self.engine.drain(max(1.0, deadline - time.monotonic()))

    async def receive_span(self, request: bytes) -> None:
        """Take in a trace request made here, on the same path as those that come over the wire."""
        await self.spool.append(RecordKind.TRACES, request)

    async def _control(self, control: dict[str, Any]) -> None:
        await self.spool.append(RecordKind.CONTROL, json.dumps(control, sort_keys=True).encode())

    # -- what the engine tells it, on its own thread -----------------------------------------------------------

    def _on_pids(self, pids: set[int]) -> None:
        new = pids - self._seen
        if new and self._loop is not None:
            self._loop.call_soon_threadsafe(self._start_naming, new)

    def _start_naming(self, pids: set[int]) -> None:
        # Those that died make room, and their number may come again.
        died = {pid for pid in self._named if not is_ours(pid, self.config.agent.proc_root)}
        self._named -= died
        self._seen -= died
        self._seen |= pids
        ours = {pid for pid in pids if is_ours(pid, self.config.agent.proc_root)}
        self._named |= ours
        if ours and self._started:
            task = start_task(self._name(ours), "naming")
            self._naming.add(task)
            task.add_done_callback(self._naming.discard)

    async def _name(self, pids: set[int]) -> None:
        self._named |= pids
        if len(self._named) <= MAX_NAMED:
            await self.poller.name(sorted(self._named))

    def _on_run(self, run: RunRecord, written: dict[str, Path]) -> None:
        self.documents[run.run_id] = {**self.documents.get(run.run_id, {}), **written}
        log.info("run %s, revision %d, ended by %s", run.run_id, run.revision, run.ended_by)

    # -- health and stop ---------------------------------------------------------------------------------------

    def _alive(self) -> list[str]:
        failure = self.engine.failure
        return [] if failure is None else [f"engine: {type(failure).__name__}: {failure}"]

    def _ready(self) -> list[str]:
        reasons = [] if self._started else ["starting or stopping"]
        return reasons + [trouble for trouble in (self.spool.trouble, self.engine.trouble) if trouble is not None]

    def _stages(self) -> list[Stage]:
        return stages(
            self.receivers.admission,
            self.spool,
            self.poller,
            self.machine,
            self.engine,
            self._sinks,
            self._upstreams,
            self.metrics,
        )

    async def _bring_last_ticks(self) -> None:
        """After the receiver stopped: what came in the last second can still get its energy."""
        await self.engine.drain(LAST_TICKS_S)
        if self.machine.is_waiting:
            await self.poller.flush_until(time.time_ns(), LAST_TICKS_S)
            with contextlib.suppress(RetryableError):  # a full spool: who waits for others waits in the snapshot
                await self._control({"type": "intake.closed"})

    async def _drain(self) -> None:
        budget_s = self.config.shutdown.drain_timeout / 1e9
        deadline = time.monotonic() + budget_s
        if not await self.engine.drain(budget_s):
            log.warning("not all was processed within %g s; the rest is in the spool for the next start", budget_s)
        if self._upstreams is not None and not await self._upstreams.drain(max(0.0, deadline - time.monotonic())):
            log.warning("the upstream did not take all within %g s; the rest is in the outbox", budget_s)


def implied_roots(cwd: Path) -> tuple[Path, ...]:
    """Where Items may be patched when `stac.roots` is not set: the working directory, unless it is all of the disk."""
    return () if cwd == cwd.parent else (cwd,)
