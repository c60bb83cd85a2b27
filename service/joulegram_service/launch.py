"""The command of `joulegram run`: forked early, executed late, waited for, and signalled.

The fork is done before gRPC and its threads are in the process; the child then waits on a pipe for its environment and
replaces itself with the command. So its pid is known, and named to the agent, before it does anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOT_EXECUTABLE, NOT_FOUND = 126, 127


class CannotExecuteError(PermanentError):
    """The command could not be executed; `status` is what a shell would give."""

    def __init__(self, command: str, number: int) -> None:
        self.status = NOT_FOUND if number == 2 else NOT_EXECUTABLE
        super().__init__(f"run: got command {command!r}: {os.strerror(number)}")


class Launch:
    """A child that waits to become the command.

    Args:
        command: program and arguments.
        quiet: its standard output goes to standard error, so that ours holds the summary alone.
    """

    def __init__(self, command: Sequence[str], *, quiet: bool = False) -> None:
        self.command = list(command)
        self.cpu_ns = 0
        """CPU time of the command and of all it waited for, once it was waited for."""
        go_read, self._go = os.pipe()
        self._told, told_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self._told)
            _become(self.command, go_read, told_write, quiet=quiet)
        os.close(go_read)
        os.close(told_write)
        self._waiting = True

    def start(self, environment: Mapping[str, str]) -> None:
        """Let it become the command.

        Raises:
            CannotExecuteError: it could not.
        """
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._go, "wb") as pipe:  # a signal may have ended it
            pipe.write(json.dumps(dict(environment)).encode())
        self._waiting = False
        with os.fdopen(self._told, "rb") as pipe:
            failed = pipe.read()  # empty when exec closed the pipe
        if failed:
            os.waitpid(self.pid, 0)
            raise CannotExecuteError(self.command[0], int(failed))

    def wait(self) -> int:
        """Block until it ends; its exit status, 128+n if signal n ended it."""
        _, status, usage = os.wait4(self.pid, 0)
        self.cpu_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code

    def signal(self, number: int) -> None:
        """Pass a signal on. SIGINT typed at a terminal has reached the command already."""
        if number == signal.SIGINT and _in_foreground():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def abandon(self) -> None:
        """Let a child that was never started go."""
        if self._waiting:
            self._waiting = False
            os.close(self._go)
            os.close(self._told)
            os.waitpid(self.pid, 0)


def _in_foreground() -> bool:
    try:
        with open("/dev/tty", "rb") as terminal:  # noqa: PTH123 - a device, not a path of ours
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _become(command: list[str], go: int, told: int, *, quiet: bool) -> None:
    """In the child: wait for the environment, then exec; never returns."""
    try:
        with os.fdopen(go, "rb") as pipe:
            raw = pipe.read()
        if not raw:
            os._exit(0)
        if quiet:
            os.dup2(2, 1)
        os.set_inheritable(told, False)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(command[0], command, json.loads(raw))  # noqa: S606 - running the user's command is the point
    except OSError as error:
        os.write(told, str(error.errno).encode())
    finally:
        os._exit(NOT_EXECUTABLE)
