"""What a batch costs: the measured seconds of each batch size, and which size pays."""

from collections.abc import Iterable

PATIENCE_S = 0.95
"""Most clients that state no deadline give up after a second."""

OUTLIER = 2.0
"""A measurement counts as at most this many times the average: a machine may pause, and an image may be unusual."""

_PAYS = 0.97  # a bucket pays while its throughput is within 3 % of the best one
_FRESH = 0.2  # weight of the newest measurement in the moving average
_FORGIVEN = 0.005  # how far one measurement brings a larger bucket that does not pay back to where it would


class CostCurve:
    """Measured seconds a batch takes, by bucket; a batch of n costs what the smallest bucket holding n costs."""

    def __init__(self, buckets: Iterable[int]) -> None:
        self.buckets = tuple(sorted(buckets))
        self.ceiling = self.buckets[-1]
        self.fastest = 0.0  # seconds of the fastest batch ever measured; 0 before the first
        self._seconds: dict[int, float] = {}

    def bucket(self, n: int) -> int:
        """The smallest bucket that holds n items; the largest one if none does."""
        return next((b for b in self.buckets if b >= n), self.buckets[-1])

    def observe(self, n: int, seconds: float) -> None:
        """Take one measured batch of n items into the moving average of its bucket."""
        bucket = self.bucket(n)
        self.fastest = min(self.fastest or seconds, seconds)
        known = self._seconds.get(bucket)
        damped = seconds if known is None else known + _FRESH * (min(seconds, OUTLIER * known) - known)
        self._seconds[bucket] = damped
        self._forgive(bucket)
        self.ceiling = self._pays()

    def keep_below(self, size: int) -> None:
        """Batches of this size or larger cannot be run here."""
        self.buckets = tuple(b for b in self.buckets if b < size)
        self._seconds = {b: seconds for b, seconds in self._seconds.items() if b < size}
        self.ceiling = self._pays()

    def seconds(self, n: int) -> float:
        """Predicted seconds of one batch of n items; proportional to the nearest bucket where none is measured."""
        bucket = self.bucket(n)
        if bucket in self._seconds:
            return self._seconds[bucket]
        if not self._seconds:
            return 0.0
        nearest = min(self._seconds, key=lambda b: abs(b - bucket))
        return self._seconds[nearest] * bucket / nearest

    def as_dict(self) -> dict[int, float]:
        """Bucket -> measured seconds."""
        return dict(sorted(self._seconds.items()))

    def _pays(self) -> int:
        """The largest bucket whose throughput is within 3 % of the best; one that is not measured yet may be.

        A bucket counts only where two such batches fit into a client's patience, since one waits for the other; or
        where it takes no longer than the smallest.
        """
        bearable_s = max(PATIENCE_S / 2, self.seconds(self.buckets[0]))
        bearable = [b for b in self.buckets if self.seconds(b) <= bearable_s]
        least = _PAYS * max(b / max(self.seconds(b), 1e-9) for b in bearable)
        return max(b for b in bearable if b >= least * self.seconds(b))

    def _best_rate(self) -> float:
        return max((b / seconds for b, seconds in self._seconds.items() if seconds > 0), default=0.0)

    def _forgive(self, bucket: int) -> None:
        """What does not pay is not run, so not measured: without this, one hiccup would lower the ceiling for good."""
        best = self._best_rate()
        for larger, seconds in self._seconds.items():
            if larger > bucket and seconds * best > larger:
                self._seconds[larger] += _FORGIVEN * (larger / best - seconds)
