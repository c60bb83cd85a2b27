"""Asks an agent over its socket; connects when first asked and again after any failure."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

from joulegram_agent.protocol import MAX_ANSWER_BYTES, VERSION
from joulegram_pipeline.energy import PUBLISH_S, TickBatch
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
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
        """The kept ticks whose `seq` is above `after`; the first of them, where they are more than a page."""
        return (await self.page(after))[0]

    async def page(self, after: int) -> tuple[TickBatch, bool]:
        """As `ticks`, and whether there are more."""
        result = await self._ask("ticks", after=after)
        return TickBatch.from_json(result), result.get("more") is True

    async def subscribe(self, after: int | None = None) -> AsyncGenerator[TickBatch, None]:
        """Batches of ticks as they are published, on a connection of its own, which ends with the generator.

        Use it under `contextlib.aclosing`. A consumer that lags gets what it missed in few batches, as long as the
        agent keeps it.

        Args:
            after: begin above this `seq`; None begins with the next tick.

        Raises:
            AgentError: as every method; nothing was published for the timeout and one tick, too.
        """
        params = {} if after is None else {"after": after}
        with self._as_agent_errors("subscribe"):
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER_BYTES)
        try:
            with self._as_agent_errors("subscribe"):
                async with asyncio.timeout(self._timeout_s):
                    await self._exchange(reader, writer, 1, "subscribe", params)
            while True:
                with self._as_agent_errors("event"):
                    async with asyncio.timeout(self._timeout_s + PUBLISH_S):
                        batch = _batch_of(await reader.readline())
                yield batch
        finally:
            writer.close()

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
                with self._as_agent_errors(op):
                    async with asyncio.timeout(self._timeout_s):
                        if self._stream is None:
                            self._stream = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER_BYTES)
                            await self._name_again()
                        return await self._next_exchange(op, params)
            except _RefusedError:
                raise
            except (AgentError, asyncio.CancelledError):
                # The answer may still come and would be taken for the next question's.
                await self.close()
                raise

    async def _name_again(self) -> None:
        if self._named:
            found = (await self._next_exchange("name", {"pids": sorted(self._named)})).get("named")
            self._named.intersection_update(found if isinstance(found, list) else ())

    async def _next_exchange(self, op: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._stream is not None
        self._last_id += 1
        return await self._exchange(*self._stream, self._last_id, op, params)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, op: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        request = {"v": VERSION, "id": number, "op": op, **params}
        writer.write(json.dumps(request, separators=(",", ":")).encode("ascii") + b"\n")
        await writer.drain()
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError(f"closed before it answered {op!r}")
        reply = json.loads(line)
        if isinstance(reply, dict) and reply.get("ok") is False:
            problem = f"refused {op!r}: {str(reply.get('error'))[:300]}"
            if reply.get("id") == number:
                raise _RefusedError(f"{self._about}: {problem}")
            raise self._error(problem)  # the agent refused the connection, not the question
        result = reply.get("result") if isinstance(reply, dict) else None
        if not isinstance(result, dict) or reply.get("id") != number:
            raise ValueError(f"got {line[:200]!r}, expected the result of request {number}")
        return result

    @contextlib.contextmanager
    def _as_agent_errors(self, op: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise self._error(f"no answer to {op!r} within {self._timeout_s} s") from error
        except (OSError, ValueError, RecursionError) as error:
            raise self._error(str(error)) from error

    @property
    def _about(self) -> str:
        return f"agent socket {str(self._path)!r}"

    def _error(self, problem: str) -> AgentError:
        return AgentError(f"{self._about}: {problem}")


class _RefusedError(AgentError):
    """The agent refused this question and takes others."""


def _batch_of(line: bytes) -> TickBatch:
    if not line.endswith(b"\n"):
        raise ConnectionResetError("closed while subscribed")
    event = json.loads(line)
    if not isinstance(event, dict) or event.get("event") != "ticks" or not isinstance(event.get("batch"), dict):
        raise ValueError(f"got {line[:200]!r}, expected an event with ticks")
    return TickBatch.from_json(event["batch"])
