"""The cost of a batch: the measured seconds of each batch size, and the smallest efficient size."""

from collections.abc import Iterable

OUTLIER = 2.0
"""A measurement counts as at most this multiple of the average: machines pause, and some images are unusual."""

_EFFICIENT = 0.97  # a bucket is efficient if its throughput is within 3 % of the best one
_WEIGHT = 0.2  # of the newest measurement in the moving average
_RECOVERY = 0.005  # share of the gap to the hope that one measurement closes for the next larger bucket
_HOPE = 1.04  # throughput that a larger bucket might have by now, as a factor on the best one


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

    def bucket(self, n: int) -> int:
        """Return the smallest bucket that holds n items, or the largest bucket if none does."""
        return next((b for b in self.buckets if b >= n), self.buckets[-1])

    def covers(self, n: int) -> bool:
        """Whether a batch of n items takes exactly as long as its bucket."""
        return n in self.buckets or (self.pads and n < self.buckets[-1])

    def observe(self, n: int, seconds: float) -> None:
        """Add the measured seconds of a batch of n items to the moving average of its bucket."""
        bucket = self.bucket(n)
        self.fastest = min(self.fastest or seconds, seconds)
        known = self._seconds.get(bucket)
        damped = seconds if known is None else known + _WEIGHT * (min(seconds, OUTLIER * known) - known)
        self._seconds[bucket] = damped
        self._recover()
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

        The cost of a bucket without a measurement is extrapolated.
        """
        rates = {b: b / max(self.seconds(b), 1e-9) for b in self.buckets}
        least = _EFFICIENT * max(rates.values())
        return next(b for b, rate in rates.items() if rate >= least)

    def _best_rate(self) -> float:
        return max((b / seconds for b, seconds in self._seconds.items() if seconds > 0), default=0.0)

    def untried(self, n: int) -> int | None:
        """Return the next bucket above the ceiling if it was never measured and n items fill it."""
        larger = next((b for b in self.buckets if b > self.ceiling), None)
        return larger if larger and larger <= n and larger not in self._seconds else None

    def _recover(self) -> None:
        """Lower the cost of the next bucket above the ceiling, until it is tried again.

        Buckets above the ceiling are not run and therefore not measured. Without this step, a single slow batch would
        lower the ceiling permanently.
        """
        larger = min((b for b in self._seconds if b > self.ceiling), default=None)
        best = _HOPE * self._best_rate()
        if larger and self._seconds[larger] * best > larger:
            self._seconds[larger] += _RECOVERY * (larger / best - self._seconds[larger])
