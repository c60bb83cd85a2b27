"""One connection of the socket: requests in, answers out, and ticks for who subscribed, each bounded.

Invariants:
    * at most one line waits to be taken: nothing more is made for a peer before it took all of the last;
    * a peer that does not take a line in time is cut off at once, and what it left is thrown away;
    * a line that is not a JSON object, or too long, ends the connection; a request that is refused does not;
    * nothing of a peer in debt is answered but that it is too fast, and that not more often than each `TOO_FAST_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_agent.protocol import (
    COST_BYTES,
    MAX_REQUEST_BYTES,
    answer,
    parse_request,
    refusal,
    request_id_of,
)
from joulegram_agent.session import Session
from joulegram_pipeline.errors import AgentError, WireError

if TYPE_CHECKING:
    from joulegram_agent.local import LocalAgent
    from joulegram_agent.rates import Bucket

TOO_FAST_S = 0.1
MAX_DENIED_USERS = 64
"""Users told apart in the count of those denied; what more there are counts as -1."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer, and all together, may hold.

    Args:
        connections: beyond these a peer is told ``busy`` and closed.
        connections_of_user: the same, of one uid.
        idle_s: a connection that asks nothing for this long, and is not subscribed, is closed.
        take_s: a peer that has not taken a line after this long is cut off.
    """

    connections: int = 128
    connections_of_user: int = 64
    idle_s: float = 300.0
    take_s: float = 10.0


@dataclass(slots=True)
class Counts:
    """What happened on the socket since it was made.

    Args:
        connections: accepted from those who may ask.
        requests: answered, by op; ``unknown`` where it is none.
        refusals: by code, of requests and of connections.
        events: lines told to subscribers.
        cut_off: connections ended by us, by reason: ``slow`` or ``idle``.
        denied: connections of those who may not ask, by uid.
    """

    connections: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    events: int = 0
    cut_off: Counter[str] = field(default_factory=Counter)
    denied: Counter[int] = field(default_factory=Counter)

    def deny(self, uid: int) -> None:
        """Count one who may not ask."""
        self.refusals["denied"] += 1
        self.denied[uid if uid in self.denied or len(self.denied) < MAX_DENIED_USERS else -1] += 1


class Conversation:
    """Serves one connection to its end.

    Args:
        agent: who knows.
        bucket: of the peer's user.
        limits: see `Limits`.
        counts: kept up to date.
        reader: of the connection, limited to `MAX_REQUEST_BYTES`.
        writer: of the connection.
    """

    def __init__(
        self,
        agent: LocalAgent,
        bucket: Bucket,
        limits: Limits,
        counts: Counts,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.session = Session()
        self._agent = agent
        self._bucket = bucket
        self._limits = limits
        self._counts = counts
        self._reader = reader
        self._writer = writer
        self._sending = asyncio.Lock()
        # Drained means taken: with the default marks 64 KiB would count as taken.
        writer.transport.set_write_buffer_limits(high=0)

    async def run(self) -> None:
        """Until the peer goes, is silent too long, or is cut off.

        Raises:
            OSError: the connection broke.
        """
        telling: asyncio.Task[None] | None = None
        try:
            while (line := await self._line()) is not None and await self._serve(line):
                if self.session.subscribed and telling is None:
                    telling = asyncio.create_task(self._tell(), name="joulegram agent subscription")
        finally:
            if telling is not None:
                telling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await telling
            self._agent.release(self.session)

    async def refuse(self, code: str, message: str, request_id: int | str | None = None) -> None:
        """Answer with a refusal, and count it."""
        self._counts.refusals[code] += 1
        await self._send(refusal(request_id, code, message))

    async def _line(self) -> bytes | None:
        """The next line; None where there is none."""
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    line = await self._reader.readline()
            except TimeoutError:
                if self.session.subscribed:
                    continue  # it is not silent: it takes what it is told
                self._counts.cut_off["idle"] += 1
                return None
            except ValueError:  # readline's word for a line above its limit
                await self.refuse("bad_request", f"a line above {MAX_REQUEST_BYTES} bytes")
                return None
            return line if line.endswith(b"\n") else None

    async def _serve(self, line: bytes) -> bool:
        """Answer a line; whether the connection goes on."""
        try:
            request = parse_request(line)
        except WireError as error:
            await self.refuse("bad_request", str(error))
            return False
        wait_s = self._bucket.wait_s()
        if wait_s > 0:
            await self.refuse("too_fast", f"ask again in {wait_s:.1f} s", request_id_of(request))
            await asyncio.sleep(max(wait_s, TOO_FAST_S))
            return True
        reply = answer(self._agent, self.session, request, len(line))
        self._bucket.charge(reply.cost)
        self._counts.requests[reply.op] += 1
        if reply.code is not None:
            self._counts.refusals[reply.code] += 1
        await self._send(reply.line)
        # Neither reading nor sending waits while there is more of a burst: the counters and the others have their turn.
        await asyncio.sleep(0)
        return True

    async def _tell(self) -> None:
        """Tell ticks for as long as the connection lives, and end it where they are not taken."""
        try:
            while True:
                await self.session.changed.wait()
                if (wait_s := self._bucket.wait_s()) > 0:
                    await asyncio.sleep(wait_s)
                    continue
                line = self.session.next_event(self._agent)
                if line is None:
                    await self._agent.news()
                    continue
                self._bucket.charge(len(line) / COST_BYTES)
                self._counts.events += 1
                await self._send(line)
        except (OSError, AgentError):
            self._writer.transport.abort()

    async def _send(self, line: bytes) -> None:
        async with self._sending:
            self._writer.write(line)
            transport = self._writer.transport
            if not transport.get_write_buffer_size() and not transport.is_closing():
                return  # the kernel has taken it at once, as it nearly always does
            try:
                async with asyncio.timeout(self._limits.take_s):
                    await self._writer.drain()
            except TimeoutError:
                self._counts.cut_off["slow"] += 1
                transport.abort()
                raise ConnectionAbortedError("the peer did not take a line in time") from None
