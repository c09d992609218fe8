"""Figures in a terminal."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from app.commands.evaluate.evaluation import Comparison, Evaluation
from app.commands.evaluate.intervals import Interval
from app.commands.evaluate.metrics import Metrics

_ROWS = 10
_LOOK: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1), "pad_edge": False}


def tell(evaluation: Evaluation, console: Console) -> None:
    """What answered, and how well; an evaluation's notes are left to who asks."""
    _print(console, ", ".join(answering(evaluation.facts)))
    show(evaluation, console)


def show(evaluation: Evaluation, console: Console) -> None:
    """Accuracy first, then what explains it."""
    metrics = evaluation.metrics
    console.print(accuracy(metrics, evaluation.comparison))
    _print(console, *notes(metrics), *comparison(evaluation), *unreadable(evaluation))
    for table in (levels(metrics), worst(metrics), confused(metrics)):
        if table.row_count:
            console.print(table)


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def answering(facts: dict[str, Any]) -> Iterator[str]:
    """What answered, as facts tell."""
    yield f"{facts['model']} ({facts['weights']})"
    yield f"{facts['engine']} in {facts['precision']} on {facts['device']}"
    if not facts["fast_decode"]:
        yield "every pixel decoded"
    if "url" in facts:
        yield str(facts["url"])


def unreadable(evaluation: Evaluation) -> Iterator[str]:
    """What did not count, and why."""
    failed = evaluation.answers.unreadable
    if failed:
        yield f"{count(len(failed), 'file')} could not be read and did not count:"
    for i in sorted(failed)[:_ROWS]:
        yield f"  {evaluation.name(i)}: {failed[i].detail} ({failed[i].code})"
    if len(failed) > _ROWS:
        yield f"  and {len(failed) - _ROWS:,} more; --json and --report list them all"


def comparison(evaluation: Evaluation) -> Iterator[str]:
    """Where the reference answers otherwise."""
    found = evaluation.comparison
    if not found:
        return
    yield (
        f"agreement: {percent(found.agreement)} ({interval(found.interval)}) of {count(found.n, 'image')};"
        f" the reference is {', '.join([*answering(found.facts)][1:])}"
    )
    for i in found.differ[:_ROWS]:
        ours, theirs = evaluation.guess(i), evaluation.guess(i, found.answers)
        yield (
            f"  {evaluation.name(i)}: {ours.label} ({ours.score:.2f}), the reference says"
            f" {theirs.label} ({theirs.score:.2f}); it is {evaluation.truth(i)}"
        )
    if len(found.differ) > _ROWS:
        yield f"  and {len(found.differ) - _ROWS:,} more; --json lists them all"


def accuracy(metrics: Metrics, comparison: Comparison | None = None) -> Table:
    """Top-1 and top-5, and the reference's."""
    table = _table("", "accuracy", "95 % interval", *(("reference",) if comparison else ()))
    for name, share, bounds, pair in (
        ("top-1", metrics.top1, metrics.top1_interval, comparison and comparison.top1),
        (f"top-{metrics.k}", metrics.top5, metrics.top5_interval, comparison and comparison.top5),
    ):
        table.add_row(name, percent(share), interval(bounds), *((percent(pair[1]),) if pair else ()))
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
    table = _table("By WordNet level", "images", "top-1", "right as one")
    for level in metrics.levels:
        if level.indent is not None:
            name = f"{'  ' * level.indent}{level.label}"
            table.add_row(name, f"{level.n:,}", percent(level.exact), percent(level.accuracy))
    return table


def worst(metrics: Metrics) -> Table:
    """The classes that are answered worst; none that is always right."""
    table = _table("Worst classes", "images", "top-1", f"top-{metrics.k}")
    for row in metrics.per_class[:_ROWS]:
        if row.accuracy < 1:
            table.add_row(row.label, f"{row.n:,}", percent(row.accuracy), percent(row.top5))
    return table


def confused(metrics: Metrics) -> Table:
    """What was taken for what most often."""
    table = Table(
        Column("Most confused", overflow="fold"),
        Column("answered", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in ("images", "of its class")),
        **_LOOK,
    )
    for pair in metrics.confused[:_ROWS]:
        table.add_row(pair.truth, pair.answer, f"{pair.n:,}", percent(pair.share, 0))
    return table


def _table(first: str, *others: str) -> Table:
    right = (Column(name, justify="right", no_wrap=True) for name in others)
    return Table(Column(first, overflow="fold"), *right, **_LOOK)


def percent(share: float, digits: int = 1) -> str:
    """A fraction as it is read."""
    return f"{100 * share:.{digits}f} %"


def interval(bounds: Interval) -> str:
    """Two fractions as they are read."""
    return f"{100 * bounds[0]:.1f} to {percent(bounds[1])}"


def count(n: int, one: str, many: str = "") -> str:
    """``1 image``, ``2 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
