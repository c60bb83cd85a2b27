"""pyRAPL as its page says: `setup()`, then a `Measurement` around the job."""

from __future__ import annotations

import importlib
from typing import Any

from peers.energy.drivers.talk import talk

rapl: Any = importlib.import_module("pyRAPL")
measured: list[Any] = []


def begin() -> None:
    rapl.setup()
    measured.append(rapl.Measurement("job"))
    measured[0].begin()


def read() -> None:
    """It reads at the beginning and at the end only."""


def end() -> float:
    measured[0].end()
    result = measured[0].result
    return float(sum([*(result.pkg or []), *(result.dram or [])])) / 1e6


talk(begin, read, end)
