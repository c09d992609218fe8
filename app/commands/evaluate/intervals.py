"""Confidence intervals of shares."""

import math
from statistics import NormalDist

CONFIDENCE = 0.95

Interval = tuple[float, float]


def wilson(right: int, n: int) -> Interval:
    """The 95 % score interval of a share (Wilson 1927, JASA 22): valid for small ``n`` and near 0 and 1."""
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    share = right / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
