"""From the process of the command line to the one that serves: the configuration goes along, its readers do not.

1. `become` writes the configuration into memory that only this process can open, and replaces the process by
   ``python -m joulegram_service.serving FD``: pid, signals, environment and folder stay.
2. `taken` is the configuration again, in the new program.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from joulegram_service.config import Config


def become(config: Config) -> NoReturn:
    """Replace this process by the one that serves.

    ``-P``: no module is taken from the folder it is started in, which may be anybody's.
    """
    fd = os.memfd_create("joulegram-config", 0)  # 0: the next program has it too
    with os.fdopen(os.dup(fd), "wb") as file:
        pickle.dump(config, file)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "joulegram_service.serving", str(fd)])  # noqa: S606 - our own interpreter, no shell


def taken(fd: int) -> Config:
    """What `become` wrote; the descriptor is closed."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        config: Config = pickle.load(file)  # noqa: S301 - written by this process, before it became this program
    return config
