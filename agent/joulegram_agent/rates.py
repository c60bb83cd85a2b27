"""How much each user may ask of the agent: a token bucket for a uid, so that no peer can make the agent burn a CPU.

Invariants:
    * a bucket is of a user, not of a connection: connecting again gives nothing new;
    * an answer is paid for after it is known what it cost, so a bucket may be in debt; nothing is answered until
      the debt is gone.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RATE_PER_S = 100.0
BURST = 1_000.0
MAX_USERS = 256
"""Buckets kept; beyond these the one unused longest is forgotten."""


class Bucket:
    """One user's tokens.

    Args:
        rate_per_s: tokens that come back each second.
        burst: tokens at most, and at first.
        now_s: a clock that never falls.
    """

    def __init__(self, rate_per_s: float, burst: float, now_s: Callable[[], float]) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._now_s = now_s
        self._tokens = burst
        self._at_s = now_s()

    def charge(self, cost: float) -> None:
        """Take tokens, into debt if need be."""
        self._refill()
        self._tokens -= cost

    def wait_s(self) -> float:
        """Seconds until there is a token; 0 if there is one now."""
        self._refill()
        return max(0.0, (1 - self._tokens) / self._rate_per_s)

    def _refill(self) -> None:
        now_s = self._now_s()
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s


class Rates:
    """The buckets of all users.

    Args:
        rate_per_s: see `Bucket`.
        burst: see `Bucket`.
        now_s: see `Bucket`.
    """

    def __init__(
        self, rate_per_s: float = RATE_PER_S, burst: float = BURST, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._now_s = now_s
        self._buckets: OrderedDict[int, Bucket] = OrderedDict()

    def of(self, uid: int) -> Bucket:
        """The bucket of a user."""
        bucket = self._buckets.pop(uid, None) or Bucket(self._rate_per_s, self._burst, self._now_s)
        self._buckets[uid] = bucket
        if len(self._buckets) > MAX_USERS:
            self._buckets.popitem(last=False)
        return bucket
