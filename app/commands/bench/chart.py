"""The charts of a report."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from app.commands.bench.loads import Closed
from app.commands.bench.points import Point
from app.commands.bench.run import LoadResult
from app.commands.reports.drawing import COLOURS, figure, style, svg

_INCHES = 7.4
_LEAD_WIDTH, _WIDTH = 2.4, 1.5
_LABEL_WIDTH = 0.035  # of the throughput axis
_LABEL_HEIGHT = 1.15  # ratio of latencies


class Curve(NamedTuple):
    """A percentile: its name, its colour, and its value at a point."""

    name: str
    colour: str
    value: Callable[[Point], float | None]


class Outcome(NamedTuple):
    """A kind of outcome: its name, its colour, and its count at a point."""

    name: str
    colour: str
    count: Callable[[Point], int]


CURVES = (
    Curve("p50", "accent", lambda point: point.p50_ms),
    Curve("p95", "middle", lambda point: point.p95_ms),
    Curve("p99", "bar", lambda point: point.p99_ms),
)
OUTCOMES = (
    Outcome("within the SLO", "accent", lambda point: point.good),
    Outcome("late", "bar", lambda point: point.late),
    Outcome("refused (503, 429)", "edge", lambda point: point.refused),
    Outcome("timeout", "faint", lambda point: point.errors.get("timeout", 0)),
    Outcome("failed", "danger", lambda point: _failed(point)),
)


def drawn(result: LoadResult) -> list[Point]:
    """The points to draw: without the closed loop from which a search starts."""
    opened = [point for point in result.ordered if not isinstance(point.load, Closed)]
    return opened or result.ordered


def latency(result: LoadResult) -> str:
    """Latency over throughput, or over the offered rate of an open loop. The horizontal axis starts at zero."""
    with style():
        drawn_on, [axes] = figure(_INCHES, 3.5)
        points = [point for point in drawn(result) if point.p50_ms is not None]
        _curves(axes, points)
        _slo(axes, result.plan.slo_ms)
        if result.capacity is not None:
            axes.axvline(result.capacity, color=COLOURS["ink"], linewidth=0.9, dashes=(1, 2))
            axes.annotate(
                f"capacity {result.capacity:g}/s",
                (result.capacity, 1),
                xycoords=("data", "axes fraction"),
                va="top",
                ha="right",
                xytext=(-2, 0),
                textcoords="offset points",
                color=COLOURS["ink"],
            )
        closed = bool(points) and isinstance(points[0].load, Closed)
        axes.set_xlabel("responses per second; the numbers are clients" if closed else "requests offered per second")
        return svg(drawn_on, "Latency over throughput")


def outcomes(result: LoadResult) -> str:
    """The outcomes of each point's requests, per second."""
    points = drawn(result)
    with style():
        drawn_on, [axes] = figure(_INCHES, 2.6)
        floor = [0.0] * len(points)
        for part in OUTCOMES:
            heights = [part.count(point) / point.seconds for point in points]
            axes.bar(range(len(points)), heights, 0.62, floor, color=COLOURS[part.colour], linewidth=0)
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        axes.set_xticks(range(len(points)), [f"{point.load.size:g}" for point in points])
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(-0.7, max(len(points), 4) - 0.3)
        closed = bool(points) and isinstance(points[0].load, Closed)
        axes.set_xlabel("clients" if closed else "requests offered per second", x=0.5)
        return svg(drawn_on, "Outcomes of the requests of each point")


def _place(point: Point) -> float:
    """The position on the horizontal axis: throughput, or the offered rate of an open loop."""
    return point.throughput if isinstance(point.load, Closed) else point.load.size


def _failed(point: Point) -> int:
    return point.requests - point.good - point.late - point.refused - point.errors.get("timeout", 0)


def _curves(axes: Axes, points: Sequence[Point]) -> None:
    x = [_place(point) for point in points]
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)
    axes.set_xlim(0, 1.06 * max(x, default=1.0))
    for curve in reversed(CURVES):
        y, width = [curve.value(point) for point in points], _LEAD_WIDTH if curve is CURVES[0] else _WIDTH
        [line] = axes.plot(x, y, "o-", color=COLOURS[curve.colour], linewidth=width, markersize=width + 2.5)  # type: ignore[arg-type]
        line.set(markeredgecolor=COLOURS["surface"], markeredgewidth=0.8)
    labelled: list[tuple[float, float]] = []
    for point, place in reversed(list(zip(points, x, strict=True))):
        position = (place, point.p50_ms or 0)
        if isinstance(point.load, Closed) and not any(_overlap(position, other, max(x)) for other in labelled):
            labelled.append(position)
            axes.annotate(
                str(point.load.clients),
                position,
                xytext=(0, -13),
                textcoords="offset points",
                ha="center",
                color=COLOURS["ink"],
            )


def _overlap(a: tuple[float, float], b: tuple[float, float], widest: float) -> bool:
    """Whether labels at two points of the chart would cover each other."""
    return abs(a[0] - b[0]) < _LABEL_WIDTH * widest and max(a[1], b[1]) < _LABEL_HEIGHT * min(a[1], b[1])


def _slo(axes: Axes, slo_ms: float) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low * 0.8, max(high, slo_ms * 1.3) if high > slo_ms / 5 else high)
    if slo_ms <= axes.get_ylim()[1]:
        axes.axhline(slo_ms, color=COLOURS["ink"], linewidth=0.9, dashes=(4, 3))
        axes.annotate(
            f"SLO {slo_ms:g} ms", (0, slo_ms), xycoords=("axes fraction", "data"), xytext=(4, 4),
            textcoords="offset points", color=COLOURS["ink"],
        )  # fmt: skip
