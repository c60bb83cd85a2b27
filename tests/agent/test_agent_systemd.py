"""The unit and its helpers: every key is one, every flag the program's, and no system call of the agent is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from joulegram_agent import DEFAULT_SOCKET
from joulegram_agent.client import AgentClient
from joulegram_service import cli
from simulators.hwmon import SensorTree
from simulators.powercap import PowercapTree
from simulators.sidecar import JOULEGRAM, clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "agent" / "systemd"
UNIT = FOLDER / "joulegram-agent.service"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def settings() -> Iterator[tuple[str, str, str]]:
    """Section, key and value of each line of the unit."""
    section = ""
    for line in UNIT.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            yield section, key, value


def values(key: str) -> list[str]:
    return [value for _, name, value in settings() if name == key]


def test_what_is_started_is_ours_and_its_flags_exist() -> None:
    """ExecStart is a command of the program with flags it has, and the socket is where clients look for it."""
    (line,) = values("ExecStart")
    program, command, *arguments = line.split()
    agent = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]  # of a group
    flags = {name for parameter in agent.params for name in parameter.opts}
    assert Path(program).name == "joulegram"
    assert {word for word in arguments if word.startswith("--")} <= flags
    assert arguments[arguments.index("--socket") + 1] == str(DEFAULT_SOCKET)


def test_the_directory_of_the_socket_is_the_groups_alone() -> None:
    """The unit, sysusers.d and tmpfiles.d name one user, one group and one directory, closed to others."""
    (user,), (group,), (directory,), (mode,) = map(
        values, ("User", "Group", "RuntimeDirectory", "RuntimeDirectoryMode")
    )
    made = (FOLDER / "tmpfiles.d/joulegram.conf").read_text().splitlines()[-1].split()
    assert made == ["d", str(DEFAULT_SOCKET.parent), mode, user, group, "-"]
    assert f"/run/{directory}" == str(DEFAULT_SOCKET.parent)
    assert int(mode, 8) & 0o007 == 0
    assert (FOLDER / "sysusers.d/joulegram.conf").read_text().splitlines()[-1].split()[:3] == ["u", user, "-"]


def test_privileges_are_the_least() -> None:
    """docs/agent.md: one capability, in no other set than the bounding one, and a service that cannot gain any."""
    assert values("AmbientCapabilities") == values("CapabilityBoundingSet") == ["CAP_DAC_READ_SEARCH"]
    assert values("NoNewPrivileges") == ["yes"]
    assert values("User") == ["joulegram"]


def test_the_devices_it_reads_are_allowed() -> None:
    """Each by the name its driver has in /proc/devices, with the access it is opened for."""
    assert values("DevicePolicy") == ["closed"]
    assert {"char-cpu/msr r", "char-ipmidev rw", "char-nvidiactl rw"} <= set(values("DeviceAllow"))


@needs("systemd-analyze")
def test_systemd_takes_every_line(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing, with a program where the unit expects it; a key that is none it finds."""
    text = UNIT.read_text("utf-8").replace("/usr/bin/joulegram", shutil.which("true") or "")
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    checked = run("systemd-analyze", "verify", "--man=no", copy)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    copy.write_text(text.replace("RestrictRealtime=", "RestrictUnreal="))
    assert "RestrictUnreal" in run("systemd-analyze", "verify", "--man=no", copy).stderr


