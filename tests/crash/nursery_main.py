"""A process that has imported the sidecar once and forks it as often as it is told: a start without its imports.

    python nursery_main.py CONSTANTS FAULTS

CONSTANTS is JSON: values of module constants by their full name, for log segments and times between snapshots that are
smaller than those of a real node. FAULTS names a file; while it is there, what it names fails (see `break_disk`). Each
line of standard input, a JSON object with `arguments` and `log`, forks one `joulegram <arguments>`; its pid and then,
when it has ended, its exit status as subprocess gives it are a line each of standard output.

What is forked is the program: command line, signals, threads and files are its own, and kill -9 takes all of it.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def main() -> None:
    break_disk(Path(sys.argv[2]))  # before anything keeps a call of `os` as the default of a parameter
    cli, handover, serving = (imported(f"joulegram_service.{name}") for name in ("cli", "handover", "serving"))
    for name, value in json.loads(sys.argv[1]).items():
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant), name
        setattr(importlib.import_module(module), constant, value)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork takes one thread with it"  # noqa: PTH208
    # The program it would become has to import everything again.
    handover.become = lambda config: sys.exit(serving.run(config))
    gc.collect()
    gc.freeze()  # else the first collection of each child copies every page
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(cli.app, order["arguments"], order["log"])
        _say(pid)
        _, status = os.waitpid(pid, 0)
        _say(os.waitstatus_to_exitcode(status))


def imported(name: str) -> Any:
    return importlib.import_module(name)


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def break_disk(faults: Path) -> None:
    """Have fdatasync and write fail with EIO on files below a folder, while `faults` says so.

    Its lines are ``<call> <folder>``, as in ``fdatasync spool``.
    """

    def breaking(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def broken(fd: int, *arguments: Any) -> Any:
            try:
                lines = faults.read_text().splitlines()
            except FileNotFoundError:
                lines = []  # nothing is broken, or it has just been mended
            if lines:
                parts = Path(f"/proc/self/fd/{fd}").readlink().parts
                for line in lines:
                    name, _, folder = line.partition(" ")
                    if name == call and folder in parts:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, *arguments)

        return broken

    os.fdatasync = breaking("fdatasync", os.fdatasync)
    os.write = breaking("write", os.write)
    os.pwritev = breaking("write", os.pwritev)  # what the spool and the outbox write with


def _become(app: Callable[[list[str]], object], arguments: list[str], log: str) -> None:
    """In the child: run the command line and end; never returns."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        app(arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
