"""carbon-ops itself, at the version its lock pins, beside what joulegram says has the same names and fields."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from joulegram import CarbonEstimate, CarbonEstimator, EnergyLogger
from peers.build import PeerMissingError, interpreter, python_environment
from peers.energy.readers import ALL, pinned
from peers.energy.sessions import HERE
from simulators.sidecar import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get(ALL) != "all", reason=f"carbon-ops takes minutes: set {ALL}=all"),
]

START = datetime(2023, 5, 1, tzinfo=UTC)
INJECTED = {"cpu_reader", "gpu_reader", "rapl_reader", "memory_reader", "settings", "governor_client"}
ABSENT = {"get_available_regions"}
"""With `INJECTED`, what docs/sdk.md says is not there."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names carbon-ops has, as it says itself."""
    try:
        python = python_environment("carbon-ops", HERE / "locks" / "carbon-ops.txt", interpreter("3.12"))
    except PeerMissingError as error:
        pytest.skip(str(error))
    command = [str(python), str(HERE / "drivers" / "carbon_ops_names.py")]
    folder: Path = tmp_path_factory.mktemp("names")
    done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["version"] == pinned("carbon-ops")
    return found


def test_records_have_its_fields(theirs: dict[str, Any], tmp_path: Path) -> None:
    """S3-10: every field of a record, of its parts and of the energy of a monitored operation; ours may be more."""
    logger = EnergyLogger(socket=tmp_path / "none.sock", sysfs_root=tmp_path, model=False)
    with logger.monitor("work"):
        pass
    record = logger.metrics[-1]
    ours = {
        "record": record,
        **{name: record[name] for name in ("cpu", "memory", "energy")},
        "summary": logger.get_metrics_summary(),
    }
    logger.close()

    assert {name: set(theirs[name]) - set(found) for name, found in ours.items()} == {key: set() for key in ours}
    assert set(logger.get_cpu_metrics()) == set(theirs["cpu"])
    assert set(logger.get_memory_metrics()) == set(theirs["memory"])


def test_estimates_have_its_fields(theirs: dict[str, Any]) -> None:
    """S3-11: the dict, its `meta`, the dataclass in its order, and the event; no more and no less."""
    estimator = CarbonEstimator("SPP_KS")
    made = estimator.estimate_over_span(START, START + timedelta(hours=2), 1000.0, return_dataclass=True)
    assert isinstance(made, CarbonEstimate)
    ours = {
        "estimate": made.to_dict(),
        "meta": made.meta or {},
        "event": made.to_ndjson_event(),
        "equivalents": estimator.compare_carbon_equivalents(1.0),
        "label": estimator.get_carbon_label(1000.0),
    }

    assert {name: sorted(found) for name, found in ours.items()} == {name: theirs[name] for name in ours}
    assert [field.name for field in dataclasses.fields(CarbonEstimate)] == theirs["dataclass"]


@pytest.mark.parametrize("kind", [EnergyLogger, CarbonEstimator])
def test_methods_have_its_names_and_parameters(theirs: dict[str, Any], kind: type) -> None:
    """What its user calls, by position or by name, can be called here; what cannot is what docs/sdk.md names."""
    absent: set[str] = set()
    for name, parameters in theirs[kind.__name__].items():
        method = getattr(kind, name, None)
        if method is None:
            absent.add(name)
            continue
        ours = [each for each in inspect.signature(method).parameters if each != "self"]
        wanted = [each for each in parameters if each not in INJECTED]
        assert ours[: len(wanted)] == wanted, name

    assert absent <= ABSENT
