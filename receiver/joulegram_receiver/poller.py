"""The poller: each second the agent's ticks go to the spool, or a heartbeat while the agent is away.

Invariants:
    * the ticks written here never overlap in time; one that reaches back over time already written is cut to
      what is new, and its energy is then missing with a reason: its parts cannot be told apart;
    * while the agent is away time still advances in the log (docs/architecture.md, "The log is the clock");
    * what was not written is asked for again: `after` moves only behind an append that worked.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from joulegram_pipeline.clock import Clock, SystemClock
from joulegram_pipeline.energy import Gap, Method, Tick, TickBatch
from joulegram_pipeline.errors import AgentError, RetryableError
from joulegram_pipeline.life import start_task
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.trouble import LastTrouble
from joulegram_pipeline.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from joulegram_pipeline.energy import TickSource
    from joulegram_receiver.spool import Spool

OVERLAP_REASON = "the tick reaches back over time that was already recorded"

_ANSWER_S = 5.0
_PATIENCE_S = 5.0
_FLUSH_STEP_S = 0.05


class Poller:
    """Brings ticks to the spool; an async context manager.

    Args:
        source: the agent.
        spool: entered before this and left after it.
        interval_s: between two questions.
        last_end_ns: wall clock up to which the log already has ticks, 0 if none: then what the agent kept is taken.
        clock: the wall clock of heartbeats.
        answer_s: how long the agent may take before it counts as away.
        patience_s: how long it is away before its time is written off; what it measured in less is not lost.
    """

    def __init__(
        self,
        source: TickSource,
        spool: Spool,
        interval_s: float = 1.0,
        *,
        last_end_ns: int = 0,
        clock: Clock | None = None,
        answer_s: float = _ANSWER_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self.last_error = LastTrouble()
        """Why the agent last gave no ticks."""
        self._source = source
        self._spool = spool
        self._interval_s = interval_s
        self._clock = clock or SystemClock()
        self._answer_s = answer_s
        self._patience_ns = round(patience_s * NS_PER_S)
        self._last_end_ns = last_end_ns
        self._since_ns = 0
        self._epoch: str | None = None
        self._after = 0
        self._away_epoch = ""
        self._away_seq = 0
        self._pids: tuple[int, ...] = ()
        self._named = True
        self._one = asyncio.Lock()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def last_end_ns(self) -> int:
        """Wall clock up to which the log has ticks."""
        return self._last_end_ns

    async def __aenter__(self) -> Self:
        now_ns = self._clock.wall_ns()
        self._away_epoch = f"away-{now_ns}"
        self._since_ns = now_ns
        self._task = start_task(self._run(), "poller")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, with one last tick."""
        self._stop.set()
        if self._task is not None:
            await self._task
            await self._poll_quietly()

    async def name(self, pids: Sequence[int]) -> None:
        """Have the CPU time of these processes read from now on; repeated whenever the agent comes back."""
        self._pids = tuple(pids)
        async with self._one:
            self._named = False
            with contextlib.suppress(AgentError):
                await self._name_again()

    async def flush_until(self, wall_ns: int, budget_s: float) -> bool:
        """Poll until a tick ending at or after `wall_ns` is in the log, or the budget is spent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(budget_s):
                while self._last_end_ns < wall_ns:
                    await self._poll_quietly()
                    if self._last_end_ns < wall_ns:
                        await asyncio.sleep(_FLUSH_STEP_S)
        return self._last_end_ns >= wall_ns

    async def _run(self) -> None:
        while not self._stop.is_set():
            await self._poll_quietly()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._interval_s)

    async def _poll_quietly(self) -> None:
        # The spool refused: nothing moved, and the same ticks are asked for a second later.
        with contextlib.suppress(RetryableError):
            async with self._one:
                await self._poll()

    async def _poll(self) -> None:
        try:
            batch = await self._ask()
        except AgentError as error:
            self._named = False
            self.last_error.note(str(error))
            await self._append_heartbeat(str(error))
            return
        self._since_ns = self._clock.wall_ns()
        ticks = self._new_ticks(batch.ticks)
        if ticks:
            payload = replace(batch, ticks=tuple(ticks)).to_bytes()
            await self._spool.append(RecordKind.TICKS, payload)
            self._last_end_ns = ticks[-1].end_ns
        if batch.ticks:
            self._after = batch.ticks[-1].seq

    async def _ask(self) -> TickBatch:
        """The ticks behind the last one taken.

        Raises:
            AgentError: the agent is away.
        """
        try:
            async with asyncio.timeout(self._answer_s):
                await self._name_again()
                batch = await self._source.ticks(self._after)
                if batch.epoch != self._epoch:
                    # A new agent counts from 1 again: what `after` hid in it has to be asked for.
                    if self._after:
                        batch = await self._source.ticks(0)
                    if self._epoch is not None:
                        self._named = False
                    self._epoch, self._after = batch.epoch, 0
                    await self._name_again()
                return batch
        except TimeoutError as error:
            raise AgentError(f"the agent did not answer within {self._answer_s:g} s") from error

    async def _name_again(self) -> None:
        if not self._named and self._pids:
            await self._source.name(self._pids)
        self._named = True

    def _new_ticks(self, ticks: Sequence[Tick]) -> list[Tick]:
        new = []
        end_ns = self._last_end_ns
        for tick in ticks:
            if tick.end_ns <= end_ns:
                continue
            if tick.start_ns < end_ns:
                gap = Gap("*", OVERLAP_REASON)
                new.append(Tick(seq=tick.seq, start_ns=end_ns, end_ns=tick.end_ns, gaps=(*tick.gaps, gap)))
            else:
                new.append(tick)
            end_ns = tick.end_ns
        return new

    async def _append_heartbeat(self, reason: str) -> None:
        now_ns = self._clock.wall_ns()
        if now_ns - self._since_ns < self._patience_ns:
            return  # it may come back with the ticks of this time
        start_ns = self._last_end_ns or self._since_ns
        if now_ns <= start_ns:
            return
        tick = Tick(seq=self._away_seq + 1, start_ns=start_ns, end_ns=now_ns, gaps=(Gap("*", reason),))
        batch = TickBatch(self._away_epoch, "none", Method.UNAVAILABLE, reason, (), (tick,))
        await self._spool.append(RecordKind.TICKS, batch.to_bytes())
        self._away_seq = tick.seq
        self._last_end_ns = now_ns
