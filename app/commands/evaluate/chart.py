"""The plots of a report."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, MultipleLocator

from app.commands.evaluate.metrics import BINS, AccuracyMetrics, Bin
from app.commands.reports.drawing import COLOURS, PERCENT, figure, style, svg

_INCHES = 4.2
_HEADROOM = 0.06
_LOW = 0.05  # a label below a lower accuracy would cover the axis
_APART = 2  # least distance of labelled depths
RELIABILITY = (
    ("accuracy", "accent"),
    ("above the mean score", "bar"),
    ("below the mean score", "danger"),
)


def reliability(metrics: AccuracyMetrics) -> str:
    """Accuracy by score, with the mean score; below it, the share of images with such scores."""
    with style():
        drawn, [top, below] = figure(_INCHES, 3.9, (4, 1))
        there = [one for one in metrics.bins if one.n]
        held = [min(one.accuracy, one.confidence) for one in there]
        beyond = [max(0, one.accuracy - one.confidence) for one in there]
        short = [max(0, one.confidence - one.accuracy) for one in there]
        _bars(top, there, held, "accent")
        _bars(top, there, beyond, "bar", held)
        _bars(top, there, short, "danger", held, alpha=0.3)
        top.plot([0, 1], [0, 1], color=COLOURS["ink"], linewidth=0.9, dashes=(4, 3))
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy, %")
        top.yaxis.set_major_locator(MultipleLocator(0.25))
        top.tick_params(axis="x", length=0)
        _bars(below, there, [one.n / metrics.n for one in there], "edge")
        below.set(ylabel="images, %", xlabel="score of the best class, %", ylim=(0, None))
        below.yaxis.set_major_locator(MaxNLocator(2))
        below.xaxis.set_major_locator(MultipleLocator(0.25))
        for axes in (top, below):
            axes.yaxis.set_major_formatter(PERCENT)
            axes.xaxis.set_major_formatter(PERCENT)
        drawn.align_ylabels()
        return svg(drawn, "Accuracy by score")


def depths(metrics: AccuracyMetrics) -> str:
    """The share of predictions that are right at each depth of WordNet."""
    with style():
        drawn, [axes] = figure(_INCHES, 3.9)
        x, y = range(len(metrics.depths)), metrics.depths
        low = max(0.0, metrics.top1 - max(0.05, (1 - metrics.top1) / 2))
        [line] = axes.plot(x, y, "o-", color=COLOURS["accent"], linewidth=2, markersize=4.5)
        line.set(markeredgecolor=COLOURS["surface"], markeredgewidth=0.8, clip_on=False, zorder=3)
        axes.axhline(metrics.top1, color=COLOURS["ink"], linewidth=0.9, dashes=(4, 3))
        axes.annotate(
            f"top-1 {100 * metrics.top1:.1f} %", (0, metrics.top1), xycoords=("axes fraction", "data"),
            xytext=(5, 4 if metrics.top1 < _LOW else -12), textcoords="offset points", color=COLOURS["ink"],
        )  # fmt: skip
        for depth, name in _landmarks(metrics):
            axes.annotate(name, (depth, y[depth]), xytext=(4, 4), textcoords="offset points", color=COLOURS["ink"])
        axes.set(
            xlim=(0, len(y) - 1),
            ylim=(low, 1 + (1 - low) * _HEADROOM),
            ylabel="accuracy, %",
            xlabel="steps from WordNet's root",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PERCENT)
        return svg(drawn, "Accuracy by depth in WordNet")


def _landmarks(metrics: AccuracyMetrics) -> list[tuple[int, str]]:
    """A label for some depths: the selected node with the most images there."""
    found: dict[int, str] = {}
    for level in sorted((level for level in metrics.levels if level.indent is not None), key=lambda level: -level.n):
        if all(abs(level.depth - other) >= _APART for other in found):
            found[level.depth] = level.label
    return list(found.items())


def _bars(
    axes: Axes,
    bins: Sequence[Bin],
    heights: Sequence[float],
    colour: str,
    floor: Sequence[float] | float = 0.0,
    alpha: float = 1.0,
) -> None:
    places = [one.low + 0.5 / BINS for one in bins]
    axes.bar(places, heights, 0.86 / BINS, floor, color=COLOURS[colour], alpha=alpha, linewidth=0)
