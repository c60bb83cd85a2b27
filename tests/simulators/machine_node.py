"""A machine at the end of a log, and all that came out of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.metrics import Metrics
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.join import CarbonModel
from joulegram_processor.machine import Machine
from joulegram_processor.machine_types import Settings
from joulegram_processor.runs import Identity
from simulators.decoded import attributes
from simulators.traces import T0, Log, S, spans_of, tick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_pipeline.records import Metadata, RunRecord
    from joulegram_processor.machine_types import Outputs

RUN = "run-one-0001"
OF_RUN = {"kfm.run_id": RUN}
FACTOR = StaticFactor("0.36", "utility bill 2025")  # 1 J is 100 ug


class Node:
    """A machine at the end of a log, and all that came out of it."""

    def __init__(self, carbon: CarbonModel | None = None, **settings: Any) -> None:
        self.log = Log()
        self.metrics = Metrics()
        identity = Identity("node-7f3a", "kfm-node", "co2e", None, FACTOR.source, (FACTOR.ref,))
        self.machine = Machine(Settings(**settings), carbon or CarbonModel(FACTOR), identity, self.log, self.metrics)
        self.lines: list[dict[str, Any]] = []
        self.sent: list[bytes] = []
        self.carried: list[Metadata] = []
        self.runs: list[RunRecord] = []
        self.archived: list[int] = []
        self.pids: set[int] = set()
        self._fed = self._seq = 0

    def feed(self) -> Node:
        """Feed what was appended to the log since the last call."""
        for record in self.log.records[self._fed :]:
            for out in self.machine.feed(record):
                self._take(out)
        self._fed = len(self.log.records)
        return self

    def tick(self, until_s: float, *, at_s: float | None = None, **made: Any) -> Node:
        """One tick from the last one's end; 1 J of CPU unless said otherwise."""
        self._seq += 1
        start = max(self.machine.store.watermark_ns, T0)
        domains = {"domains": made.pop("domains"), "reason": "no_source"} if "domains" in made else {"domains": None}
        energy = made or {"cpu_uj": 1_000_000}
        one = tick(self._seq, start, T0 + round(until_s * S), **energy)
        at = None if at_s is None else T0 + round(at_s * S)
        self.log.ticks(one, at=at, **{key: value for key, value in domains.items() if value is not None})
        return self.feed()

    def count(self, name: str, **labels: str) -> float:
        """The value of a counter."""
        return self.metrics.registry.get_sample_value(f"joulegram_{name}", labels) or 0.0

    def _take(self, out: Outputs) -> None:
        self.lines += [json.loads(f"{before}{between}{after}") for _, _, before, between, after in out.lines]
        self.lines += [dict(record) for record in out.records]
        self.sent += [item.body for item in out.forward]
        self.carried += [item.metadata for item in out.forward]
        self.runs += out.runs
        self.archived += [lsn for lsn, _ in out.ticks]
        self.pids |= out.pids

    def gained(self) -> Iterator[dict[str, Any]]:
        """The attributes of every span sent on."""
        return (attributes(one) for payload in self.sent for one in spans_of(payload))
