"""Figures in a terminal."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from app.evaluate.intervals import Interval
from app.evaluate.metrics import Metrics

_ROWS = 10
_LOOK: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1), "pad_edge": False, "title_justify": "left"}


def show(metrics: Metrics, console: Console) -> None:
    """Accuracy first, then what explains it."""
    console.print(accuracy(metrics))
    for line in notes(metrics):
        console.print(line, highlight=False, markup=False)
    for table in (levels(metrics), worst(metrics), confused(metrics)):
        if table.row_count:
            console.print(table)


def accuracy(metrics: Metrics) -> Table:
    """Top-1 and top-5."""
    table = _table("", "accuracy", "95 % interval")
    table.add_row("top-1", percent(metrics.top1), interval(metrics.top1_interval))
    table.add_row(f"top-{metrics.k}", percent(metrics.top5), interval(metrics.top5_interval))
    return table


def notes(metrics: Metrics) -> Iterator[str]:
    """How many images, and how far scores can be taken for probabilities."""
    yield f"{count(metrics.n, 'image')} of {count(metrics.classes, 'class', 'classes')}"
    yield (
        f"calibration: mean score {percent(metrics.confidence)}, top-1 {percent(metrics.top1)}; expected calibration"
        f" error {percent(metrics.ece)}"
    )


def levels(metrics: Metrics) -> Table:
    """How often the answer is right as a dog, as an animal."""
    table = _table("right as", "images", "the very class", "right", title="By WordNet level")
    for level in metrics.levels:
        if level.indent is not None:
            name = f"{'  ' * level.indent}{level.label}"
            table.add_row(name, f"{level.n:,}", percent(level.exact), percent(level.accuracy))
    return table


def worst(metrics: Metrics) -> Table:
    """The classes that are answered worst; none that is always right."""
    table = _table("class", "images", "top-1", f"top-{metrics.k}", title="Worst classes")
    for row in metrics.per_class[:_ROWS]:
        if row.accuracy < 1:
            table.add_row(row.label, f"{row.n:,}", percent(row.accuracy), percent(row.top5))
    return table


def confused(metrics: Metrics) -> Table:
    """What was taken for what most often."""
    table = Table(
        Column("is", overflow="fold"),
        Column("answered", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in ("images", "of its class")),
        title="Most confused",
        **_LOOK,
    )
    for pair in metrics.confused[:_ROWS]:
        table.add_row(pair.truth, pair.answer, f"{pair.n:,}", percent(pair.share, 0))
    return table


def _table(first: str, *others: str, title: str | None = None) -> Table:
    right = (Column(name, justify="right", no_wrap=True) for name in others)
    return Table(Column(first, overflow="fold"), *right, title=title, **_LOOK)


def percent(share: float, digits: int = 1) -> str:
    """A fraction as it is read."""
    return f"{100 * share:.{digits}f} %"


def interval(bounds: Interval) -> str:
    """Two fractions as they are read."""
    return f"{100 * bounds[0]:.1f} to {percent(bounds[1])}"


def count(n: int, one: str, many: str = "") -> str:
    """``1 image``, ``2 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
