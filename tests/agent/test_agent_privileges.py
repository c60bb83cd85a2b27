"""Privileges given up after all is open: read from the kernel, in real processes started as root."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from joulegram_agent.privileges import Identity, drop, identity_of, what_remains
from joulegram_pipeline.errors import ConfigError
from simulators.powercap import PowercapTree
from simulators.sidecar import Agent, wait_until

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
NEEDS_SETPRIV = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv of util-linux is not installed")
NOBODY = pwd.getpwnam("nobody")
NOTHING = "0000000000000000"


def status_of(text: str) -> dict[str, list[str]]:
    return {key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines())}


@NEEDS_ROOT
def test_an_agent_goes_on_without_privileges(tmp_path: Path) -> None:
    """Issue 5, deliver 4: as nobody, without a capability and no way back, it reads root's counters and serves."""
    tree = PowercapTree(tmp_path / "sys")
    tmp_path.chmod(0o700)
    with Agent(tmp_path, tree, "--user=nobody", "--metrics=127.0.0.1:0") as agent:
        agent.wait_ready()
        assert agent.process is not None
        status = status_of(Path(f"/proc/{agent.process.pid}/status").read_text())
        about = agent.socket.stat()
        port = agent.said.partition("/healthz on 127.0.0.1, port ")[2].split()[0]
        tree.advance({"package-0": 5_000_000})

        def measured() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                return b'domain="package-0",kind="cpu"} 5\n' in page.read()

        wait_until(measured, "energy after the drop", log=agent.log)
        assert agent.stop() == 0
    assert status["Uid"] == [str(NOBODY.pw_uid)] * 4
    assert status["Gid"] == [str(NOBODY.pw_gid)] * 4
    assert status["Groups"] == [str(NOBODY.pw_gid)]
    assert [status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [[NOTHING]] * 5
    assert status["NoNewPrivs"] == ["1"]
    assert (about.st_uid, about.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert "running as user 65534, without capabilities" in agent.said


LEFT = """
import os, sys, threading
from joulegram_agent.privileges import drop, identity_of
from joulegram_pipeline.errors import JoulegramError
held = os.open(sys.argv[1], os.O_RDONLY)
if "thread" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    print("dropped", drop(identity_of(*(["nobody", None] if "nobody" in sys.argv else [None, None]))))
except JoulegramError as error:
    print(error)
    sys.exit(3)
print("held", os.pread(held, 9, 0))
for what in (lambda: os.open(sys.argv[1], os.O_RDONLY), lambda: os.setuid(0)):
    try:
        what()
        print("allowed")
    except PermissionError:
        print("refused")
"""


@pytest.fixture
def root_file(tmp_path: Path) -> Path:
    """A file as the kernel shows counters: root's, mode 0400."""
    path = tmp_path / "energy_uj"
    path.write_text("123456789")
    path.chmod(0o400)
    return path


@NEEDS_ROOT
@pytest.mark.parametrize("more", [[], ["thread"]], ids=["alone", "beside a thread"])
def test_what_is_open_stays_and_nothing_new_opens(root_file: Path, more: list[str]) -> None:
    """After the drop an open counter is read on, it cannot be opened again, and root cannot be had back."""
    run = subprocess.run([sys.executable, "-c", LEFT, root_file, "nobody", *more], capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["dropped True", "held b'123456789'", "refused", "refused"]


AS_THE_UNIT = [
    "setpriv",
    f"--reuid={NOBODY.pw_uid}",
    f"--regid={NOBODY.pw_gid}",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
]


@NEEDS_ROOT
@NEEDS_SETPRIV
def test_an_ambient_capability_is_given_up_too(root_file: Path) -> None:
    """agent/systemd: as its user with CAP_DAC_READ_SEARCH alone, it opens root's file and keeps no capability."""
    run = subprocess.run([*AS_THE_UNIT, sys.executable, "-c", LEFT, root_file], capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.splitlines() == ["dropped True", "held b'123456789'", "refused", "refused"]


@NEEDS_ROOT
@NEEDS_SETPRIV
def test_a_thread_that_keeps_a_capability_ends_the_agent(root_file: Path) -> None:
    """capabilities(7): they are a thread's; one that still has some is found, and the agent does not go on."""
    line = [*AS_THE_UNIT, sys.executable, "-c", LEFT, str(root_file), "thread"]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 3
    assert re.search(r"privileges are not gone.*thread \d+ has CapEff 0000000000000004", run.stdout)


def test_what_remains_is_told_in_words(tmp_path: Path) -> None:
    """Each of what should be gone, by thread: capabilities, users, groups."""
    good = {"Uid": "5\t5\t5\t5", "Gid": "6\t6\t6\t6", "Groups": "6 "}
    good |= dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), NOTHING)
    bad = {"CapPrm": "0000000000000004", "Uid": "5\t5\t0\t5", "Groups": "6 27"}
    for number, status in enumerate([good, *({**good, key: value} for key, value in bad.items())], start=1):
        folder = tmp_path / f"self/task/{number}"
        folder.mkdir(parents=True)
        (folder / "status").write_text("".join(f"{key}:\t{value}\n" for key, value in status.items()))
    assert what_remains(Identity(5, 6), tmp_path) == [
        "thread 2 has CapPrm 0000000000000004",
        "thread 3 has users 5 5 0 5, expected 5 alone",
        "thread 4 has groups 6 6 6 6 6 27, expected 6 alone",
    ]
    assert what_remains(Identity(), tmp_path) == ["thread 2 has CapPrm 0000000000000004"]


@NEEDS_ROOT
def test_root_that_shall_stay_root_stays() -> None:
    """Without --user root keeps what it has: a container whose runtime has dropped the rest, say."""
    before = Path("/proc/self/status").read_text().partition("CapInh")[2].partition("Seccomp")[0]
    assert drop(Identity(None, 5)) is False
    assert Path("/proc/self/status").read_text().partition("CapInh")[2].partition("Seccomp")[0] == before


def test_users_and_groups_by_name_and_number() -> None:
    """A name, its number, a number that nobody has beside a group; the group of the user unless another is named."""
    nogroup = grp.getgrgid(NOBODY.pw_gid).gr_name
    assert identity_of(None, None) == Identity()
    assert identity_of("nobody", None) == identity_of(str(NOBODY.pw_uid), None) == Identity(*NOBODY[2:4])
    assert identity_of("nobody", "0") == Identity(NOBODY.pw_uid, 0)
    assert identity_of("4000000001", nogroup) == Identity(4_000_000_001, NOBODY.pw_gid)
    assert identity_of(None, nogroup) == Identity(None, NOBODY.pw_gid)
    assert (Identity().owner, Identity(5, 6).owner) == ((-1, -1), (5, 6))


@pytest.mark.parametrize(("user", "group", "key"), [("no-such", None, "--user"), ("4000000001", None, "--user")])
def test_a_user_that_is_not_there_is_quoted(user: str, group: str | None, key: str) -> None:
    """A number without an entry has no group of its own: the error says that --group is wanted."""
    with pytest.raises(ConfigError, match=f"{key}: got '{user}', expected a user of this machine, or a number with"):
        identity_of(user, group)


@NEEDS_ROOT
@NEEDS_SETPRIV
def test_who_may_not_change_its_user_is_told(root_file: Path) -> None:
    """Started as an ordinary user with another --user: an error that names the flag, before it serves."""
    ordinary = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--inh-caps=-all,+dac_read_search"]
    line = [*ordinary, "--ambient-caps=+dac_read_search", sys.executable, "-c", LEFT, str(root_file), "nobody"]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 3
    assert "--user: got '65534:65534', expected to be started as root" in run.stdout
