"""What a job pays for importing joulegram, and the names it gets."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module

import pytest

import joulegram

LIGHT = """
import json, sys
before = set(sys.modules)
import {module}
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(tops - set(sys.stdlib_module_names))))
"""


def imported_by(module: str) -> list[str]:
    """Top-level modules beyond the standard library that a fresh interpreter loads for `module`."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(module=module)], capture_output=True, text=True, check=True, timeout=60
    )
    found: list[str] = json.loads(done.stdout)
    return found


def test_importing_joulegram_loads_nothing_else() -> None:
    """`import joulegram` brings in itself and the standard library."""
    assert imported_by("joulegram") == ["joulegram"]


PARTS = (
    *("otel", "snapshot", "recorder", "telemetry", "energy_logger", "carbon_estimator", "carbon_models", "intensity"),
    *("nodes", "machine_metrics", "meter", "ipython", "report", "cpu_account", "cpu_watch"),
)


@pytest.mark.parametrize("module", [f"joulegram.{part}" for part in PARTS])
def test_importing_a_part_loads_no_dependency(module: str) -> None:
    """OpenTelemetry, gRPC and psutil are loaded by the call that needs them, not by the import (D-20, D-25)."""
    assert set(imported_by(module)) <= {"joulegram", "joulegram_agent", "joulegram_pipeline"}


HEAVY = ("asyncio", "ssl", "subprocess", "concurrent.futures", "http", "email")


@pytest.mark.parametrize("name", ["EnergyRecorder", "EnergyLogger", "CarbonEstimator", "etl_node", "take_snapshot"])
def test_a_name_loads_nothing_heavy_of_the_standard_library(name: str) -> None:
    """An event loop costs more to import than all of the SDK; who awaits has it loaded already."""
    code = f"import sys; from joulegram import {name}; print([one for one in {HEAVY!r} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_importing_joulegram_takes_less_than_a_tenth_of_a_second() -> None:
    """The quickest of three fresh interpreters, less what an empty one takes."""

    def quickest_s(code: str) -> float:
        took = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
            took.append(time.perf_counter() - began)
        return min(took)

    assert quickest_s("import joulegram") - quickest_s("pass") < 0.1


def test_every_name_promised_is_there() -> None:
    """Each of `__all__` (S0-17 to S0-22, S0-27 to S0-29, S1-18 to S1-20, S3-10, S3-11) is what its home defines."""
    for name in joulegram.__all__:
        if name != "__version__":
            home = import_module(joulegram._HOMES[name])
            assert getattr(joulegram, name) is getattr(home, name), name
    assert set(joulegram.__all__) == {*joulegram._HOMES, "__version__"}


def test_two_names_of_the_seed_are_one() -> None:
    """What the seeds call differently is the same thing here."""
    assert joulegram.TelemetryRecorder is joulegram.EnergyRecorder
    assert joulegram.read_cpu_energy_joules is joulegram.read_intel_rapl_energy_joules


def test_it_can_be_imported_where_linux_is_not() -> None:
    """Called macOS, without /proc and /sys, every name is there and a recorder says that there is nothing."""
    code = (
        "import sys; sys.platform = 'darwin'\n"
        "import joulegram, pathlib\n"
        "for name in joulegram.__all__: getattr(joulegram, name)\n"
        "with joulegram.EnergyRecorder(socket='/nowhere/agent.sock', sysfs_root=pathlib.Path('/nowhere')) as r: pass\n"
        "print(r.result.energy_method)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "unavailable"), done.stderr


def test_a_name_that_is_not_promised_is_an_attribute_error() -> None:
    """The lazy lookup says what was asked for, as any module does."""
    with pytest.raises(AttributeError, match="'joulegram' has no attribute 'jules_per_kwh'"):
        joulegram.jules_per_kwh  # noqa: B018 - the access is the test
