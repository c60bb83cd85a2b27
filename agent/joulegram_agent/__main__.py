"""``python -m joulegram_agent``: the agent as a process in which nothing else is; `joulegram agent` becomes it."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # asyncio goes on without TLS where there is no ssl. The agent speaks TLS only to where it sends its own OTLP;
    # else OpenSSL would be a fifth of its memory, and is nothing to have in a privileged process.
    if not any(each.lower().startswith("--otlp-endpoint=https:") for each in sys.argv[1:]):
        sys.modules["ssl"] = None  # type: ignore[assignment]

    from joulegram_agent.standalone import main

    sys.exit(main(sys.argv[1:]))
