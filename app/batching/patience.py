"""How long clients wait, learned from those who hang up and those who are answered. No threads, no clock.

A client that hangs up reveals its patience, and one that is answered was patient at least that long. This is the
product-limit estimate of survival from censored data (Kaplan and Meier 1958), over counts that decay.
"""

import itertools
import math
from bisect import bisect_right

_SHORTEST_S = 0.02  # upper edge of the first bin of ages
_RATIO = 1.06  # of an edge to the one before
_BINS = 160  # up to 200 s
_KEPT = 0.9  # share of the clients that stay for the patience
_FEW = 0.1  # share of the clients without which hang-ups below ``_EARLY_S`` count like all others
_EARLY_S = 0.2  # a client that leaves earlier cancels its request: nobody loses patience so soon
_HALF_LIFE_S = 5.0  # of an observation
_MOST_LEFT = 80.0  # maximum weight of all hang-ups, so that they are forgotten within half a minute
_PRIOR = 10.0  # clients that are assumed to wait for ever
_FREE = 3.0  # hang-ups of a caller that count although it was never answered
_MOST_CALLERS = 4096  # whose answers and hang-ups are remembered
_RESCALED = 40.0  # half-lives after which all weights are scaled down
_FORGOTTEN = 1000.0  # half-lives that leave nothing of an observation
_REFRESH_S = 0.05  # the estimate is at most this old


class Patience:
    """The estimate. Not thread-safe; callers pass the current time in seconds."""

    def __init__(self) -> None:
        self._answered = [0.0] * _BINS
        self._left = [0.0] * _BINS
        self._all_left = 0.0
        self._callers: dict[int, tuple[float, float]] = {}  # weights of the answers to a caller, and of its hang-ups
        self._start = 0.0  # an observation at this time has the weight 1
        self._estimated_at = -math.inf
        self._survival = [1.0] * _BINS  # share of the clients that stay beyond each bin
        self._seconds = math.inf

    def answered(self, age: float, caller: int, now: float) -> None:
        """Record a client that was answered after ``age`` seconds. ``caller`` is a number for its key or address."""
        weight = self._weight(now)
        self._answered[_bin(age)] += weight
        answered, left = self._caller(caller)
        self._callers[caller] = answered + weight, left

    def left(self, age: float, caller: int, now: float) -> None:
        """Record a client that hung up after ``age`` seconds.

        The hang-ups of a caller count as far as there are as many answers to it, and a few more. One caller can then
        not make others refused at no cost to itself, while the clients behind a proxy's address all count.
        """
        weight = self._weight(now)
        answered, left = self._caller(caller)
        counts = left + weight <= answered + _FREE * weight
        self._callers[caller] = answered, left + weight * counts
        if not counts:
            return
        self._left[_bin(age)] += weight
        self._all_left += weight
        if self._all_left > _MOST_LEFT * weight:
            self._scale(_MOST_LEFT * weight / self._all_left)

    def seconds(self, now: float) -> float:
        """The longest wait that nine of ten clients stay for; infinite if so many have not left.

        It is at least ``_EARLY_S`` if one of ten clients stays that long, so that nobody can make others refused by
        hanging up at once.
        """
        self._estimate(now)
        return self._seconds

    def leaving(self, seconds: float, stay: float, now: float) -> list[tuple[float, float]]:
        """The intervals of ages at which a client stays for ``seconds`` more with less than this probability."""
        self._estimate(now)
        turns = {0.0}  # ages at which the answer may change
        for start, end, before, share in zip(_EDGES, _EDGES[1:], [1.0, *self._survival], self._survival, strict=False):
            if share < before:
                turns |= {max(0.0, start - seconds), end}
        spans = itertools.pairwise([*sorted(turns), _LONGEST_S])
        return [(start, end) for start, end in spans if self._stay((start + end) / 2, seconds) < stay]

    def _stay(self, age: float, seconds: float) -> float:
        """The probability that a client that has waited for ``age`` seconds stays for ``seconds`` more."""
        first = _bin(age)
        return self._survival[_bin(age + seconds)] / (self._survival[first - 1] if first else 1.0)

    def _caller(self, caller: int) -> tuple[float, float]:
        """The weights of the answers and the hang-ups of a caller, which becomes the newest one."""
        known = self._callers.pop(caller, (0.0, 0.0))
        if len(self._callers) >= _MOST_CALLERS:
            del self._callers[next(iter(self._callers))]
        return known

    def _weight(self, now: float) -> float:
        """The weight of an observation now. Newer ones grow instead of older ones decaying, which costs less."""
        half_lives = (now - self._start) / _HALF_LIFE_S
        if half_lives > _RESCALED:
            factor = 0.5 ** min(half_lives, _FORGOTTEN)
            self._scale(factor)
            self._callers = {one: (stayed * factor, left * factor) for one, (stayed, left) in self._callers.items()}
            self._start = now
            return 1.0
        return float(2.0**half_lives)

    def _scale(self, factor: float) -> None:
        self._answered = [weight * factor for weight in self._answered]
        self._left = [weight * factor for weight in self._left]
        self._all_left *= factor

    def _estimate(self, now: float) -> None:
        if now - self._estimated_at < _REFRESH_S:
            return
        self._estimated_at = now
        self._survival = self._product(_PRIOR * self._weight(now))
        self._seconds = self._longest(_KEPT)
        early = _bin(_EARLY_S) - 1
        if self._seconds < _EARLY_S and self._product(self._weight(now))[early] >= _FEW:
            self._seconds = self._longest(_KEPT * self._survival[early])

    def _product(self, prior: float) -> list[float]:
        """The share of the clients that stay beyond each bin, with this weight of clients that never leave."""
        at_risk = prior + sum(self._answered) + sum(self._left)
        shares, share = [], 1.0
        for answered, left in zip(self._answered, self._left, strict=True):
            share *= 1 - left / at_risk
            shares.append(share)
            at_risk = max(prior, at_risk - answered - left)
        return shares

    def _longest(self, kept: float) -> float:
        """The longest wait that this share of the clients stays for."""
        found = next((place for place, share in enumerate(self._survival) if share < kept), None)
        return math.inf if found is None else _EDGES[found]


_EDGES = (0.0, *itertools.accumulate([_SHORTEST_S, *[_RATIO] * (_BINS - 2)], lambda edge, ratio: edge * ratio))
"""The lower edge of each bin."""

_LONGEST_S = _EDGES[-1] * _RATIO


def _bin(age: float) -> int:
    """The bin of an age."""
    return max(0, bisect_right(_EDGES, age) - 1)
