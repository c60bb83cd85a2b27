"""Who gets what of two windows that overlap: the long one lasts the two minutes, the short one begins after one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joulegram_agent.powercap import PowercapReader
from joulegram_agent.sampler import Sampler
from joulegram_pipeline.records import RecordKind
from peers.energy.compare import NS_PER_MS, SAMPLE_MS
from peers.energy.readers import HOST
from peers.energy.scenarios import DURATION_MS, SCENARIOS, Playback
from peers.energy.sessions import driven
from simulators.machine_node import OF_RUN, Node
from simulators.procfs import FakeProc, ManualClock
from simulators.traces import T0, span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SHORT_MS = DURATION_MS // 2
MS_A_JIFFY = 10

PEERS: Mapping[str, Callable[[Path], Any]] = {
    "zeus": driven("zeus", HOST, "zeus_windows"),
    "codecarbon": driven("codecarbon", HOST, "codecarbon_tasks"),
}


def overlap(session: Callable[[Path], Any], root: Path) -> dict[str, float | None]:
    """The joules a peer gives the ``long`` window and the ``short``; None where it measured none.

    Raises:
        PeerMissingError: the peer cannot be had.
    """
    play = Playback(SCENARIOS[0], root)
    with session(play.sysfs) as told:
        play.pass_ms(SHORT_MS)
        told.read()
        play.pass_ms(SHORT_MS)
        return dict(told.say("end"))


def ours(root: Path) -> dict[str, float]:
    """The same as two spans that know nothing of each other, on a machine whose CPUs are all busy all the time."""
    play = Playback(SCENARIOS[0], root)
    proc, clock = FakeProc(root / "proc"), ManualClock(wall_ns=T0)
    reader = PowercapReader(play.sysfs)
    sampler = Sampler(reader, proc_root=proc.root, clock=clock)
    try:
        sampler.sample()
        while not play.over:
            play.pass_ms(SAMPLE_MS)
            clock.advance(SAMPLE_MS * NS_PER_MS)
            proc.user += proc.cpus * SAMPLE_MS // MS_A_JIFFY
            proc.write_stat()
            sampler.sample()
    finally:
        reader.close()
    node = Node()
    begun_ns, end_ns = T0 + SHORT_MS * NS_PER_MS, clock.wall_ns()
    spans = (span(1, T0, end_ns, name="etl.long"), span(2, begun_ns, end_ns, name="etl.short"))
    node.log.traces(*spans, resource=OF_RUN, at=end_ns)
    node.log.append(RecordKind.TICKS, sampler.batch(0).to_bytes(), end_ns)
    node.feed()
    return dict(zip(("long", "short"), (gained["energy.total_j"] for gained in node.gained()), strict=True))
