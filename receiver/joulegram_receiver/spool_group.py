"""What waits for the disk: group commit that follows the load.

Invariants:
    * a record that comes alone is written at once; only where the last groups were larger is there a wait, until as
      many are together again, and never longer than `COMPANY_S`;
    * the thread that commits is woken once a group, not once a record.
"""

from __future__ import annotations

from threading import Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")

COMPANY_S = 0.002
"""A sync costs as much processor time as a few small requests: under load it is worth this much time to share it."""


class Groups(Generic[Item]):
    """A queue that many threads put into and one takes groups from.

    Args:
        company_s: how long an item may wait for others where that has been worth it.
    """

    def __init__(self, company_s: float = COMPANY_S) -> None:
        self.lock = Lock()
        """Held by whoever calls `put`."""
        self._company_s = company_s
        self._items: list[Item] = []
        self._is_open = True
        self._usual = 1
        self._wanted = 0
        """How many items the sleeper is woken for; 0 where nobody sleeps."""
        self._roused = False
        """Somebody called `rouse` while nobody slept: who sleeps next had looked at the time before that."""
        self._wake = Lock()
        self._wake.acquire()

    def put(self, item: Item) -> None:
        """Add one; the caller holds `lock`."""
        self._items.append(item)
        if len(self._items) == self._wanted:
            self._rouse()

    def rouse(self) -> None:
        """Have who waits in `take`, or is about to, go on with what is there."""
        with self.lock:
            if self._wanted:
                self._rouse()
            else:
                self._roused = True

    def close(self) -> None:
        """No more will come; what is there is still taken."""
        with self.lock:
            self._is_open = False
            if self._wanted:
                self._rouse()

    def take(self, timeout_s: float | None = None) -> list[Item] | None:
        """The next group; empty when `timeout_s` is over, None when it is closed and nothing is left."""
        self._sleep_until(1, timeout_s)
        if self._usual > 1 and self._company_s and self._items:
            self._sleep_until(self._usual, self._company_s)
        with self.lock:
            group, self._items = self._items, []
            if not group:
                return [] if self._is_open else None
        # Falls slowly: of those under way some come while the others are written, and are a small group.
        self._usual = max(len(group), self._usual - (self._usual + 3) // 4)
        return group

    def _sleep_until(self, number: int, timeout_s: float | None) -> None:
        """Until so many are there, nothing more will come, or the time is over."""
        with self.lock:
            roused, self._roused = self._roused, False
            if roused or len(self._items) >= number or not self._is_open:
                return
            self._wanted = number
        if self._wake.acquire(timeout=-1 if timeout_s is None else timeout_s):
            return
        with self.lock:
            was_roused, self._wanted = not self._wanted, 0
        if was_roused:  # between the end of the wait and this
            self._wake.acquire()

    def _rouse(self) -> None:
        self._wanted = 0
        self._wake.release()
