"""What an agent leaves for the next one: its counts, and where the counters stood.

Invariants:
    * the file is whole or absent; one that is not what was written is set aside as ``<name>.damaged`` and said, and
      counting begins anew: it is never a reason not to start;
    * it holds no instant finer than a published tick (PLATYPUS), and is readable by the agent's user alone;
    * it is of one boot: counters of two boots are never subtracted. So it need not outlive the machine's crash, and
      nobody waits for a disk to write it: the counters are read in the same thread.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from joulegram_agent.counters import Counted
from joulegram_pipeline.errors import AgentError, StorageError
from joulegram_pipeline.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from joulegram_pipeline.clock import BootClock

log = logging.getLogger(__name__)

VERSION = 1
FILE_NAME = "agent-state.json"
STATE_MODE = 0o600
MAX_STATE_BYTES = 1024 * 1024
"""More than a thousand domains take."""


class Instant(NamedTuple):
    """One instant on three clocks, nanoseconds; see `BootClock`."""

    wall_ns: int
    mono_ns: int
    boot_ns: int

    @classmethod
    def now(cls, clock: BootClock) -> Self:
        return cls(clock.wall_ns(), clock.mono_ns(), clock.boot_ns())

    def since(self, before: Instant) -> int:
        """Nanoseconds by the clock that ran most.

        A suspended machine's monotonic clock stands still, while its counters may not.
        """
        return max(self.mono_ns - before.mono_ns, self.boot_ns - before.boot_ns, self.wall_ns - before.wall_ns)

    def asleep_since(self, before: Instant) -> int:
        """Nanoseconds that the machine was suspended."""
        return (self.boot_ns - before.boot_ns) - (self.mono_ns - before.mono_ns)


@dataclass(frozen=True, slots=True)
class DomainState:
    """One domain's counts.

    Args:
        counted: as of the state's instant.
        source: whose counter `counted.raw_uj` is; None where it is of no use to another agent.
        max_range_uj: of that counter.
    """

    counted: Counted
    source: str | None = None
    max_range_uj: int | None = None


@dataclass(frozen=True, slots=True)
class AgentState:
    """What an agent had counted when its last tick was published.

    Args:
        boot_id: of the machine's run, as in ``/proc/sys/kernel/random/boot_id``.
        at: end of that tick.
        domains: by id.
    """

    boot_id: str
    at: Instant
    domains: Mapping[str, DomainState]

    def to_bytes(self) -> bytes:
        """One JSON object; `from_bytes` gives an equal state back."""
        domains = {}
        for key, state in self.domains.items():
            counted = state.counted
            domains[key] = {
                "placed_uj": counted.placed_uj,
                "unplaced_uj": counted.unplaced_uj,
                "gaps": dict(counted.gaps),
                "raw_uj": counted.raw_uj,
                "silent_ns": counted.silent_ns,
                "source": state.source,
                "max_range_uj": state.max_range_uj,
            }
        head = {"version": VERSION, "boot_id": self.boot_id}
        at = {"wall_ns": self.at.wall_ns, "mono_ns": self.at.mono_ns, "boot_ns": self.at.boot_ns}
        return json.dumps({**head, "at": at, "domains": domains}, separators=(",", ":")).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> AgentState:
        """Read a state.

        Raises:
            AgentError: not what `to_bytes` writes.
        """
        try:
            raw = json.loads(data)
            if raw["version"] != VERSION:
                raise AgentError(f"got version {raw['version']!r}, expected {VERSION}")
            at = Instant(*(_whole(raw["at"][key]) for key in ("wall_ns", "mono_ns", "boot_ns")))
            domains = {str(key): _domain(value) for key, value in raw["domains"].items()}
            return cls(_text(raw["boot_id"]), at, domains)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise AgentError(f"got {data[:80]!r}: {type(error).__name__}: {error}") from error


class StateFile:
    """Where the state is kept.

    Args:
        path: of the file; its directory exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failing = False

    def load(self) -> AgentState | None:
        """What the agent before left; None where there is nothing, or nothing that can be used."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("agent state %s: %s: counting begins anew", self.path, error.strerror or error)
            return None
        if not data.strip(b"\0"):
            log.info("agent state %s is empty, as after a crash of the machine: counting begins anew", self.path)
            return None
        try:
            return AgentState.from_bytes(data)
        except AgentError as error:
            aside = self.path.with_name(self.path.name + ".damaged")
            log.warning(
                "agent state %s is damaged: %s: counting begins anew, it is kept as %s", self.path, error, aside
            )
            try:
                self.path.replace(aside)
            except OSError as failed:
                log.warning("agent state %s cannot be set aside: %s", self.path, failed.strerror or failed)
            return None

    def save(self, state: AgentState) -> None:
        """Replace the file. A disk that refuses is said once, and again when it refuses anew after it took one."""
        try:
            replace_file(self.path, state.to_bytes(), mode=STATE_MODE, durable=False)
        except StorageError as error:
            if not self._failing:
                log.warning("the agent's counts will not survive a restart: %s", error)
            self._failing = True
        else:
            self._failing = False


def _domain(raw: Mapping[str, Any]) -> DomainState:
    counted = Counted(
        placed_uj=_whole(raw["placed_uj"]),
        unplaced_uj=_whole(raw["unplaced_uj"]),
        gaps={_text(code): _whole(count) for code, count in raw["gaps"].items()},
        raw_uj=None if raw["raw_uj"] is None else _whole(raw["raw_uj"]),
        silent_ns=_whole(raw["silent_ns"]),
    )
    source = None if raw["source"] is None else _text(raw["source"])
    return DomainState(counted, source, None if raw["max_range_uj"] is None else _whole(raw["max_range_uj"]))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"got {value!r}, expected a non-negative integer")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"got {value!r}, expected a string")
    return value
