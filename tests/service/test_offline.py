"""A run in a network namespace where there is nothing but loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Loopback is down in a new namespace: SIOCSIFFLAGS (0x8914) with IFF_UP | IFF_RUNNING on "lo", then the command.
LOOPBACK_ALONE = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
os.execv(sys.argv[1], sys.argv[1:])
"""


def alone(*command: str) -> list[str]:
    return ["unshare", "--net", sys.executable, "-c", LOOPBACK_ALONE, *command]


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(alone("/bin/true"), capture_output=True).returncode != 0,
    reason="this machine lets us make no network namespace",
)
def test_a_run_needs_no_network(tmp_path: Path) -> None:
    """S0-07, S0-08, S1-28: measured, priced from tables on disk and recorded where no address can be reached."""
    command = [sys.executable, "-m", "joulegram_service", "run", "--json", "--region", "SPP_KS", "--source", "model"]
    command += [
        "--data-dir",
        str(tmp_path / "data"),
        "--",
        sys.executable,
        "-c",
        "sum(i * i for i in range(4_000_000))",
    ]
    done = subprocess.run(alone(*command), capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    (span,) = summary["spans"]
    assert (span["name"], span["method"]) == ("etl.job", "modelled")
    assert span["gco2e"] > 0
    assert summary["totals"]["tables"][0].startswith("epa-egrid-subregion@")
