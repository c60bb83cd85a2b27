"""Asks an agent over its socket, blocking: for jobs, which need not have an event loop (docs/agent-protocol.md)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegram_agent import DEFAULT_SOCKET
from joulegram_agent.protocol import MAX_ANSWER_BYTES, VERSION
from joulegram_pipeline.energy import TickBatch
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Sequence

SOCKET_VARIABLE = "JOULEGRAM_AGENT_SOCKET"
TIMEOUT_S = 2.0


def agent_socket(given: str | os.PathLike[str] | None = None) -> Path:
    """Where an agent would listen: what is given, else JOULEGRAM_AGENT_SOCKET, else the agent's own default."""
    return Path(given or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


class AgentSocket:
    """A connection to an agent, made when first asked and again after any failure.

    Every question raises AgentError, with the path, when the socket is missing, the agent is away or speaks
    nonsense. What was named is named again after a reconnect. One thread at a time may ask.

    Args:
        path: of the socket.
        timeout_s: for each step of a question.
    """

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._stream: socket.socket | None = None
        self._rest = b""
        self._last_id = 0
        self._named: tuple[int, ...] = ()

    def ticks(self, after: int) -> TickBatch:
        """The kept ticks whose `seq` is above `after`."""
        return TickBatch.from_json(self._ask("ticks", after=after))

    def name(self, pids: Sequence[int]) -> None:
        """Have these processes read in every tick until they end or the connection does."""
        self._named = tuple(pids)
        self._ask("name", pids=list(pids))

    def close(self) -> None:
        """End the connection; the agent releases what was named."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()

    def _ask(self, op: str, **params: Any) -> dict[str, Any]:
        try:
            if self._stream is None:
                self._connect()
                if self._named and op != "name":
                    self._exchange("name", {"pids": list(self._named)})
            return self._exchange(op, params)
        except (OSError, ValueError, RecursionError) as error:
            self.close()
            raise AgentError(f"agent socket {str(self._path)!r}: {error}") from error

    def _connect(self) -> None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(self._timeout_s)
            stream.connect(str(self._path))
        except BaseException:
            stream.close()
            raise
        self._stream, self._rest = stream, b""

    def _exchange(self, op: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._stream is not None
        self._last_id += 1
        request = {"v": VERSION, "id": self._last_id, "op": op, **params}
        self._stream.sendall(json.dumps(request, separators=(",", ":")).encode("ascii") + b"\n")
        reply = json.loads(self._line(op))
        if isinstance(reply, dict) and reply.get("ok") is False:
            raise ValueError(f"refused {op!r}: {str(reply.get('error'))[:300]}")
        result = reply.get("result") if isinstance(reply, dict) else None
        if not isinstance(result, dict) or reply.get("id") != self._last_id:
            raise ValueError(f"got {str(reply)[:200]!r}, expected the result of request {self._last_id}")
        return result

    def _line(self, op: str) -> bytes:
        assert self._stream is not None
        parts = [self._rest]
        taken = len(self._rest)
        while b"\n" not in parts[-1]:
            part = self._stream.recv(1 << 16)
            taken += len(part)
            if not part:
                raise ConnectionResetError(f"closed before it answered {op!r}")
            if taken > MAX_ANSWER_BYTES:
                raise ValueError(f"got more than {MAX_ANSWER_BYTES} bytes without a line feed in answer to {op!r}")
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line
