"""`pytest --joulegram` as a user runs it: a pytest of its own on a small suite, over a real agent or a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from joulegram.pytest_plugin import split_by_cpu
from joulegram.window import TickEnergy
from joulegram_pipeline.energy import Method

if TYPE_CHECKING:
    from pathlib import Path

S = 1_000_000_000
SUITE = """
import time

def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

def test_light():
    burn(0.05)

def test_heavy():
    burn(0.5)

def test_asleep():
    time.sleep(0.2)

def test_fails():
    burn(0.05)
    assert False
"""
ROW = re.compile(r"^\s*(\S+) J\s+(\S+) g\s+(.+)$", re.MULTILINE)


def run(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_suite.py").write_text(SUITE)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KFM_", "JOULEGRAM_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *flags], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)


def test_joules_and_grams_of_each_test_and_in_all(tmp_path: Path) -> None:
    """Rows by energy, heaviest first; method, scope and what the grams rest on; pytest's own outcome is unchanged."""
    done = run(tmp_path, "--joulegram", "--joulegram-region=SPP_KS", f"--joulegram-socket={tmp_path / 'none.sock'}")
    rows = {name: (float(joules), float(grams)) for joules, grams, name in ROW.findall(done.stdout)}
    tests = [name for name in rows if name.startswith("test_suite.py::")]

    assert done.returncode == 1, "test_fails fails"
    assert "1 failed, 3 passed" in done.stdout
    assert tests[0] == "test_suite.py::test_heavy"
    assert set(tests) == {f"test_suite.py::test_{name}" for name in ("light", "heavy", "asleep", "fails")}
    assert rows["test_suite.py::test_asleep"][0] < 0.1 * rows["test_suite.py::test_heavy"][0]
    total_j, total_g = rows["all of the session, 4 tests"]
    # A row shows three digits.
    assert sum(rows[name][0] for name in tests) <= total_j * 1.02
    assert total_g == pytest.approx(total_j / 3.6e6 * 393.6, rel=0.02)
    assert re.search(r"method (modelled|measured), scope process; grams: egrid:SPNO, epa-egrid", done.stdout)


def test_without_a_region_grams_are_not_known(tmp_path: Path) -> None:
    """A question mark and what to set; there is no average."""
    done = run(tmp_path, "--joulegram", f"--joulegram-socket={tmp_path / 'none.sock'}")
    assert {grams for _, grams, _ in ROW.findall(done.stdout)} == {"?"}
    assert "no region: set JOULEGRAM_REGION" in done.stdout


def test_it_is_off_by_default(tmp_path: Path) -> None:
    """No section, and nothing of the SDK but the plugin itself is loaded."""
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "def pytest_unconfigure():\n"
        "    print('loaded', sorted(m for m in sys.modules if m.startswith('joulegram')))\n"
    )
    done = run(tmp_path)
    assert "1 failed, 3 passed" in done.stdout
    assert " J " not in done.stdout
    assert "loaded ['joulegram', 'joulegram.pytest_plugin']" in done.stdout


@dataclass
class Ticks:
    """A meter that has these ticks."""

    kept: list[TickEnergy]

    def ticks(self, start_ns: int, end_ns: int) -> list[TickEnergy]:
        return [tick for tick in self.kept if tick.start_ns < end_ns and tick.end_ns > start_ns]


def tick(number: int, process_uj: int | None, cpu_ns: int) -> TickEnergy:
    return TickEnergy(number * S, (number + 1) * S, process_uj, process_uj, None, cpu_ns, Method.MEASURED, ())


def test_a_tick_is_split_by_the_cpu_time_of_the_tests_in_it() -> None:
    """1:3 in one tick, what no test spent to none, a test over two ticks from both; not known is nothing."""
    meter = Ticks([tick(0, 8_000_000, S), tick(1, 2_000_000, S), tick(2, None, S)])
    tests = [
        ("one", 0, S // 4, S // 8),
        ("three", S // 4, S // 2, 3 * S // 8),
        ("over the edge", S // 2, S + S // 2, S // 2),
        ("unknown", 2 * S, 3 * S, S),
    ]
    spent = split_by_cpu(meter, tests)  # type: ignore[arg-type]
    assert spent == [1_000_000, 3_000_000, 2_000_000 + 500_000, 0]
    assert split_by_cpu(meter, []) == []  # type: ignore[arg-type]


def test_tests_that_say_more_than_the_tick_share_it() -> None:
    """CPU clocks differ by a jiffy: no more is given than there is."""
    meter = Ticks([tick(0, 6_000_000, S // 10)])
    spent = split_by_cpu(meter, [("a", 0, S // 2, S // 10), ("b", S // 2, S, S // 5)])  # type: ignore[arg-type]
    assert spent == pytest.approx([2_000_000, 4_000_000])
