"""Where a job's own figures come from: the agent behind its socket, else counters that the job itself may read.

Invariants:
    * both give whole ticks of one second, so nothing finer is shown than an agent publishes;
    * what cannot be had is a reason, never an exception (S3-08) and never 0.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from joulegram.agent_socket import AgentSocket, agent_socket
from joulegram_pipeline.energy import Method
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from joulegram_agent.reader import Reader
    from joulegram_agent.sampler import Sampler
    from joulegram_pipeline.energy import TickBatch

SAMPLE_S = 1.0
"""How often a job reads counters itself: once a tick; a counter takes minutes to wrap."""


class JobTicks(Protocol):
    """Ticks for one process."""

    @property
    def origin(self) -> str:
        """``agent`` or ``local``."""

    def ticks(self, after: int) -> TickBatch:
        """The kept ticks whose `seq` is above `after`; raises AgentError where there are none to be had now."""

    def close(self) -> None:
        """Let go; a second call does nothing."""


class AgentTicks:
    """The ticks of an agent, with this process and its descendants named.

    Raises:
        AgentError: it is not there, or refuses.
    """

    origin = "agent"

    def __init__(self, path: Path) -> None:
        self._socket = AgentSocket(path)
        try:
            self._socket.name([os.getpid()])
        except AgentError:
            self._socket.close()
            raise

    def ticks(self, after: int) -> TickBatch:
        return self._socket.ticks(after)

    def close(self) -> None:
        self._socket.close()


class LocalTicks:
    """An agent's sampler on a thread of this process.

    Args:
        reader: one that has energy; it is this object's from here on.
        proc_root: ``/proc``, or where the host's is mounted.
    """

    origin = "local"

    def __init__(self, reader: Reader, proc_root: Path = Path("/proc")) -> None:
        from joulegram_agent.sampler import Sampler  # noqa: PLC0415 - only where a job measures by itself

        sampler = self._sampler = Sampler(reader, proc_root=proc_root)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        sampler.trees.name(os.getpid())
        sampler.sample()
        # The thread holds the sampler and not this object, so that one that is forgotten can end it.
        work = (sampler, reader, self._lock, self._stop)
        self._thread = threading.Thread(target=_sample, args=work, name="joulegram counters", daemon=True)
        self._thread.start()

    def ticks(self, after: int) -> TickBatch:
        with self._lock:
            self._sampler.sample()
            return self._sampler.batch(after)

    def close(self) -> None:
        self._stop.set()

    def __del__(self) -> None:
        self._stop.set()


def _sample(sampler: Sampler, reader: Reader, lock: threading.Lock, stop: threading.Event) -> None:
    try:
        while not stop.wait(SAMPLE_S):
            with lock:
                sampler.sample()
    finally:
        with lock:
            reader.close()


def open_ticks(
    socket: str | os.PathLike[str] | None = None,
    *,
    sysfs_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    model: bool = False,
) -> tuple[JobTicks | None, str | None]:
    """The best source there is.

    Args:
        socket: of an agent; see `agent_socket`.
        sysfs_root: ``/sys``, or where the host's is mounted.
        proc_root: ``/proc``, or where the host's is mounted.
        model: where nothing is measured, model the energy from CPU time, which then says so.

    Returns:
        The source, or None; and why there is no agent, or nothing at all.
    """
    try:
        return AgentTicks(agent_socket(socket)), None
    except AgentError as error:
        reason = f"no_agent: {error}"
    from joulegram_agent.model import ModelReader  # noqa: PLC0415 - only where a job measures by itself
    from joulegram_agent.powercap import PowercapReader  # noqa: PLC0415

    reader: Reader = PowercapReader(sysfs_root)
    if reader.method is not Method.MEASURED:
        reason = f"{reader.reason}; {reason}"
        reader.close()
        if not model:
            return None, reason
        reader = ModelReader(proc_root, sysfs_root, reason)
    return LocalTicks(reader, proc_root), reason
