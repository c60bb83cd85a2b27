"""The agent as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from joulegram_agent.main import open_agent
from joulegram_agent.standalone import command, main
from joulegram_pipeline.errors import ConfigError
from simulators.powercap import PowercapTree
from simulators.sidecar import JOULEGRAM, Agent


def test_command_has_what_was_given_and_nothing_else() -> None:
    """Our interpreter, no module from the folder it is started in, and the flags that are set."""
    given = {"socket": Path("/run/a b.sock"), "source": None, "processes": "all"}
    assert command(given) == [
        sys.executable,
        "-P",
        "-m",
        "joulegram_agent",
        "--socket=/run/a b.sock",
        "--processes=all",
    ]


@pytest.mark.parametrize("argument", ["--sokcet=/a", "--socket", "socket=/a", ""])
def test_unknown_argument_is_quoted(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, what was got and what may stand."""
    assert main([argument]) == 2
    assert f"got {argument!r}, expected one of --socket=VALUE, " in capsys.readouterr().err


def test_processes_that_are_neither_are_refused(tmp_path: Path) -> None:
    """The key and what may stand."""
    with pytest.raises(ConfigError, match="processes: got 'some', expected one of named, all"):
        open_agent("none", processes="some", cgroup_root=tmp_path)


@pytest.mark.parametrize("watts", [0, 100_001])
def test_limit_out_of_bounds_is_refused(tmp_path: Path, watts: int) -> None:
    """D-13: what was got and what may stand, from the command line too, which exits with 2."""
    expected = f"max_power_w: got {watts}, expected watts of one domain, from 1 to 100000"
    with pytest.raises(ConfigError, match=expected):
        open_agent("none", max_power_w=watts, cgroup_root=tmp_path)
    done = subprocess.run([*JOULEGRAM, "agent", f"--max-power={watts}"], capture_output=True, text=True, check=False)
    assert (done.returncode, expected in done.stderr) == (2, True)


def test_no_module_is_taken_from_the_working_directory(tmp_path: Path) -> None:
    """A privileged process that is started in somebody's folder runs nothing that lies there."""
    (tmp_path / "joulegram_agent.py").write_text("raise SystemExit(99)")
    done = subprocess.run(command({"source": "rapl"}), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "got 'rapl'" in done.stderr) == (2, True)


def test_nothing_but_the_agent_is_in_its_memory(tmp_path: Path) -> None:
    """`joulegram agent` leaves the command line's libraries behind, and OpenSSL, which it has no use for."""
    with Agent(tmp_path, PowercapTree(tmp_path / "powercap")) as agent:
        agent.wait_ready()
        assert agent.process is not None
        maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
        words = Path(f"/proc/{agent.process.pid}/cmdline").read_bytes().split(b"\0")
    assert words[1:4] == [b"-P", b"-m", b"joulegram_agent"]
    assert "_asyncio" in maps
    loaded = {Path(line.split()[-1]).name for line in maps.splitlines() if ".so" in line}
    foreign = ("_ssl", "libssl", "libcrypto", "_pydantic", "cygrpc", "_yaml", "orjson")
    assert not [name for name in loaded if name.startswith(foreign)]
