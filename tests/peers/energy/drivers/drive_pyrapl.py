"""pyRAPL as its page says: `setup()`, then a `Measurement` around the job."""

from __future__ import annotations

import importlib
from typing import Any

from talk import talk

pyRAPL: Any = importlib.import_module("pyRAPL")
measured: list[Any] = []


def begin() -> None:
    pyRAPL.setup()
    measured.append(pyRAPL.Measurement("job"))
    measured[0].begin()


def read() -> None:
    """It reads at the beginning and at the end only."""


def end() -> float:
    measured[0].end()
    result = measured[0].result
    return sum([*(result.pkg or []), *(result.dram or [])]) / 1e6


talk(begin, read, end)
