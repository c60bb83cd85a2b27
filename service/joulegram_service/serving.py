"""The program of the process that serves: `python -m joulegram_service.serving FD` (handover.py).

Invariants:
    * it imports neither what reads a configuration nor what the command line is made with: they would be a fifth of
      what an idle sidecar holds.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError, JoulegramError
from joulegram_service.handover import taken
from joulegram_service.serve import serve

if TYPE_CHECKING:
    from joulegram_service.config import Config

OK, FAILED, USAGE = 0, 1, 2


def run(config: Config) -> int:
    """Serve until a signal; what fails is said on stderr. Gives the exit code."""
    try:
        serve(config)
    except JoulegramError as error:
        sys.stderr.write("".join(f"joulegram: {line}\n" for line in str(error).splitlines()))
        return USAGE if isinstance(error, ConfigError) else FAILED
    return OK


if __name__ == "__main__":
    sys.exit(run(taken(int(sys.argv[1]))))
