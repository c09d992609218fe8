"""The memory that all uploads share, and which upload is dropped when it is full. On the event loop.

While there is room, slow uploads are accepted: mobile clients upload slowly. When the memory is full, the caller that
holds the most loses its slowest upload. Otherwise one caller could fill the memory, send a byte now and then, and lock
out the others. Complete uploads are never dropped.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_GRACE_S = 1.0  # the minimum age of a dropped upload: the rate of a younger one is unknown
_RATE_S = 1.0  # time constant of the average rate of an upload
_SEARCH_S = 0.1  # between two unsuccessful searches for one caller, which scan all uploads


class Hold:
    """One upload's bytes in memory. ``lost``: the upload was dropped to make room. ``waiting``: its current wait."""

    def __init__(self, caller: str, now: float) -> None:
        self.caller = caller
        self.bytes = 0
        self.lost = False
        self.waiting: asyncio.Timeout | None = None
        self.since = now
        self._rate = 0.0  # bytes per second at the time ``_at``
        self._at = now

    def add(self, count: int, now: float) -> None:
        """Count bytes that have just arrived."""
        self._rate = self._rate * math.exp((self._at - now) / _RATE_S) + count / _RATE_S
        self._at = now
        self.bytes += count

    def lag_s(self, now: float) -> float:
        """Seconds that the bytes would take at the current rate: the age of an upload with a constant rate."""
        rate = self._rate * math.exp((self._at - now) / _RATE_S)
        return self.bytes / rate if rate else math.inf

    def lose(self) -> None:
        """Drop the upload, and end its wait."""
        self.lost = True
        if self.waiting:
            with contextlib.suppress(RuntimeError):  # it has already timed out
                self.waiting.reschedule(-math.inf)


@dataclass(slots=True)
class _Account:
    """The incomplete uploads of one caller, and their bytes."""

    holds: set[Hold] = field(default_factory=set)
    bytes: int = 0
    searched: float = -math.inf

    def slowest(self, now: float, asking: Hold) -> Hold | None:
        """The upload that lags most, except ``asking``, young uploads and empty ones."""
        old = [hold for hold in self.holds if hold is not asking and hold.bytes and now - hold.since >= _GRACE_S]
        return max(old, key=lambda hold: hold.lag_s(now), default=None)


class Budget:
    """Limits the memory to ``limit`` bytes.

    An upload has stalled if it lags by more than ``upload_s``, the maximum duration of an upload.
    """

    def __init__(self, limit: int, upload_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._upload_s = upload_s
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._complete = 0
        self.held = 0

    def open(self, caller: str) -> Hold:
        """Begin an upload. It must be closed."""
        hold = Hold(caller, self._clock())
        self._accounts.setdefault(caller, _Account()).holds.add(hold)
        return hold

    def reserve(self, hold: Hold, count: int) -> bool:
        """Count bytes that arrived for an upload. Returns False, and counts nothing, if there is no room."""
        if not self.make_room(hold, count):
            return False
        hold.add(count, self._clock())
        self._accounts[hold.caller].bytes += count
        self.held += count
        return True

    def may_fit(self, hold: Hold, count: int) -> bool:
        """Whether announced bytes may find room when they arrive. No upload is dropped for an announcement."""
        if count > self._limit - self._complete - hold.bytes:
            return False
        return self.held + count <= self._limit or self._victim(hold, count) is not None

    def make_room(self, hold: Hold, count: int) -> bool:
        """Drop other uploads if necessary and fair. Returns whether there is room for the bytes."""
        if count > self._limit - self._complete - hold.bytes:
            return False  # even if all incomplete uploads were dropped
        while self.held + count > self._limit:
            victim = self._victim(hold, count)
            if victim is None:
                return False
            self._leave(victim)
            self.held -= victim.bytes  # the memory is freed in the next turn of the event loop
            victim.bytes = 0
            victim.lose()
        return True

    def complete(self, hold: Hold) -> None:
        """Mark the upload as complete: it is no longer dropped."""
        if not hold.lost:
            self._leave(hold)
            self._complete += hold.bytes

    def close(self, hold: Hold) -> None:
        """Free the upload's bytes, whether or not it is complete."""
        if hold.lost:
            return
        account = self._accounts.get(hold.caller)
        if account and hold in account.holds:
            self._leave(hold)
        else:
            self._complete -= hold.bytes
        self.held -= hold.bytes

    def _leave(self, hold: Hold) -> None:
        account = self._accounts[hold.caller]
        account.holds.remove(hold)
        account.bytes -= hold.bytes
        if not account.holds:
            del self._accounts[hold.caller]

    def _victim(self, asking: Hold, count: int) -> Hold | None:
        """The upload to drop for ``asking``. Callers that hold the most come first.

        The largest caller loses its slowest upload to another caller, unless the other would then hold more: equal
        callers with fast uploads do not take memory from each other. A stalled upload is dropped for any caller, also
        for its own: behind a proxy, all clients may be one caller.
        """
        now, mine = self._clock(), self._accounts[asking.caller]
        if now - mine.searched < _SEARCH_S:
            return None
        ranking = sorted(self._accounts.values(), key=lambda account: account.bytes, reverse=True)
        for account in ranking:
            if victim := account.slowest(now, asking):
                largest = account is ranking[0] and account is not mine
                if largest and mine.bytes + count <= account.bytes - victim.bytes:
                    return victim
                if victim.lag_s(now) > self._upload_s:
                    return victim
        mine.searched = now
        return None
