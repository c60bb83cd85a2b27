"""EnergyLogger: carbon-ops' names on joulegram's counts, with an agent, without one, and without anything (S3-01)."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from joulegram import CarbonEstimator, EnergyLogger
from joulegram_pipeline.errors import ConfigError
from simulators.powercap import PowercapTree
from simulators.sidecar import Agent, PowerTrace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORD = {
    *("timestamp", "operation", "cpu", "memory", "gpu", "total_estimated_power_watts", "additional_info"),
    *("timestamp_start", "timestamp_end", "energy"),
}
ENERGY = {
    *("duration_seconds", "avg_power_watts", "idle_baseline_watts", "calibration_version", "energy_wh_total"),
    *("energy_wh_active", "allocation_ratio", "attribution_mode", "cpu_energy_wh", "gpu_energy_wh"),
}
"""carbon-ops 0.1.1's `energy` of a monitored operation; tests/peers/energy asks carbon-ops itself."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from outside."""
    for name in [*os.environ]:
        if name.startswith(("KFM_", "JOULEGRAM_", "IDLE_", "CALIBRATION_")):
            monkeypatch.delenv(name)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[PowercapTree]:
    """A node that spends energy all the time."""
    made = PowercapTree(tmp_path / "node" / "sys")
    with PowerTrace(made, seed=9):
        yield made


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[EnergyLogger]:
    """A machine with nothing to measure with, and no model."""
    logger = EnergyLogger(socket=tmp_path / "none.sock", sysfs_root=tmp_path, model=False)
    yield logger
    logger.close()


def test_the_quick_start_of_carbon_ops_with_one_import_changed(tmp_path: Path, tree: PowercapTree) -> None:
    """Its README's lines, which fail there, run here (S3-10, S3-11)."""
    logger = EnergyLogger(socket=tmp_path / "none.sock", sysfs_root=tree.root)
    metric = logger.log_metrics("training_step")
    estimator = CarbonEstimator()
    record: Any = estimator.estimate_over_span(
        start_ts=metric["timestamp_start"],
        end_ts=metric["timestamp_end"],
        energy_wh=metric["energy"]["energy_wh_total"],
    )
    assert record.to_dict()["carbon_emissions_gco2"] > 0
    logger.close()


def test_with_an_agent(tmp_path: Path, tree: PowercapTree) -> None:
    """The mode is the agent's, the host's energy is whole, and the ratio is applied to nothing but said (S3-09)."""
    with Agent(tmp_path, tree) as agent:
        logger = EnergyLogger(socket=agent.wait_ready().socket)
        with logger.monitor("burn") as metric:
            until = time.monotonic() + 1.1
            while time.monotonic() < until:
                sum(range(1000))
        logger.close()
    energy = metric["energy"]
    assert metric["operation"] == "burn_end"
    assert energy.keys() >= ENERGY
    assert metric.keys() >= RECORD
    assert energy["attribution_mode"] == "governor_cpu_time"
    assert energy["energy_method"] == "measured"
    assert 0 < energy["allocation_ratio"] < 1
    assert energy["energy_wh_process"] == pytest.approx(
        energy["energy_wh_total"] * energy["allocation_ratio"], rel=1e-3
    )
    assert energy["avg_power_watts"] == pytest.approx(
        3600 * energy["energy_wh_total"] / energy["duration_seconds"], rel=0.01
    )


def test_records_follow_each_other_without_a_hole(tmp_path: Path, tree: PowercapTree) -> None:
    """Each record's energy begins where the last one's ended, at ticks' ends, so that all of them add up."""
    logger = EnergyLogger(socket=tmp_path / "none.sock", sysfs_root=tree.root)
    first, second = logger.log_metrics("a"), logger.log_metrics("b")
    logger.close()
    assert first["timestamp_end"] == second["timestamp_start"]
    assert datetime.fromisoformat(second["timestamp_end"]) > datetime.fromisoformat(second["timestamp_start"])
    assert first["energy"]["attribution_mode"] == "monitor_only"
    assert [record["operation"] for record in logger.metrics] == ["a", "b"]


