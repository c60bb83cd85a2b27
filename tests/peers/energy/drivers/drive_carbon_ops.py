"""carbon-ops' governor: one turn of its 10 Hz loop each time; its client adds up every domain it has."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from peers.energy.drivers.talk import talk

rapl: Any = importlib.import_module("carbon_ops.governor.rapl")
runtime: Any = importlib.import_module("carbon_ops.governor.runtime")
client: Any = importlib.import_module("carbon_ops.governor.client")
governors: list[Any] = []


def begin() -> None:
    root = Path(os.environ.get("POWERCAP_ROOT", "/sys/class/powercap"))
    governors.append(runtime.GovernorRuntime(rapl.create_rapl_topology(rapl.RaplTopologyConfig(base_path=root))))
    read()


def read() -> None:
    governors[0]._latest = governors[0]._poll_once()  # the body of its loop


def end() -> float:
    latest = governors[0].latest()
    return float(client.GovernorSnapshot(latest.timestamp, latest.totals_uj).total_energy_uj) / 1e6


talk(begin, read, end)
