"""The cost of a batch: the measured seconds of each batch size, and the smallest efficient size."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping

OUTLIER = 2.0
"""A measurement counts as at most this multiple of the average: machines pause, and some images are unusual."""

_EFFICIENT = 0.97  # a bucket is efficient if its throughput is within 3 % of the best one
_TOLERATED = 0.92  # the ceiling rises once its throughput is below this share of the best: measurements vary
_WEIGHT = 0.1  # of the newest measurement in the moving average, at least
_RECOVERY = 0.002  # share of the gap to the hope that one measurement closes for a bucket next to the ceiling
_HOPE = 1.1  # throughput that such a bucket might have by now, as a factor on the best one


class CostCurve:
    """Measured seconds of a batch, by bucket. A batch of n items costs as much as the smallest bucket that holds n.

    ``pads``: the engine pads each batch to its bucket. Otherwise smaller batches cost less, and only full buckets are
    measured.
    """

    def __init__(self, buckets: Iterable[int], pads: bool = False) -> None:
        self.buckets = tuple(sorted(buckets))
        self.pads = pads
        self.ceiling = self.buckets[-1]
        self.fastest = 0.0  # seconds of the fastest batch ever measured; 0 before the first
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def bucket(self, n: int) -> int:
        """Return the smallest bucket that holds n items, or the largest bucket if none does."""
        return self.buckets[min(bisect_left(self.buckets, n), len(self.buckets) - 1)]

    def covers(self, n: int) -> bool:
        """Whether a batch of n items takes exactly as long as its bucket."""
        return n in self.buckets or (self.pads and n < self.buckets[-1])

    def observe(self, n: int, seconds: float) -> None:
        """Add the measured seconds of a batch of n items to the moving average of its bucket."""
        bucket = self.bucket(n)
        self.fastest = min(self.fastest or seconds, seconds)
        known = self._seconds.get(bucket)
        count = self._counts[bucket] = self._counts.get(bucket, 0) + 1
        weight = max(_WEIGHT, 1 / (count + 2))
        self._seconds[bucket] = seconds if known is None else known + weight * (min(seconds, OUTLIER * known) - known)
        self._recover()
        self.ceiling = self._efficient_size()

    def restore(self, seconds: Mapping[int, float]) -> None:
        """Replace all measurements by those that another curve has made, as they are."""
        self._seconds = dict(seconds)
        self._counts = dict.fromkeys(seconds, 1)
        self.fastest = min(seconds.values(), default=0.0)
        self.ceiling = self._efficient_size()

    def keep_below(self, size: int) -> None:
        """Remove the buckets of this size and larger, which do not fit in the memory of the device."""
        self.buckets = tuple(b for b in self.buckets if b < size)
        self._seconds = {b: seconds for b, seconds in self._seconds.items() if b < size}
        self.ceiling = self._efficient_size()

    def seconds(self, n: int) -> float:
        """Predict the seconds of a batch of n items.

        If its bucket has no measurement, the prediction is proportional to the nearest measured bucket.
        """
        bucket = self.bucket(n)
        if bucket in self._seconds:
            return self._seconds[bucket]
        if not self._seconds:
            return 0.0
        nearest = min(self._seconds, key=lambda b: abs(b - bucket))
        return self._seconds[nearest] * bucket / nearest

    def as_dict(self) -> dict[int, float]:
        """Return the measured seconds by bucket."""
        return dict(sorted(self._seconds.items()))

    def _efficient_size(self) -> int:
        """Return the smallest bucket whose throughput is within 3 % of the best: items do not wait for others in vain.

        Measurements vary, so a ceiling within 8 % of the best does not rise. The cost of a bucket without a measurement
        is extrapolated.
        """
        rates = {b: b / max(self.seconds(b), 1e-9) for b in self.buckets}
        best = max(rates.values())
        efficient = next(b for b, rate in rates.items() if rate >= _EFFICIENT * best)
        return self.ceiling if efficient > self.ceiling and rates[self.ceiling] >= _TOLERATED * best else efficient

    def _best_rate(self) -> float:
        return max((b / seconds for b, seconds in self._seconds.items() if seconds > 0), default=0.0)

    def untried(self, n: int) -> int | None:
        """Return the next bucket above the ceiling if it was never measured and n items fill it."""
        larger = next((b for b in self.buckets if b > self.ceiling), None)
        return larger if larger and larger <= n and larger not in self._seconds else None

    def _recover(self) -> None:
        """Lower the costs of the buckets next to the ceiling, until they are tried again and measured.

        Only the ceiling is run during overload. Without this step, a few slow batches would change it permanently.
        """
        place = self.buckets.index(self.ceiling)
        hope = _HOPE * self._best_rate()
        for bucket in (*self.buckets[max(0, place - 1) : place], *self.buckets[place + 1 : place + 2]):
            known = self._seconds.get(bucket, 0.0)
            if known * hope > bucket:
                self._seconds[bucket] += _RECOVERY * (bucket / hope - known)
                self._counts[bucket] = 1  # the next measurement counts for more