def test_without_anything_it_goes_on(bare: EnergyLogger) -> None:
    """No socket, no powercap: `monitor_only`, energy None with its reason, no exception and no wait (S3-08, C-59)."""
    began = time.monotonic()
    metric = bare.log_metrics("step", {"epoch": 3})
    assert time.monotonic() - began < 1
    assert metric["energy"]["attribution_mode"] == "monitor_only"
    assert (metric["energy"]["energy_wh_total"], metric["energy"]["allocation_ratio"]) == (None, None)
    assert "none.sock" in metric["energy"]["energy_reason"]
    assert metric["additional_info"] == {"epoch": 3}
    assert metric["memory"]["memory_used_gb"] > 0
    assert bare.calibrate_idle(samples=1, interval=0.0) is None


def test_a_model_stands_in_and_says_so(tmp_path: Path) -> None:
    """By default a machine without counters gets modelled energy, called that (S1-18)."""
    logger = EnergyLogger(socket=tmp_path / "none.sock", sysfs_root=tmp_path)
    metric = asyncio.run(logger.log_metrics_async("step"))
    assert metric["energy"]["energy_method"] == "modelled"
    assert metric["energy"]["energy_wh_total"] > 0
    watts = asyncio.run(logger.calibrate_idle_async(samples=1))
    assert watts is not None
    assert logger.idle_baseline_watts == watts > 0
    assert logger.log_metrics("later")["energy"]["energy_wh_active"] < metric["energy"]["energy_wh_total"] * 10
    logger.close()


def test_an_exception_in_a_monitored_block_is_the_jobs(bare: EnergyLogger) -> None:
    """The record is taken all the same."""
    with pytest.raises(KeyError), bare.monitor("bad") as metric:
        raise KeyError
    assert metric["operation"] == "bad_end"
    assert metric["energy"]["duration_seconds"] >= 0


def test_history_summary_and_export(bare: EnergyLogger, tmp_path: Path) -> None:
    """carbon-ops' keys; what no record knew is None and not 0; the file is JSON."""
    assert bare.get_metrics_summary() == {"message": "No metrics collected yet"}
    bare.log_metrics("a")
    bare.export_metrics(tmp_path / "out.json")
    raw = json.loads((tmp_path / "out.json").read_text())
    assert raw["summary"]["total_measurements"] == len(raw["metrics"]) == 1
    assert raw["summary"]["average_power_watts"] is None
    assert raw["summary"]["gpu_monitoring_enabled"] is bool(raw["metrics"][0]["gpu"])


def test_what_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """IDLE_BASELINE_WATTS and CALIBRATION_VERSION as there; what is no number is quoted."""
    monkeypatch.setenv("CALIBRATION_VERSION", "v7")
    monkeypatch.setenv("IDLE_BASELINE_WATTS", "12.5")
    logger = EnergyLogger(socket=tmp_path / "none.sock", sysfs_root=tmp_path, model=False, history_limit=2)
    for name in "abc":
        logger.log_metrics(name)
    assert (logger.idle_baseline_watts, logger.calibration_version) == (12.5, "v7")
    assert [record["operation"] for record in logger.metrics] == ["b", "c"]
    logger.close()
    monkeypatch.setenv("IDLE_BASELINE_WATTS", "low")
    with pytest.raises(ConfigError, match="IDLE_BASELINE_WATTS: got 'low'"):
        EnergyLogger()
    with pytest.raises(ConfigError, match="history_limit: got 0"):
        EnergyLogger(history_limit=0)


def test_the_load_now_has_the_power_of_the_last_record(bare: EnergyLogger) -> None:
    """carbon-ops' `get_*_metrics`: the parts of a record, without one; power is not made up for an instant."""
    assert bare.get_cpu_metrics()["estimated_power_watts"] is None
    bare.metrics.append({"cpu": {"estimated_power_watts": 12.5}})
    assert bare.get_cpu_metrics()["estimated_power_watts"] == 12.5
    assert set(bare.get_memory_metrics()) == {"memory_used_gb", "memory_percent", "memory_available_gb"}
