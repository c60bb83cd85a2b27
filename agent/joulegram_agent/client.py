"""Asks an agent over its socket; connects when first asked and again after any failure."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

from joulegram_agent.protocol import MAX_ANSWER_BYTES, VERSION
from joulegram_pipeline.energy import TickBatch
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

TIMEOUT_S = 5.0


class AgentClient:
    """A `joulegram_pipeline.energy.TickSource` behind a socket.

    Every method raises AgentError, with the path, when the socket is missing, the agent is away or speaks
    nonsense: the caller goes on without energy and asks again later (S3-08). What was named is named again
        after a reconnect.

    Args:
        path: of the socket.
        timeout_s: for one question, connecting included.
    """

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._last_id = 0
        self._named: set[int] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; the agent releases what was named."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream[1].close()
            with contextlib.suppress(OSError):
                await stream[1].wait_closed()

    async def hello(self) -> dict[str, Any]:
        """What the agent is: protocol, epoch, source, method, domains."""
        return await self._ask("hello")

    async def ticks(self, after: int) -> TickBatch:
        """The kept ticks whose `seq` is above `after`."""
        return TickBatch.from_json(await self._ask("ticks", after=after))

    async def name(self, pids: Sequence[int]) -> None:
        """Have these processes read in every tick until they end, beside those named before."""
        result = await self._ask("name", pids=list(pids))
        found = result.get("named")
        if not isinstance(found, list):
            raise self._error(f"got {str(result)[:200]}, expected 'named'")
        self._named.update(pid for pid in found if isinstance(pid, int))

    async def window(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        """Energy of the whole ticks that touch a window of at least one second."""
        return await self._ask("window", start_ns=str(start_ns), end_ns=str(end_ns))

    async def counters(self) -> dict[str, Any]:
        """Counts by domain as of the last published tick."""
        return await self._ask("counters")

    async def _ask(self, op: str, **params: Any) -> dict[str, Any]:
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(self._timeout_s):
                    if self._stream is None:
                        self._stream = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER_BYTES)
                        await self._name_again()
                    return await self._exchange(op, params)
            except TimeoutError as error:
                await self.close()
                raise self._error(f"no answer to {op!r} within {self._timeout_s} s") from error
            except (OSError, ValueError, RecursionError) as error:
                await self.close()
                raise self._error(str(error)) from error
            except asyncio.CancelledError:
                # The answer may still come and would be taken for the next question's.
                await self.close()
                raise

    async def _name_again(self) -> None:
        if self._named:
            found = (await self._exchange("name", {"pids": sorted(self._named)})).get("named")
            self._named.intersection_update(found if isinstance(found, list) else ())

    async def _exchange(self, op: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._stream is not None
        reader, writer = self._stream
        self._last_id += 1
        request = {"v": VERSION, "id": self._last_id, "op": op, **params}
        writer.write(json.dumps(request, separators=(",", ":")).encode("ascii") + b"\n")
        await writer.drain()
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError(f"closed before it answered {op!r}")
        reply = json.loads(line)
        if isinstance(reply, dict) and reply.get("ok") is False:
            error = reply.get("error")
            if reply.get("id") != self._last_id:
                await self.close()  # the agent refused the connection, not the question
            raise self._error(f"refused {op!r}: {str(error)[:300]}")
        result = reply.get("result") if isinstance(reply, dict) else None
        if not isinstance(result, dict) or reply.get("id") != self._last_id:
            raise ValueError(f"got {line[:200]!r}, expected the result of request {self._last_id}")
        return result

    def _error(self, problem: str) -> AgentError:
        return AgentError(f"agent socket {str(self._path)!r}: {problem}")
