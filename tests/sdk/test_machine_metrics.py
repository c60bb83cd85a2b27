"""Looks at the machine: CPU, memory, GPUs by a compiled stand-in for NVML (S1-05, S1-19, S1-20, D-09)."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from joulegram.machine_metrics import cpu_metrics, gpu_metrics, gpu_power_watts, memory_metrics, sample_cpu_util_pct

if TYPE_CHECKING:
    from pathlib import Path


def test_cpu_utilisation_is_a_percentage() -> None:
    """Blocking for an interval, of all CPUs (D-12: it is used)."""
    found = sample_cpu_util_pct(0.05)
    assert found is not None
    assert 0 <= found <= 100


def test_samples_have_carbon_ops_names() -> None:
    """Percent, MHz and GB where psutil says them."""
    assert set(cpu_metrics()) == {"cpu_percent", "cpu_freq_mhz"}
    assert set(memory_metrics()) == {"memory_used_gb", "memory_percent", "memory_available_gb"}


def test_without_nvml_there_are_no_watts(tmp_path: Path) -> None:
    """None and no entry, not 0 W."""
    library = str(tmp_path / "libnvidia-ml.so.1")
    assert gpu_power_watts(library) is None
    assert gpu_metrics(library) == []


def test_without_psutil_everything_is_none() -> None:
    """A fresh interpreter that cannot import psutil (S0-16)."""
    code = (
        "import sys; sys.modules['psutil'] = None\n"
        "from joulegram.machine_metrics import *\n"
        "from joulegram.machine_metrics import cpu_metrics, memory_metrics, sample_cpu_util_pct\n"
        "print(sample_cpu_util_pct(0), {*cpu_metrics().values(), *memory_metrics().values()})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "None {None}", done.stderr
