"""Rate limits: so many images of one caller in a moving window. A caller is an API key, or an address without one.

Not by the package ``limits``: it takes no charge back, and looks through all callers a hundred times a second.
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
    """Images of a caller that count ``until`` then."""

    caller: str
    images: int
    until: float


@dataclass(slots=True)
class _Window:
    """A caller's charges that still count, oldest first, and the sum of their images."""

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
        """When no more than ``room`` images count."""
        left = self.images
        for charge in self.charges:
            left -= charge.images
            if left <= room:
                return charge.until
        raise AssertionError("there is never less room than none")


class RateLimit:
    """Counts in this process's memory; without ``settings.rate_limit`` it counts nothing. On the event loop.

    HTTP processes beside each other count each for itself: to divide the limit among them would refuse who keeps it on
    one connection, which is always the same process's.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._named = settings.rate_limit
        self._rate = rate(settings.rate_limit) if settings.rate_limit else None
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # whoever was charged last comes last

    def charge(self, caller: str, images: int, instead: Charge | None = None) -> Charge | None:
        """Count so many images of a caller, or raise RateLimited and count none of them.

        They count ``instead`` of an earlier charge, which stays where they are refused.
        """
        if not self._rate:
            return None
        if images > self._rate.images:
            raise RateLimited(
                f"{images} images in one request are more than the rate limit, {self._named}, ever grants"
            )
        now = self._clock()
        self._forget(now)
        window = self._windows.setdefault(caller, _Window())
        window.expire(now)
        room = self._rate.images - images
        counted = instead.images if instead and instead in window.charges else 0
        if window.images - counted > room:
            raise RateLimited(f"more images than the rate limit, {self._named}, grants", window.fits_at(room) - now)
        self.give_back(instead)
        charge = Charge(caller, images, now + self._rate.seconds)
        window.add(charge)
        self._windows.move_to_end(caller)
        return charge

    def give_back(self, charge: Charge | None) -> None:
        """Count these images no more."""
        if charge and (window := self._windows.get(charge.caller)):
            window.remove(charge)

    def _forget(self, now: float) -> None:
        """Forget the callers of whom nothing counts any more."""
        while self._windows and next(iter(self._windows.values())).until <= now:
            self._windows.popitem(last=False)
