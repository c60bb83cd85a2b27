"""What the agent says of energy: domains, ticks and gaps, and their one JSON form.

A tick is one published window (1 s, never finer: PLATYPUS) of everything the node measured in it. The same JSON is
spoken on the agent's socket, written to the spool and kept in the tick archive, so a replay sees the same energy.

Invariants:
    * microjoules are non-negative integers; a domain that could not be read in a tick is absent from `energy_uj` and
      named in `gaps` with its reason: it is never 0 for want of a reading;
    * domains of one batch never overlap: packages, DRAM outside them, GPU boards (design section 4);
    * `start_ns < end_ns`; ticks of one epoch follow each other without overlap.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MAX_COUNT = 2**53 - 1
_MAX_DECIMAL = 2**63 - 1
_DIGITS = re.compile(r"[0-9]{1,19}")

PUBLISH_S = 1.0
"""No energy is published for a window shorter than this (design section 4)."""

OTHERS = 0
"""Stands for all processes that are not named; pid 0 is no process."""


class DomainKind(StrEnum):
    """What a domain feeds; the three energies a span carries."""

    CPU = "cpu"
    DRAM = "dram"
    GPU = "gpu"


KINDS: tuple[DomainKind, ...] = (DomainKind.CPU, DomainKind.DRAM, DomainKind.GPU)


class Method(StrEnum):
    """How an energy came about (`energy.method`)."""

    MEASURED = "measured"
    MODELLED = "modelled"
    REPORTED = "reported"
    MIXED = "mixed"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Domain:
    """One counter of the measured set.

    Args:
        id: unique in its agent and stable: ``package-0``, ``package-0/dram``, ``model/cpu``.
        kind: what it feeds.
        max_range_uj: the counter's own range, None where the source does not wrap.
    """

    id: str
    kind: DomainKind
    max_range_uj: int | None = None

    @property
    def modelled(self) -> bool:
        """Whether its energy is computed, so that no counter of the machine's is behind it."""
        return self.id.startswith("model/")


