"""What a job pays for importing joulegram, and the names it gets (S0-17 to S0-21)."""

from __future__ import annotations

import json
import subprocess
import sys
import time

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


@pytest.mark.parametrize("module", ["joulegram.otel", "joulegram.snapshot"])
def test_importing_a_part_loads_no_dependency(module: str) -> None:
    """OpenTelemetry, gRPC and psutil are loaded by the call that needs them, not by the import (D-20, D-25)."""
    assert set(imported_by(module)) <= {"joulegram", "joulegram_agent", "joulegram_pipeline"}


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
    """`__all__` holds the names of S0-17 to S0-21, and each is what its room defines."""
    from joulegram_agent import powercap
    from joulegram_pipeline import clock, files, units

    promised = {name: getattr(joulegram, name) for name in joulegram.__all__}
    assert promised.pop("__version__") == joulegram.__version__
    assert promised == {
        "JOULES_PER_KWH": units.JOULES_PER_KWH,
        "joules_to_kwh": units.joules_to_kwh,
        "read_intel_rapl_energy_joules": powercap.read_intel_rapl_energy_joules,
        "safe_mkdir": files.safe_mkdir,
        "utc_now_iso": clock.utc_now_iso,
    }


def test_a_name_that_is_not_promised_is_an_attribute_error() -> None:
    """The lazy lookup says what was asked for, as any module does."""
    with pytest.raises(AttributeError, match="'joulegram' has no attribute 'jules_per_kwh'"):
        joulegram.jules_per_kwh  # noqa: B018 - the access is the test