@needs("systemd-analyze")
def test_exposure_is_low() -> None:
    """`systemd-analyze security` rates what the unit leaves open: 2.2 of 10 with systemd 252."""
    rated = run("systemd-analyze", "security", "--offline=yes", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", rated.stdout)
    assert found is not None, rated.stderr
    assert float(found[1]) <= 2.5


@needs("systemd-sysusers")
def test_sysusers_makes_the_user(tmp_path: Path) -> None:
    """sysusers.d(5): a system user and a group of its name."""
    (tmp_path / "etc").mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", FOLDER / "sysusers.d/joulegram.conf")
    assert made.returncode == 0, made.stderr
    passwd = (tmp_path / "etc/passwd").read_text()
    assert re.search(r"^joulegram:.*:joulegram energy agent:/:/usr/sbin/nologin$", passwd, re.MULTILINE)
    assert re.search(r"^joulegram:", (tmp_path / "etc/group").read_text(), re.MULTILINE)


@needs("systemd-tmpfiles")
def test_tmpfiles_makes_the_directory(tmp_path: Path) -> None:
    """tmpfiles.d(5): the directory of the socket, with its mode."""
    if run("id", "-u").stdout.strip() != "0":
        pytest.skip("only root can give a directory to a user")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:::\njoulegram:x:991:991:::\n")
    (tmp_path / "etc/group").write_text("root:x:0:\njoulegram:x:991:\n")
    made = run("systemd-tmpfiles", "--create", f"--root={tmp_path}", FOLDER / "tmpfiles.d/joulegram.conf")
    assert made.returncode == 0, made.stderr
    about = (tmp_path / "run/joulegram").stat()
    assert (about.st_mode & 0o7777, about.st_uid, about.st_gid) == (0o750, 991, 991)


def members(name: str) -> set[str]:
    """The system calls of a set of systemd's, or the one of that name."""
    if not name.startswith("@"):
        return {name}
    listed = run("systemd-analyze", "syscall-filter", name).stdout.splitlines()[1:]
    found = {line.strip() for line in listed if line.strip() and not line.strip().startswith("#")}
    return set().union(*(members(each) for each in found))


def allowed() -> set[str]:
    """The system calls that the lines of the unit let through, in their order (systemd.exec(5), SystemCallFilter=)."""
    found: set[str] = set()
    for line in values("SystemCallFilter"):
        names = set().union(*(members(each) for each in line.removeprefix("~").split()))
        found = found - names if line.startswith("~") else found | names
    return found


@needs("strace")
@needs("setpriv")
@needs("systemd-analyze")
def test_every_system_call_of_the_agent_passes_the_filter() -> None:
    """As the unit starts it, with sensors, metrics, export and a client: no call that the filter would refuse."""
    if run("id", "-u").stdout.strip() != "0":
        pytest.skip("only root can start it as another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        tree = PowercapTree(folder / "sys")
        # Read in a thread: were it started before the capability is given up, the agent would not go on.
        SensorTree(tree.root).chip("power_meter", "ACPI000D:00", power1_average=210_000_000)
        lines = traced(folder, tree)
    started = max(number for number, line in enumerate(lines) if " execve(" in line and line.endswith("= 0"))
    called = {found[1] for line in lines[started + 1 :] if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"capset", "prctl", "bind", "pread64"} <= called
    assert called & {"clone", "clone3"}, "the sensors' thread"
    assert called - allowed() == set()
    assert {"perf_event_open", "ioctl", "poll"} <= allowed()


def traced(folder: Path, tree: PowercapTree) -> list[str]:
    """What strace wrote of an agent from its start to its end."""
    trace, path, said = folder / "trace", folder / "agent.sock", folder / "log"
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search"]
    as_user += ["--ambient-caps=+dac_read_search", "--bounding-set=-all,+dac_read_search"]
    flags = [f"--socket={path}", f"--sysfs-root={tree.root}", "--metrics=localhost:0"]
    flags += ["--otlp-endpoint=http://localhost:1", "--otlp-interval=1", "--hw-id=h"]
    command = ["strace", "-f", "-qq", "-o", str(trace), *as_user, *JOULEGRAM, "agent", *flags]
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", env=clean_environment(HOME="/"))
    try:
        wait_until(lambda: "OTLP: http" in said.read_text() or process.poll() is not None, "an export", 60, said)
        assert subprocess.run([sys.executable, "-c", ASK, path], capture_output=True).stdout == b"powercap\n"
    finally:
        for pid in {line.split()[0] for line in trace.read_text().splitlines() if " execve(" in line}:
            subprocess.run(["kill", "-TERM", pid], capture_output=True)
        process.wait(30)
    return trace.read_text().splitlines()


ASK = f"""
import asyncio, sys
from pathlib import Path
from {AgentClient.__module__} import AgentClient
async def body():
    async with AgentClient(Path(sys.argv[1])) as client:
        print((await client.hello())["source"])
asyncio.run(body())
"""
