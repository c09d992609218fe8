"""What a step measures: figures with their expectations, and what became of the step."""

import operator
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
}

DONE, FAILED, SKIPPED, UNFINISHED = "done", "failed", "skipped", "unfinished"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. ``expected`` is a comparison such as ``>= 15000``, or empty.

    The table leaves out a ``detail``, which only the JSON has.
    """

    name: str
    value: float | str | None
    unit: str = ""
    expected: str = ""
    detail: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the value is as expected; None if nothing is expected."""
        if not self.expected:
            return None
        comparison, _, bound = self.expected.partition(" ")
        return isinstance(self.value, int | float) and _COMPARISONS[comparison](self.value, float(bound))


@dataclass(slots=True)
class Outcome:
    """A step's figures so far. ``reason`` says why it failed, was skipped or is incomplete."""

    part: int
    step: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        figures = [asdict(figure) | {"met": figure.met} for figure in self.figures]
        return {
            "part": self.part,
            "step": self.step,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self.seconds, 1),
            "figures": figures,
        }


class Report:
    """A step calls it with each figure as soon as it has one. ``send`` passes the figure on.

    ``target`` is what is expected on a GPU only.
    """

    def __init__(self, send: Callable[[Figure], None], gpu: bool) -> None:
        self._send = send
        self._gpu = gpu

    def __call__(
        self,
        name: str,
        value: float | str | None,
        unit: str = "",
        expected: str = "",
        *,
        target: str = "",
        detail: bool = False,
    ) -> None:
        value = float(f"{value:.5g}") if isinstance(value, float) else value
        self._send(Figure(name, value, unit, target if target and self._gpu else expected, detail))


@dataclass(frozen=True, slots=True)
class Context:
    """The conditions of a step. ``seconds`` is its share of time, with ``quick`` a short one. ``kit`` is the folder."""

    device: str
    quick: bool
    seconds: float
    kit: str

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def until(self, share: float) -> float:
        """The time of ``time.monotonic`` at which this share of the step's time will have passed, counted from now."""
        return time.monotonic() + share * self.seconds
