"""Gives up what was needed to open the counters, for good, and looks whether it is gone (capabilities(7)).

Invariants:
    * after `drop` no thread holds a capability, none can be had back, not even by executing a set-user-id file;
    * it is the kernel's word that counts: /proc says so for every thread, or the agent does not go on.

What is open stays open: powercap files, MSR devices and perf events are read through their descriptors, whose
permission was asked when they were opened. What would have to be opened anew is refused then: the MSR device of
another CPU, when the one in use goes offline.
"""

from __future__ import annotations

import os
import pwd
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.peers import group_number
from joulegram_pipeline.errors import ConfigError, JoulegramError

if TYPE_CHECKING:
    import ctypes

# Linux include/uapi/linux/prctl.h and capability.h.
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64
"""More than there are; the kernel says EINVAL for those it does not know."""

_NOTHING_LEFT = ("CapInh", "CapPrm", "CapEff", "CapAmb")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the agent becomes, and whose group the socket is.

    Args:
        uid: None stays who it is.
        gid: of the process, where `uid` is given, and of the socket; None stays what it is.
    """

    uid: int | None = None
    gid: int | None = None

    @property
    def owner(self) -> tuple[int, int]:
        """For chown: -1 keeps what is."""
        return (-1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid)


def identity_of(user: str | None, group: str | None) -> Identity:
    """Look names up, as long as that is possible.

    Args:
        user: of ``--user``: a name, or a number where ``--group`` is given or the number has an entry.
        group: of ``--group``; the user's own where there is none.

    Raises:
        ConfigError: there is no such user or group, or a number whose group is not known.
    """
    gid = None if group is None else group_number("--group", group)
    if user is None:
        return Identity(None, gid)
    numbered = user.isascii() and user.isdigit() and len(user) <= 10
    try:
        entry = pwd.getpwuid(int(user)) if numbered else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if numbered and gid is not None:
            return Identity(int(user), gid)
        expected = "a user of this machine, or a number with --group"
        raise ConfigError("--user", user, expected) from None
    return Identity(entry.pw_uid, entry.pw_gid if gid is None else gid)


def drop(identity: Identity) -> bool:
    """Become that user and give up every capability; False if there was nothing to do: root that shall stay root.

    1. The bounding set is emptied while CAP_SETPCAP is held: no file's capability can come back.
    2. Groups, group, user, in this order: the first two need what the third gives away.
    3. No new privileges; ambient, inheritable, permitted and effective sets empty.
    4. Every thread is looked at.

    Raises:
        ConfigError: the process may not become that user.
        JoulegramError: the kernel still shows a capability, or another user.
    """
    if identity.uid is None and os.geteuid() == 0:
        return False
    import ctypes  # a root that stays root has no use for it

    libc = ctypes.CDLL(None, use_errno=True)
    _empty_bounding_set(libc)
    if identity.uid is not None and identity.gid is not None:
        _become(identity.uid, identity.gid)
    _call(libc, "prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(libc, "prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    _call(libc, "capset", header, ctypes.create_string_buffer(struct.calcsize("=6I")))
    remains = what_remains(identity)
    if remains:
        raise JoulegramError(f"privileges are not gone, so the agent does not go on: {'; '.join(remains)}")
    return True


def what_remains(identity: Identity, proc_root: Path = Path("/proc")) -> list[str]:
    """What a thread of this process still has that it should not, in words; empty where that is nothing."""
    found: list[str] = []
    for thread in sorted((proc_root / "self/task").iterdir()):
        lines = (thread / "status").read_text("utf-8").splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        found += [
            f"thread {thread.name} has {key} {status[key][0]}" for key in _NOTHING_LEFT if int(status[key][0], 16)
        ]
        if identity.uid is not None and set(status["Uid"]) != {str(identity.uid)}:
            found.append(f"thread {thread.name} has users {' '.join(status['Uid'])}, expected {identity.uid} alone")
        if identity.uid is not None and {*status["Gid"], *status["Groups"]} != {str(identity.gid)}:
            groups = " ".join([*status["Gid"], *status["Groups"]])
            found.append(f"thread {thread.name} has groups {groups}, expected {identity.gid} alone")
    return found


def _become(uid: int, gid: int) -> None:
    if (os.getresuid(), os.getresgid(), os.getgroups()) == ((uid,) * 3, (gid,) * 3, [gid]):
        return
    try:
        os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except (PermissionError, OverflowError) as error:
        raise ConfigError("--user", f"{uid}:{gid}", "to be started as root") from error


def _empty_bounding_set(libc: ctypes.CDLL) -> None:
    """As far as the process may: without CAP_SETPCAP it stays, and no_new_privs makes it of no use."""
    for number in range(_CAPABILITIES):
        if libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1 and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            return


def _call(libc: ctypes.CDLL, name: str, *arguments: object) -> None:
    import ctypes

    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise JoulegramError(f"{name} was refused by the kernel: {os.strerror(number)}")
