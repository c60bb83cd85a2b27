"""kill -9 and SIGTERM of the sidecar under load: what was acknowledged is recorded once, and forwarded.

`make test` kills 200 times, `make crash` 1 000 times: JOULEGRAM_TEST_KILLS says how often.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from crash.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KILLS = int(os.environ.get("JOULEGRAM_TEST_KILLS", "200"))
STOPS = max(12, KILLS // 20)
SYNCS = ("always", "interval", "none")

pytestmark = pytest.mark.timeout(240 + 2 * KILLS)


def run_side_by_side(lanes: list[Lane], life: Callable[[Lane, int], None], number: int) -> None:
    """Lead the lanes through `number` lives, all of them at once, and to their ends, and check them."""

    def lead(lane: Lane, lives: range) -> str:
        for each in lives:
            life(lane, each)
        lane.end()
        return lane.check()

    with ThreadPoolExecutor(len(lanes)) as pool:
        shares = [range(index, number, len(lanes)) for index in range(len(lanes))]
        for found in pool.map(lead, lanes, [range(len(share)) for share in shares]):
            print(found)  # noqa: T201 - which moments the kills hit; pytest -s shows it


def test_nothing_acknowledged_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    """In each mode of sync: none lost, none twice, the same figures as without kills, forwarded to both (S3-12)."""
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(tmp_path / sync, 21 + 2 * n, sync)) for n, sync in enumerate(SYNCS)]
        run_side_by_side(lanes, Lane.kill, KILLS)
        killed = [lane.killed for lane in lanes]
        cut_off = [client.cut_off for lane in lanes for client in lane.clients]
    assert sum(each.total() for each in killed) == KILLS
    assert all(each["start"] and each["load"] for each in killed)
    assert sum(cut_off) > KILLS / 10, "the kills hit requests"


def test_nothing_acknowledged_is_lost_by_stops(tmp_path: Path) -> None:
    """SIGTERM under load exits 0 within the drain's budget, and what was not drained comes at the next start."""
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(tmp_path / sync, 51 + 2 * n, sync)) for n, sync in enumerate(SYNCS)]
        run_side_by_side(lanes, Lane.stop, STOPS)
    assert sum(lane.killed["stopped"] for lane in lanes) == STOPS