@dataclass(frozen=True, slots=True)
class Gap:
    """Energy of a domain that is not known for a tick; `domain` is ``*`` when it is all of them."""

    domain: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """One published window.

    Args:
        seq: counts the published windows of an epoch from 1.
        start_ns: wall clock, nanoseconds since 1970.
        end_ns: wall clock, exclusive.
        energy_uj: measured energy by domain id.
        static_uj: the part of `energy_uj` that would have been spent idle, where the source knows it.
        gaps: what is missing, with reasons.
        cpu_busy_ns: CPU time all processes spent in the window, None if unknown.
        cpu_total_ns: CPU time there was: online CPUs x time, None if unknown.
        process_cpu_ns: CPU time by named root process, its descendants included, disjoint between roots.
        descendant_cpu_ns: the part of `process_cpu_ns` that descendants spent and not the named process itself.
        container_cpu_ns: CPU time by container and pod, without that of the named processes in them: keys are
            ``container/<id>``, ``pod/<uid>/container/<id>``, and ``pod/<uid>`` for what a pod spent outside its
            containers. A tick leaves out what is too small to be worth a line, and a later one makes up for it.
        process_gpu_ns: by GPU domain, the time each named process tree kept the board busy; under `OTHERS` that of all
            other processes. A domain whose driver keeps no such account is absent.
    """

    seq: int
    start_ns: int
    end_ns: int
    energy_uj: Mapping[str, int] = field(default_factory=dict)
    static_uj: Mapping[str, int] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    cpu_busy_ns: int | None = None
    cpu_total_ns: int | None = None
    process_cpu_ns: Mapping[int, int] = field(default_factory=dict)
    descendant_cpu_ns: Mapping[int, int] = field(default_factory=dict)
    container_cpu_ns: Mapping[str, int] = field(default_factory=dict)
    process_gpu_ns: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"seq": self.seq, "start_ns": str(self.start_ns), "end_ns": str(self.end_ns)}
        if self.energy_uj:
            out["energy_uj"] = dict(self.energy_uj)
        if self.static_uj:
            out["static_uj"] = dict(self.static_uj)
        if self.gaps:
            out["gaps"] = [{"domain": gap.domain, "reason": gap.reason} for gap in self.gaps]
        if self.cpu_busy_ns is not None:
            out["cpu_busy_ns"] = self.cpu_busy_ns
        if self.cpu_total_ns is not None:
            out["cpu_total_ns"] = self.cpu_total_ns
        if self.process_cpu_ns:
            out["process_cpu_ns"] = _by_pid(self.process_cpu_ns)
        if self.descendant_cpu_ns:
            out["descendant_cpu_ns"] = _by_pid(self.descendant_cpu_ns)
        if self.container_cpu_ns:
            out["container_cpu_ns"] = dict(self.container_cpu_ns)
        if self.process_gpu_ns:
            out["process_gpu_ns"] = {domain: _by_pid(times) for domain, times in self.process_gpu_ns.items()}
        return out

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Tick:
        """Read one tick.

        Raises:
            AgentError: a field is missing, of the wrong type, or negative.
        """
        try:
            tick = cls(
                seq=_whole(raw["seq"], _MAX_COUNT),
                start_ns=_decimal(raw["start_ns"]),
                end_ns=_decimal(raw["end_ns"]),
                energy_uj=_counts(raw.get("energy_uj", {})),
                static_uj=_counts(raw.get("static_uj", {})),
                gaps=tuple(Gap(str(gap["domain"]), str(gap["reason"])) for gap in raw.get("gaps", ())),
                cpu_busy_ns=_count(raw.get("cpu_busy_ns")),
                cpu_total_ns=_count(raw.get("cpu_total_ns")),
                process_cpu_ns=_pids(raw.get("process_cpu_ns", {})),
                descendant_cpu_ns=_pids(raw.get("descendant_cpu_ns", {})),
                container_cpu_ns=_counts(raw.get("container_cpu_ns", {})),
                process_gpu_ns={str(name): _pids(times) for name, times in raw.get("process_gpu_ns", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AgentError(f"got tick {raw!r}: {type(error).__name__}: {error}") from error
        if tick.end_ns <= tick.start_ns:
            raise AgentError(f"got tick {raw!r}, expected start_ns < end_ns")
        return tick


@dataclass(frozen=True, slots=True)
class TickBatch:
    """Ticks of one source in one epoch.

    Args:
        epoch: boot id and start of the agent; counters of two epochs are never subtracted.
        source: ``powercap``, ``model``, ``none``, ``otlp`` …
        method: how its energy came about.
        reason: why there is no energy, where there is none.
        domains: the measured set.
        ticks: in order.
    """

    epoch: str
    source: str
    method: Method
    reason: str | None
    domains: tuple[Domain, ...]
    ticks: tuple[Tick, ...]

    def to_bytes(self) -> bytes:
        """One line of JSON without its line feed; the same batch always gives the same bytes."""
        out: dict[str, Any] = {
            "epoch": self.epoch,
            "source": self.source,
            "method": self.method.value,
            "domains": [domain_to_json(domain) for domain in self.domains],
            "ticks": [tick.to_json() for tick in self.ticks],
        }
        if self.reason is not None:
            out["reason"] = self.reason
        return json.dumps(out, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> TickBatch:
        """Read one batch.

        Raises:
            AgentError: not the JSON `to_bytes` writes.
        """
        try:
            raw = json.loads(data)
            return cls.from_json(raw)
        except (ValueError, RecursionError) as error:
            raise AgentError(f"got tick batch {data[:200]!r}: {error}") from error

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TickBatch:
        """Read one batch from its parsed JSON; raises AgentError as `from_bytes` does."""
        try:
            return cls(
                epoch=str(raw["epoch"]),
                source=str(raw["source"]),
                method=Method(raw["method"]),
                reason=None if raw.get("reason") is None else str(raw["reason"]),
                domains=domains_from_json(raw["domains"]),
                ticks=tuple(Tick.from_json(tick) for tick in raw["ticks"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AgentError(f"got tick batch {raw!r}: {type(error).__name__}: {error}") from error


class TickSource(Protocol):
    """Where a sidecar gets its ticks: the agent in this process, or the client of one behind a socket."""

    async def ticks(self, after: int) -> TickBatch:
        """The published ticks whose `seq` is above `after`; an empty batch where there are none yet.

        Raises:
            AgentError: the agent is away or spoke nonsense; ask again later.
        """

    async def name(self, pids: Sequence[int]) -> None:
        """Have the CPU time of these processes and their descendants read in every tick from now on."""


def domain_to_json(domain: Domain) -> dict[str, Any]:
    """The JSON form of a domain."""
    out: dict[str, Any] = {"id": domain.id, "kind": domain.kind.value}
    if domain.max_range_uj is not None:
        out["max_range_uj"] = str(domain.max_range_uj)
    return out


def domains_from_json(raw: Iterable[Mapping[str, Any]]) -> tuple[Domain, ...]:
    """Read a list of domains; KeyError, TypeError or ValueError where it is not one."""
    return tuple(
        Domain(
            str(item["id"]),
            DomainKind(item["kind"]),
            None if item.get("max_range_uj") is None else _decimal(item["max_range_uj"]),
        )
        for item in raw
    )


def _count(value: Any) -> int | None:
    return None if value is None else _whole(value, _MAX_COUNT)


def _whole(value: Any, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise ValueError(f"got {value!r}, expected a non-negative integer up to {limit}")
    return value


def _decimal(value: Any) -> int:
    """A count that may pass what JSON's readers hold exactly, and so is written as text."""
    return _whole(int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value, _MAX_DECIMAL)


def _by_pid(times: Mapping[int, int]) -> dict[str, int]:
    return {str(pid): value for pid, value in times.items()}


def _pids(raw: Mapping[str, Any]) -> dict[int, int]:
    return {_decimal(pid): value for pid, value in _counts(raw).items()}


def _counts(raw: Mapping[str, Any]) -> dict[str, int]:
    out = {}
    for key, value in raw.items():
        count = _count(value)
        if count is None:
            raise ValueError(f"got null for {key!r}, expected a non-negative integer or no key at all")
        out[str(key)] = count
    return out
