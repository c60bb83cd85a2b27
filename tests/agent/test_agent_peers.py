"""Who may ask: the kernel's word of the peer, beside the mode of the file."""

from __future__ import annotations

import asyncio
import errno
import grp
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_agent.conversation import MAX_DENIED_USERS, Counts
from joulegram_agent.main import Outside, run_agent
from joulegram_agent.peers import SO_PEERGROUPS, Allowed, Peer, group_number, peer_of
from joulegram_pipeline.errors import AgentError, ConfigError
from simulators.agent_node import converse, request, served, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_agent.peers import Connection

STRANGER, OTHER_GROUP, LISTED = 4_000_000_001, 4_000_000_002, 4_000_000_003

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

ASK = """
import json, os, socket, sys
path, asked, user, group, groups = sys.argv[1:]
os.setgroups(json.loads(groups))
os.setresgid(int(group), int(group), int(group))
os.setresuid(int(user), int(user), int(user))
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(path)
    try:
        peer.sendall(asked.encode())
        peer.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        pass  # the agent has answered and closed without reading
    try:
        while data := peer.recv(65536):
            sys.stdout.write(data.decode())
    except ConnectionResetError:
        pass
"""


async def ask_as(path: Path, user: int, group: int, *groups: int) -> tuple[int, str, str]:
    """A process of another user asks hello; its exit status and what it wrote to stdout and stderr."""
    arguments = [str(path), request("hello").decode(), str(user), str(group), json.dumps(groups)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-ISc", ASK, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def test_the_kernel_says_who_we_are() -> None:
    """S3-03: of a real socket, the peer's user and all its groups."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours) == Peer(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


@pytest.mark.parametrize("number", [errno.ENOPROTOOPT, errno.ERANGE, errno.EINVAL])
def test_groups_the_kernel_does_not_tell_are_not_guessed(number: int) -> None:
    """Before Linux 4.13, or with more groups than fit, the effective group alone counts."""

    class Old:
        def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
            if option == SO_PEERGROUPS:
                raise OSError(number, "no")
            return struct.pack("=iII", 1, 1000, 1001)

    assert peer_of(Old()) == Peer(1000, frozenset({1001}))


ADMITTED = [
    (Peer(0, frozenset({5})), True),
    (Peer(STRANGER, frozenset({5})), False),
    (Peer(STRANGER, frozenset({77})), True),
    (Peer(STRANGER, frozenset({5, 77})), True),
    (Peer(STRANGER, frozenset({5, LISTED})), True),
    (Peer(os.geteuid(), frozenset({5})), True),
    (Peer(77, frozenset({0})), False),
]


@pytest.mark.parametrize(("peer", "expected"), ADMITTED, ids=str)
def test_who_may_ask(peer: Peer, expected: bool) -> None:
    """S3-03: root, the agent's own user, the socket's group in any of the peer's, the groups listed; nobody else."""
    assert Allowed(frozenset({LISTED})).admits(peer, 77) is expected


def test_a_group_is_a_name_or_a_number() -> None:
    """A group that is not there is an error that quotes the flag and the name."""
    known = grp.getgrgid(os.getgid())
    assert group_number("--group", known.gr_name) == group_number("--group", str(known.gr_gid)) == known.gr_gid
    with pytest.raises(ConfigError, match="--allow-group: got 'nobody-has-this', expected a group"):
        group_number("--allow-group", "nobody-has-this")


def test_a_stranger_is_told_so_closed_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S3-03: `denied` and nothing else, before anything was asked; in the log and the counts stands the uid."""

    def stranger(_: Connection) -> Peer:
        return Peer(STRANGER, frozenset({OTHER_GROUP}))

    async def body() -> tuple[list[dict[str, Any]], Counts]:
        async with served(tmp_path, who=stranger) as (node, server):
            return await converse(node.path), server.counts

    lines, counts = asyncio.run(body())
    assert [line["error"]["code"] for line in lines] == ["denied"]
    assert (counts.denied, counts.connections, counts.requests) == ({STRANGER: 1}, 0, {})
    assert counts.refusals == {"denied": 1}
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"user {STRANGER} may not ask: it is in no group that may"
    ]


def test_denied_users_are_counted_in_bounds() -> None:
    """However many strangers there are, the count tells no more than 64 apart, and loses none."""
    counts = Counts()
    for uid in range(200):
        counts.deny(uid)
        counts.deny(0)
    assert len(counts.denied) == MAX_DENIED_USERS + 1
    assert sum(counts.denied.values()) == counts.refusals["denied"] == 400
    assert counts.denied[-1] == 200 - MAX_DENIED_USERS


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


CALLERS = [
    ((STRANGER, OTHER_GROUP), "denied"),
    ((STRANGER, 77_001), None),
    ((STRANGER, OTHER_GROUP, LISTED + 1, 77_001), None),
    ((STRANGER, OTHER_GROUP, LISTED), None),
    ((0, OTHER_GROUP), None),
]


@NEEDS_ROOT
@pytest.mark.parametrize(("who", "code"), CALLERS, ids=["stranger", "group", "supplementary", "listed", "root"])
def test_real_processes_of_other_users(open_folder: Path, who: tuple[int, ...], code: str | None) -> None:
    """S3-03: with the socket opened to all by somebody's chmod, those who may still may and the stranger may not."""

    async def body() -> tuple[int, str, str]:
        allowed = Allowed(frozenset({LISTED}))
        async with served(open_folder, owner=(-1, 77_001), allowed=allowed) as (node, _):
            node.path.chmod(0o666)
            return await ask_as(node.path, *who)

    status, out, err = asyncio.run(body())
    assert (status, err) == (0, "")
    assert json.loads(out).get("error", {}).get("code") == code


@NEEDS_ROOT
def test_the_flags_name_who_may_ask(open_folder: Path) -> None:
    """docs/agent.md: --group gives the socket to a group, --allow-group lets another in; one in neither is denied."""
    path = open_folder / "agent.sock"

    async def body() -> list[str]:
        outside = Outside(group="77001", allow_groups=(str(LISTED),))
        task = asyncio.create_task(run_agent(path, "none", outside=outside))
        await until(path.exists)
        path.chmod(0o666)
        asked = [await ask_as(path, STRANGER, group) for group in (77_001, LISTED, OTHER_GROUP)]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [json.loads(out).get("error", {}).get("code") for _, out, _ in asked]

    assert asyncio.run(body()) == [None, None, "denied"]


@NEEDS_ROOT
def test_the_file_keeps_strangers_out_before_they_are_asked(open_folder: Path) -> None:
    """S3-03: without that chmod a stranger cannot even connect, and the socket belongs to whom it was given."""

    async def body() -> tuple[tuple[int, str, str], os.stat_result]:
        async with served(open_folder, owner=(STRANGER, 77_001)) as (node, server):
            asked = await ask_as(node.path, 12_345, 12_345)
            assert server.counts.denied == {}
            return asked, node.path.stat()

    (status, _, err), about = asyncio.run(body())
    assert status != 0
    assert "PermissionError" in err
    assert (about.st_uid, about.st_gid) == (STRANGER, 77_001)


def test_a_socket_that_may_not_be_given_away_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not give the socket to the group is told by the flag, and no socket stays behind."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)

    async def body() -> None:
        async with served(tmp_path, owner=(-1, 77_001)):
            raise AgentError("it was given away")

    with pytest.raises(ConfigError, match=r"--group: got '-1:77001'"):
        asyncio.run(body())
    assert not (tmp_path / "agent.sock").exists()
