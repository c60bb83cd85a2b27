"""The processor in Python alone, as where there is no C compiler; where there is one it is used, by the SDK too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joulegram import native as native_of_the_sdk
from joulegram_processor import native

if TYPE_CHECKING:
    from types import ModuleType

BOTH = [pytest.param(native, id="processor"), pytest.param(native_of_the_sdk, id="sdk")]
HERE = Path(__file__).parent
PARTS = (
    "test_attribution.py",
    "test_attribution_known.py",
    "test_join_columns.py",
    "test_machine.py",
    "test_machine_energy.py",
    "test_machine_known.py",
    "test_machine_runs.py",
    "test_select_spans.py",
    "test_wire.py",
)


@pytest.mark.timeout(600)
def test_the_processor_passes_its_tests_without_the_native_part() -> None:
    """The references are not only what the C is compared with: they do the whole work, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in PARTS)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=HERE.parents[1], env=os.environ | {native.VARIABLE: "0"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("part", BOTH)
def test_the_native_part_is_built_where_it_can_be(part: ModuleType) -> None:
    """A compiler that is there and does not make it is a defect, not a reason to be slow."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None or not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip(f"no C compiler {compiler!r}, or no Python.h")
    assert part.BUILT


@pytest.mark.parametrize("part", BOTH)
def test_the_variable_leaves_it_aside(part: ModuleType) -> None:
    """JOULEGRAM_NATIVE=0 is Python alone."""
    code = f"import {part.__name__} as native; print(native.LOADED, native.state())"
    shown = subprocess.run([sys.executable, "-c", code], env={native.VARIABLE: "0"}, capture_output=True, text=True)
    assert shown.stdout.strip() == "None off: JOULEGRAM_NATIVE is 0"
