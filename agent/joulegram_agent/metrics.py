"""The agent's own metrics: every name in one place, in the Collector's habit (docs/agent.md lists them).

Invariants:
    * energy is as of the last published tick, like everything else that leaves the agent (PLATYPUS);
    * a domain of which nothing could be counted has no energy here, rather than 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_agent.exposition import Family, Sample, counter, gauge, histogram
from joulegram_agent.pulse import BOUNDS_S
from joulegram_pipeline.clock import Clock, SystemClock
from joulegram_pipeline.units import NS_PER_S, uj_to_j

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from joulegram_agent.local import LocalAgent
    from joulegram_agent.server import AgentServer

STALE_S = 10.0
"""A last tick older than this means that the agent hangs: it publishes one a second."""


class AgentMetrics:
    """What ``/metrics`` and ``/healthz`` say.

    Args:
        agent: whose sampling is told.
        server: its socket.
        version: of joulegram.
        clock: for the age of the last tick.
        more: further families: of containers, of the export. Called at every scrape, in the event loop: quick.
    """

    def __init__(
        self,
        agent: LocalAgent,
        server: AgentServer,
        version: str,
        *,
        clock: Clock | None = None,
        more: Iterable[Callable[[], Iterable[Family]]] = (),
    ) -> None:
        self._agent = agent
        self._server = server
        self._version = version
        self._clock = clock or SystemClock()
        self._began_ns = self._clock.mono_ns()
        self.more = list(more)

    def families(self) -> list[Family]:
        """All metrics as of now."""
        own = [*self._about(), *self._energy(), *self._sampling(), *self._socket()]
        return own + [family for source in self.more for family in source()]

    def problems(self) -> list[str]:
        """Why the agent does not do its work; empty where it does."""
        age_s = self._last_tick_age_s()
        waited_s = (self._clock.mono_ns() - self._began_ns) / NS_PER_S if age_s is None else age_s
        if waited_s > STALE_S:
            return [f"no tick for {waited_s:.0f} s, expected one each second"]
        return []

    def _last_tick_age_s(self) -> float | None:
        """Seconds since the last tick ended; 0 where the clock has been set back since."""
        at_ns = self._agent.sampler.totals.at_ns
        return None if at_ns is None else max(0, self._clock.wall_ns() - at_ns) / NS_PER_S

    def _about(self) -> Iterable[Family]:
        reader = self._agent.reader
        about = {"version": self._version, "source": reader.source, "method": reader.method.value}
        text = "1; the version of joulegram, where the energy comes from and how."
        yield gauge("joulegram_agent_build_info", text, [Sample(1, about)], *about)

    def _energy(self) -> Iterable[Family]:
        totals, domains = self._agent.sampler.totals, self._agent.reader.domains()
        labels = {domain.id: {"domain": domain.id, "kind": domain.kind.value} for domain in domains}

        def joules(counted_uj: Mapping[str, int]) -> list[Sample]:
            return [Sample(uj_to_j(counted_uj[key]), labels[key]) for key in labels if key in counted_uj]

        text = "Energy of the published ticks."
        yield counter("joulegram_agent_energy_joules_total", text, joules(totals.known_uj), "domain", "kind")
        unplaced = {key: uj for key, uj in totals.unplaced_uj.items() if uj}
        text = "Energy that was counted in windows that are gaps, and is in no tick."
        yield counter("joulegram_agent_unplaced_joules_total", text, joules(unplaced), "domain", "kind")
        gaps = [
            Sample(count, {"domain": key, "reason": reason})
            for key, reasons in totals.gaps.items()
            for reason, count in reasons.items()
        ]
        text = "Windows without energy, by the code of the reason."
        yield counter("joulegram_agent_energy_gaps_total", text, gaps, "domain", "reason")

    def _sampling(self) -> Iterable[Family]:
        pulse, age_s = self._agent.sampler.pulse, self._last_tick_age_s()
        yield counter("joulegram_agent_samples_total", "Sweeps over the counters.", [Sample(pulse.samples)])
        text = "Sweeps left out, because one before was slow or the process did not run."
        yield counter("joulegram_agent_missed_samples_total", text, [Sample(pulse.missed_samples)])
        text = "Seconds of one sweep over the counters."
        yield histogram("joulegram_agent_read_seconds", text, BOUNDS_S, pulse.reads_by_bound, pulse.read_ns / NS_PER_S)
        yield counter("joulegram_agent_ticks_total", "Ticks published.", [Sample(pulse.ticks)])
        age = [] if age_s is None else [Sample(age_s)]
        yield gauge("joulegram_agent_last_tick_age_seconds", "Seconds since the last tick ended.", age)
        named = [Sample(len(self._agent.sampler.trees.roots))]
        yield gauge("joulegram_agent_named_processes", "Processes whose CPU time is told apart.", named)
        cgroups = self._agent.sampler.cgroups
        tally = {} if cgroups is None else cgroups.tally
        text = "Cgroups by what became of them at the last read."
        yield gauge(
            "joulegram_agent_cgroups", text, [Sample(n, {"outcome": key}) for key, n in tally.items()], "outcome"
        )

    def _socket(self) -> Iterable[Family]:
        server, counts = self._server, self._server.counts

        def by(label: str, counted: Mapping[str, int]) -> list[Sample]:
            return [Sample(count, {label: key}) for key, count in counted.items()]

        yield gauge("joulegram_agent_connections", "Connections on the socket.", [Sample(server.connections)])
        yield gauge("joulegram_agent_subscriptions", "Connections told ticks.", [Sample(server.subscriptions)])
        text = "Connections of those who may ask."
        yield counter("joulegram_agent_accepted_connections_total", text, [Sample(counts.connections)])
        yield counter("joulegram_agent_requests_total", "Requests answered, by op.", by("op", counts.requests), "op")
        text = "Requests and connections refused, by code."
        yield counter("joulegram_agent_refusals_total", text, by("code", counts.refusals), "code")
        yield counter("joulegram_agent_events_total", "Lines told to subscribers.", [Sample(counts.events)])
        text = "Connections ended by the agent."
        yield counter("joulegram_agent_cut_off_connections_total", text, by("reason", counts.cut_off), "reason")
        denied = {str(uid): count for uid, count in counts.denied.items()}
        text = "Connections of users who may not ask; -1 for those beyond the first 64."
        yield counter("joulegram_agent_denied_connections_total", text, by("uid", denied), "uid")
