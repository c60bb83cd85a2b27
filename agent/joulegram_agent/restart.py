"""How counts go on over a restart of the agent.

1. The state of another boot is not used: counters of two boots have no common zero.
2. Each domain takes up the totals that were counted for it; one that is not there now keeps them until it is.
3. Where the counter is the same one (source and range), its rise since then is known as far as that across any
   silence: it is counted as unplaced, in a window that is a gap named ``agent_restart``. Where it is not known the gap
   stands alone, as ``agent_restart``, ``ambiguous_wrap`` or ``counter_reset``.

After a kill the state is up to `SAVE_NS` old. What ticks held since is then counted as unplaced as well: the sum is
exact, and says less of when.

A range-less counter (a board's) that began anew while no agent ran and passed its old value is not told from one that
went on. What is counted is then less than what was spent, never more.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from joulegram_agent.state import AgentState, DomainState, Instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from joulegram_agent.counters import Accumulator

log = logging.getLogger(__name__)

AGENT_RESTART = "agent_restart"

SAVE_NS = 10_000_000_000
"""How often the state is saved."""


class Restart:
    """Carries counts from one agent to the next.

    Args:
        boot_id: of this boot.
        accumulators: by domain, not used yet.
        lasting: the source of each counter that goes on while no agent runs, by domain.
    """

    def __init__(self, boot_id: str, accumulators: Mapping[str, Accumulator], lasting: Mapping[str, str]) -> None:
        self._boot_id = boot_id
        self._accumulators = accumulators
        self._lasting = lasting
        self._absent: dict[str, DomainState] = {}

    def resume(self, state: AgentState, now: Instant, at_ns: int) -> frozenset[str]:
        """Take up a state before the first reading; the domains that go on.

        Args:
            state: what the agent before left.
            now: the instant of the first reading.
            at_ns: the same on the clock of the accumulators.
        """
        if state.boot_id != self._boot_id:
            return frozenset()
        ago_ns = max(0, now.since(state.at))
        for key, left in state.domains.items():
            accumulator = self._accumulators.get(key)
            if accumulator is None:
                log.warning("domain %s was counted before and is not there now: its totals are kept", key)
                silent_ns = left.counted.silent_ns + ago_ns
                self._absent[key] = replace(left, counted=replace(left.counted, silent_ns=silent_ns))
                continue
            known = left.source is not None and left.source == self._lasting.get(key)
            counted = left.counted
            if not known or left.max_range_uj != accumulator.domain.max_range_uj:
                counted = replace(counted, raw_uj=None)
            accumulator.resume(counted, at_ns - ago_ns, state.at.mono_ns)
        return frozenset(self._accumulators.keys() & state.domains.keys())

    def state(self, now: Instant, at_ns: int) -> AgentState:
        """What to leave, at the end of a window.

        Args:
            now: that instant.
            at_ns: the same on the clock of the accumulators, which began at 0 with the first reading.
        """
        domains = {
            key: DomainState(item.counted(at_ns), self._lasting.get(key), item.domain.max_range_uj)
            for key, item in self._accumulators.items()
        }
        for key, left in self._absent.items():
            silent_ns = left.counted.silent_ns + at_ns
            domains[key] = replace(left, counted=replace(left.counted, silent_ns=silent_ns))
        return AgentState(self._boot_id, now, domains)
