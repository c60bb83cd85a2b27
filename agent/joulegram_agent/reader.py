"""The seam between the sampler and what measures: raw counters by domain, or why there are none (S0-20)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from joulegram_pipeline.energy import Domain, Gap, Method

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from joulegram_agent.cpu import CpuReading

_NONE: Mapping[str, int] = MappingProxyType({})


class Reading(NamedTuple):
    """What one sweep over the domains found.

    Args:
        counters_uj: raw counter by domain id, as it stood; it wraps where its domain has a `max_range_uj`.
        gaps: the domains that could not be read, with reasons. Each domain is in exactly one of the two.
        static_uj: counter of the energy that would have been spent idle, for the domains whose source knows
            it.
        cpu: the machine's CPU time, where the source goes by it: then nobody has to read it once more.
    """

    counters_uj: Mapping[str, int] = _NONE
    gaps: tuple[Gap, ...] = ()
    static_uj: Mapping[str, int] = _NONE
    cpu: CpuReading | None = None


class Reader(Protocol):
    """A source of energy counters. Its domains are fixed for its life, so no window mixes two sets (D-05)."""

    @property
    def source(self) -> str:
        """``powercap``, ``msr``, ``perf``, ``nvml``, ``model`` or ``none``; two side by side joined by ``+``."""

    @property
    def method(self) -> Method:
        """How its energy comes about."""

    @property
    def reason(self) -> str | None:
        """Why there is no energy, or why a better source was not taken; else None."""

    def domains(self) -> tuple[Domain, ...]:
        """The measured set; domains never overlap."""

    def read(self) -> Reading:
        """Read every domain once. Never raises: what cannot be read is a gap."""

    def close(self) -> None:
        """Give back what is open; a second call does nothing."""


@runtime_checkable
class Lasting(Protocol):
    """A reader some of whose counters go on while no agent runs, and mean the same to the next one."""

    def lasting(self) -> Mapping[str, str]:
        """By domain, the source whose counter it is."""


@runtime_checkable
class SharesBoards(Protocol):
    """A reader that knows which processes kept a board busy."""

    def process_gpu_ns(self, root_of: Callable[[int], int | None]) -> Mapping[str, Mapping[int, int]]:
        """Time that each board was kept busy since the last call, see `Tick.process_gpu_ns`.

        Args:
            root_of: the named process to whose tree a process belongs, None if to no named one's.
        """


class NoEnergyReader:
    """A source without energy: its ticks carry CPU time and the reason, never 0 J.

    Args:
        reason: why nothing is measured.
    """

    source = "none"
    method = Method.UNAVAILABLE

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason

    def domains(self) -> tuple[Domain, ...]:
        return ()

    def read(self) -> Reading:
        return Reading()

    def close(self) -> None:
        """Nothing is open."""
