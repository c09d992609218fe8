"""Which rate to try next in the search for the highest sustained rate."""

import math
from collections.abc import Sequence
from typing import NamedTuple

SUSTAINED = 0.97  # goodput divided by the offered rate
GROWTH = 1.25
CLOSE_ENOUGH = 1.04
MOST_TRIALS = 10
_LOWEST = 1 / 30  # of the first rate


class Trial(NamedTuple):
    """A rate, and whether the server sustained it."""

    rate: float
    sustained: bool


def next_rate(start: float, trials: Sequence[Trial], ceiling: float = math.inf) -> float | None:
    """The next rate to try, or None when the capacity is known well enough.

    The search goes up or down in steps, then bisects. A rate that was not sustained, below one that was, counts as
    noise. No rate above ``ceiling`` is tried.
    """
    if not trials:
        return _rounded(min(start, ceiling))
    held = capacity(trials) or 0.0
    broken = min((trial.rate for trial in trials if not trial.sustained and trial.rate > held), default=math.inf)
    if len(trials) >= MOST_TRIALS or broken <= held * CLOSE_ENOUGH or held >= ceiling or broken < start * _LOWEST:
        return None
    if math.isinf(broken):
        return _rounded(min(held * GROWTH, ceiling))
    return _rounded(math.sqrt(held * broken) if held else broken / GROWTH**2)


def capacity(trials: Sequence[Trial]) -> float | None:
    """The highest sustained rate, or None."""
    return max((trial.rate for trial in trials if trial.sustained), default=None)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
