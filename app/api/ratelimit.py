"""Rate limits: so many images of one caller in a moving window. A caller is an API key, or an address without one."""

import math
import time

from app.errors import RateLimited
from app.settings import Settings


class RateLimit:
    """Counts in this process's memory; without ``settings.rate_limit`` it counts nothing. On the event loop.

    HTTP processes beside each other each grant their share.
    """

    def __init__(self, settings: Settings) -> None:
        self._rate = None
        if settings.rate_limit:
            import limits
            from limits.aio.storage import MemoryStorage
            from limits.aio.strategies import MovingWindowRateLimiter

            rate = limits.parse(settings.rate_limit)
            share = math.ceil(rate.amount / max(1, settings.workers))
            self._rate = type(rate)(share, rate.multiples)
            self._window = MovingWindowRateLimiter(MemoryStorage())

    async def charge(self, caller: str, images: int) -> None:
        """Count so many images of a caller, or raise RateLimited and count none of them."""
        if not self._rate or images <= 0:
            return
        if images > self._rate.amount:
            raise RateLimited(f"{images} images are more than are ever taken at once: {self._rate}", None)
        if not await self._window.hit(self._rate, caller, cost=images):
            again = await self._window.get_window_stats(self._rate, caller)
            raise RateLimited(f"more than {self._rate}", again.reset_time - time.time())
