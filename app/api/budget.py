"""The memory that uploads may hold together, and who loses an upload when it is full. On the event loop.

While there is room, nobody is asked to hurry: mobile clients upload slowly. When there is none, the caller that holds
most loses its slowest upload, so that nobody fills the memory, sends a byte now and then, and keeps the others out.
Uploads that are complete are never lost.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_GRACE_S = 1.0  # an upload this young is not lost: its pace is not known yet
_PACE_S = 1.0  # time constant of the average of an upload's pace
_SEARCH_S = 0.1  # between two vain searches for one caller, which look at all uploads


class Hold:
    """One upload's bytes in memory. ``lost`` is set when it must end to make room; ``waiting`` ends its wait then."""

    def __init__(self, caller: str, now: float) -> None:
        self.caller = caller
        self.bytes = 0
        self.lost = False
        self.waiting: asyncio.Timeout | None = None
        self.since = now
        self._pace = 0.0  # bytes a second, at ``_at``
        self._at = now

    def add(self, count: int, now: float) -> None:
        """Count bytes that came now."""
        self._pace = self._pace * math.exp((self._at - now) / _PACE_S) + count / _PACE_S
        self._at = now
        self.bytes += count

    def lag_s(self, now: float) -> float:
        """Seconds that the bytes held would take at the present pace: the age of an upload of constant pace."""
        pace = self._pace * math.exp((self._at - now) / _PACE_S)
        return self.bytes / pace if pace else math.inf

    def lose(self) -> None:
        self.lost = True
        if self.waiting:
            with contextlib.suppress(RuntimeError):  # it times out already
                self.waiting.reschedule(-math.inf)


@dataclass(slots=True)
class _Account:
    """The unfinished uploads of one caller, and their bytes."""

    holds: set[Hold] = field(default_factory=set)
    bytes: int = 0
    searched: float = -math.inf

    def slowest(self, now: float, asking: Hold) -> Hold | None:
        """The upload that lags most, but for the one that asks and those that are young or hold nothing."""
        old = [hold for hold in self.holds if hold is not asking and hold.bytes and now - hold.since >= _GRACE_S]
        return max(old, key=lambda hold: hold.lag_s(now), default=None)


class Budget:
    """At most ``limit`` bytes.

    An upload has stalled when it lags by more than ``upload_s``, the longest that an upload may take.
    """

    def __init__(self, limit: int, upload_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._upload_s = upload_s
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._complete = 0
        self.held = 0

    def open(self, caller: str) -> Hold:
        """A new upload, which holds nothing yet. It must be closed."""
        hold = Hold(caller, self._clock())
        self._accounts.setdefault(caller, _Account()).holds.add(hold)
        return hold

    def reserve(self, hold: Hold, count: int) -> bool:
        """Count bytes that came for an upload; False, and nothing is counted, where there is no room for them."""
        if not self.make_room(hold, count):
            return False
        hold.add(count, self._clock())
        self._accounts[hold.caller].bytes += count
        self.held += count
        return True

    def may_fit(self, hold: Hold, count: int) -> bool:
        """Whether bytes that are announced may find room once they come. Nobody loses an upload for an announcement."""
        if count > self._limit - self._complete - hold.bytes:
            return False
        return self.held + count <= self._limit or self._victim(hold, count) is not None

    def make_room(self, hold: Hold, count: int) -> bool:
        """Whether there is room for bytes of an upload, once others have been lost for it where that is fair."""
        if count > self._limit - self._complete - hold.bytes:
            return False  # whoever were lost
        while self.held + count > self._limit:
            victim = self._victim(hold, count)
            if victim is None:
                return False
            self._leave(victim)
            self.held -= victim.bytes  # it is really freed a turn of the event loop later
            victim.bytes = 0
            victim.lose()
        return True

    def complete(self, hold: Hold) -> None:
        """The upload has come whole: it is not lost any more."""
        if not hold.lost:
            self._leave(hold)
            self._complete += hold.bytes

    def close(self, hold: Hold) -> None:
        """The upload's bytes are freed, whatever became of it."""
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
        """Whose upload is lost for ``asking``, those first who hold most.

        Whoever holds most loses its slowest upload to another caller, unless that one would then hold more: equal
        callers with fast uploads do not take them from each other. A stalled upload is lost to anybody, also to its own
        caller: behind a proxy all clients may be one.
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
