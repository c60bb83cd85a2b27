"""What wakes the sampler, on a loop of its own and on any other: steps in turn, and asyncio not starved by them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from joulegram_agent.pace import Pace, PacedLoop, TimerPace, pace_of
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from simulators.powercap import PowercapTree
from simulators.procfs import FakeProc

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from joulegram_pipeline.energy import Tick

LOOPS = [PacedLoop, asyncio.SelectorEventLoop]
MS = 1_000_000


def on(loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work)


def test_each_loop_has_the_best_pace_there_is() -> None:
    async def kind() -> type[Pace]:
        return type(pace_of(asyncio.get_running_loop()))

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(kind()) is TimerPace
    with asyncio.Runner(loop_factory=PacedLoop) as runner:
        assert runner.run(kind()) is not TimerPace


@pytest.mark.parametrize("loop", LOOPS)
def test_step_comes_once_for_each_time_it_is_asked_for_and_not_early(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def work() -> None:
        pace = pace_of(asyncio.get_running_loop())
        done = asyncio.Event()
        waits_ns: list[int] = []
        asked_ns = 0

        def step() -> bool:
            nonlocal asked_ns
            waits_ns.append(time.monotonic_ns() - asked_ns)
            if len(waits_ns) == 3:
                done.set()
                return True
            asked_ns = time.monotonic_ns()
            pace.after(20 * MS, step)
            return False

        asked_ns = time.monotonic_ns()
        pace.after(20 * MS, step)
        await done.wait()
        await asyncio.sleep(0.05)  # nothing more comes
        assert len(waits_ns) == 3
        assert min(waits_ns) > 19 * MS  # asyncio's own timers are early by less than their clock's resolution

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_asked_for_again_or_stopped_does_not_come(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        pace = pace_of(asyncio.get_running_loop())
        came: list[str] = []
        second = asyncio.Event()

        def step(name: str) -> bool:
            came.append(name)
            second.set()
            return True

        pace.after(5 * MS, lambda: step("first"))
        pace.after(10 * MS, lambda: step("second"))
        await second.wait()
        pace.after(5 * MS, lambda: step("third"))
        pace.stop()
        await asyncio.sleep(0.03)
        assert came == ["second"]

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_step_that_is_far_off_holds_nothing_up(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A timer before it, and what other threads and sockets have to say."""

    async def work() -> None:
        pace = pace_of(asyncio.get_running_loop())
        came: list[bool] = []

        def step() -> bool:
            came.append(True)
            return True

        pace.after(10_000 * MS, step)
        await asyncio.sleep(0.01)
        assert await asyncio.to_thread(lambda: "from a thread") == "from a thread"
        assert not came
        pace.stop()

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_steps_that_are_always_due_leave_timers_sockets_and_callbacks_their_turn(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A sampler that is late all the time does not hold up who asks: every wait of asyncio still ends."""

    async def work() -> None:
        running = asyncio.get_running_loop()
        pace = pace_of(running)
        woken = asyncio.Event()
        steps = 0

        def step() -> bool:
            nonlocal steps
            steps += 1
            pace.after(0, step)
            if steps % 10:
                return False
            woken.set()
            return True

        pace.after(0, step)
        async with asyncio.timeout(20):
            await asyncio.sleep(0.02)
            await woken.wait()
            other = await asyncio.to_thread(lambda: "from a thread")
            server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            server.close()
        pace.stop()
        assert (other, steps > 10) == ("from a thread", True)

    on(loop, work())


@pytest.mark.parametrize("loop", LOOPS)
def test_ticks_reach_who_waits_for_them(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The callback of a tick wakes a task at once, though asyncio has nothing else to do."""
    reader = PowercapReader(PowercapTree(tmp_path / "sys").root)
    sampler = Sampler(reader, proc_root=FakeProc(tmp_path / "proc").root)

    async def work() -> None:
        told: asyncio.Queue[Tick] = asyncio.Queue()
        running = asyncio.create_task(sampler.run(told.put_nowait))
        async with asyncio.timeout(20):
            tick = await told.get()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (tick.seq, sampler.pulse.samples >= 11 - sampler.pulse.missed_samples) == (1, True)

    on(loop, work())
    sampler.close()
    reader.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_sample_that_fails_ends_the_run(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    sampler = Sampler(PowercapReader(PowercapTree(tmp_path / "sys").root), proc_root=FakeProc(tmp_path / "proc").root)

    def fail(_tick: object) -> None:
        raise RuntimeError("no room")

    async def work() -> None:
        async with asyncio.timeout(20):
            with pytest.raises(RuntimeError, match="no room"):
                await sampler.run(fail)

    on(loop, work())
    sampler.close()
