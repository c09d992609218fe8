"""Rate limits: images per caller in a sliding window. A caller is an API key, or an address if there are no keys.

The package ``limits`` is not used: it cannot take a charge back, and scans all callers a hundred times a second.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from app.errors import RateLimited
from app.settings import Settings
from app.settings.values import rate


@dataclass(frozen=True, slots=True, eq=False)
class Charge:
    """Images of a caller, which count until a time."""

    caller: str
    images: int
    until: float


@dataclass(slots=True)
class _Window:
    """A caller's current charges, oldest first, and the sum of their images."""

    charges: OrderedDict[Charge, None] = field(default_factory=OrderedDict)
    images: int = 0
    until: float = 0.0

    def add(self, charge: Charge) -> None:
        self.charges[charge] = None
        self.images += charge.images
        self.until = charge.until

    def remove(self, charge: Charge) -> None:
        if charge in self.charges:
            del self.charges[charge]
            self.images -= charge.images

    def expire(self, now: float) -> None:
        while self.charges and (oldest := next(iter(self.charges))).until <= now:
            self.remove(oldest)

    def fits_at(self, room: int) -> float:
        """The time when at most ``room`` images count."""
        left = self.images
        for charge in self.charges:
            left -= charge.images
            if left <= room:
                return charge.until
        raise AssertionError("room is never negative")


class RateLimit:
    """Counts in the memory of this process, on the event loop. Without ``settings.rate_limit`` it counts nothing.

    Each of several HTTP processes counts for itself. If they divided the limit, a client that keeps it on one
    connection would be refused, because a connection always belongs to the same process.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._named = settings.rate_limit
        self._rate = rate(settings.rate_limit) if settings.rate_limit else None
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # the caller that was charged last comes last

    def charge(self, caller: str, images: int, instead: Charge | None = None) -> Charge | None:
        """Count images of a caller, or raise RateLimited and count none of them.

        They replace the earlier charge ``instead``, which stays if they are refused.
        """
        if not self._rate:
            return None
        if images > self._rate.images:
            raise RateLimited(
                f"the request has {images} images, more than the rate limit of {self._named} allows at once"
            )
        now = self._clock()
        self._forget(now)
        window = self._windows.setdefault(caller, _Window())
        window.expire(now)
        room = self._rate.images - images
        counted = instead.images if instead and instead in window.charges else 0
        if window.images - counted > room:
            raise RateLimited(f"the rate limit of {self._named} is exceeded", window.fits_at(room) - now)
        self.give_back(instead)
        charge = Charge(caller, images, now + self._rate.seconds)
        window.add(charge)
        self._windows.move_to_end(caller)
        return charge

    def give_back(self, charge: Charge | None) -> None:
        """Remove a charge."""
        if charge and (window := self._windows.get(charge.caller)):
            window.remove(charge)

    def _forget(self, now: float) -> None:
        """Remove callers without current charges."""
        while self._windows and next(iter(self._windows.values())).until <= now:
            self._windows.popitem(last=False)
