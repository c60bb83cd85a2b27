"""What carbon-ops calls things: one JSON object of the names a user of its logger and its estimator meets."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

carbon_ops: Any = importlib.import_module("carbon_ops")
models: Any = importlib.import_module("carbon_ops.carbon_models")

START = datetime(2023, 5, 1, tzinfo=UTC)


def methods(of: Any) -> dict[str, list[str]]:
    """The parameters of what is public of a class, and of its constructor."""
    found = {name: value for name, value in inspect.getmembers(of, callable) if not name.startswith("_")}
    found["__init__"] = of.__init__
    signatures = {name: inspect.signature(value).parameters for name, value in found.items()}
    return {name: [each for each in parameters if each != "self"] for name, parameters in signatures.items()}


def names() -> dict[str, Any]:
    logger = carbon_ops.EnergyLogger()
    record = logger.log_metrics("step", {"batch": 1})
    with logger.monitor("work"):
        pass
    ended = logger.metrics[-1]
    estimator = carbon_ops.CarbonEstimator()
    span = {"start_ts": START, "end_ts": START + timedelta(hours=2), "energy_wh": 1000.0}
    estimate = estimator.estimate_over_span(**span)
    made = estimator.estimate_over_span(**span, return_dataclass=True)
    return {
        "version": version("carbon-ops"),
        "record": sorted(record),
        "cpu": sorted(record["cpu"]),
        "memory": sorted(record["memory"]),
        "energy": sorted(ended["energy"]),
        "summary": sorted(logger.get_metrics_summary()),
        "estimate": sorted(estimate),
        "meta": sorted(estimate["meta"]),
        "dataclass": [field.name for field in dataclasses.fields(models.CarbonEstimate)],
        "event": sorted(made.to_ndjson_event()),
        "equivalents": sorted(estimator.compare_carbon_equivalents(1.0)),
        "label": sorted(estimator.get_carbon_label(1000.0)),
        "EnergyLogger": methods(carbon_ops.EnergyLogger),
        "CarbonEstimator": methods(carbon_ops.CarbonEstimator),
    }


sys.stdout.write(json.dumps(names()) + "\n")
