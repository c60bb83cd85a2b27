"""The SDK's examples as a user runs them: alone, and the threaded one under `joulegram run`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from simulators.sidecar import clean_environment, ledger_lines, run_command

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    """What it prints; it must end well and say nothing on stderr."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_three_lines() -> None:
    """Joules with method, scope and duration; and three lines are what it takes."""
    assert re.fullmatch(r"\S+ J \((measured|modelled|mixed), process\) in \S+ s\n", run("three_lines"))
    code = (EXAMPLES / "three_lines.py").read_text().rpartition('"""')[2]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith("    ")]) == 3


def test_threaded_job_alone() -> None:
    """Two nodes at 1:3, within 3 points."""
    found = re.fullmatch(r"light (\d+)%, heavy (\d+)% of the CPU time\n", run("threaded_job", "--seconds=0.2"))
    assert found is not None
    assert abs(int(found[1]) - 25) <= 3


def test_asyncio_job_alone() -> None:
    """The node that waits has next to nothing, the one that parses its own, the one on a thread twice that."""
    said = run("asyncio_job", "--millis=100")
    spent = {name: int(millis) for name, millis in re.findall(r"etl\.node\.(\w+): (\d+) ms", said)}
    assert spent["fetch"] <= 15
    assert 100 <= spent["parse"] <= 130
    assert 200 <= spent["compress"] <= 230
    assert re.search(r"^etl\.job: \d+ ms", said, re.MULTILINE)


def test_threaded_job_under_run(tmp_path: Path) -> None:
    """Its spans arrive, below one root, in the run that `joulegram run` began."""
    done = run_command(
        tmp_path, "--source=model", "--", sys.executable, str(EXAMPLES / "threaded_job.py"), "--seconds=0.2"
    )
    assert done.returncode == 0, done.stderr
    lines = {line["name"]: line for line in ledger_lines(tmp_path / "data", "span")}
    assert set(lines) == {"etl.job", "etl.node.light", "etl.node.heavy"}
    assert len({line["trace_id"] for line in lines.values()}) == 1
