"""Which rate to try next on the way to the largest that is held."""

import math
from collections.abc import Sequence
from typing import NamedTuple

HELD = 0.97  # goodput over what was offered
GROWTH = 1.25
CLOSE_ENOUGH = 1.04
MOST = 10
_LOWEST = 1 / 30  # of the first rate tried


class Tried(NamedTuple):
    rate: float
    held: bool


def next_rate(start: float, tried: Sequence[Tried], ceiling: float = math.inf) -> float | None:
    """The next rate, or None when it is known well enough: up or down in steps, then between the two that enclose it.

    A rate that was not held below one that was is taken for noise. Nothing above ``ceiling`` is tried.
    """
    if not tried:
        return _rounded(min(start, ceiling))
    held = capacity(tried) or 0.0
    broken = min((step.rate for step in tried if not step.held and step.rate > held), default=math.inf)
    if len(tried) >= MOST or broken <= held * CLOSE_ENOUGH or held >= ceiling or broken < start * _LOWEST:
        return None
    if math.isinf(broken):
        return _rounded(min(held * GROWTH, ceiling))
    return _rounded(math.sqrt(held * broken) if held else broken / GROWTH**2)


def capacity(tried: Sequence[Tried]) -> float | None:
    """The largest rate that was held, if any was."""
    return max((step.rate for step in tried if step.held), default=None)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
