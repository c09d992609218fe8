"""An evaluation as tables on a terminal."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from app.commands.console import print_line
from app.commands.evaluate.evaluation import Comparison, Evaluation
from app.commands.evaluate.intervals import Interval
from app.commands.evaluate.metrics import AccuracyMetrics

_ROWS = 10
_LOOK: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1), "pad_edge": False}


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the model and the figures, without the notes."""
    _print(console, ", ".join(model_description(evaluation.facts)))
    print_figures(evaluation, console)


def print_figures(evaluation: Evaluation, console: Console) -> None:
    """Print the accuracy first, then what explains it."""
    metrics = evaluation.metrics
    console.print(accuracy(metrics, evaluation.comparison))
    _print(console, *notes(metrics), *comparison(evaluation), *unreadable(evaluation))
    for table in (levels(metrics), worst(metrics), confused(metrics)):
        if table.row_count:
            console.print(table)


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        print_line(console, line)


def model_description(facts: dict[str, Any]) -> Iterator[str]:
    """The model, its engine and its URL, in words."""
    yield f"{facts['model']} ({facts['weights']})"
    yield f"{facts['engine']} in {facts['precision']} on {facts['device']}"
    if not facts["fast_decode"]:
        yield "every pixel decoded"
    if "url" in facts:
        yield str(facts["url"])


def unreadable(evaluation: Evaluation) -> Iterator[str]:
    """The files that could not be read, with reasons."""
    failed = evaluation.answers.unreadable
    if failed:
        yield f"{count(len(failed), 'file')} could not be read and are not counted:"
    for i in sorted(failed)[:_ROWS]:
        yield f"  {evaluation.name(i)}: {failed[i].detail} ({failed[i].code})"
    if len(failed) > _ROWS:
        yield f"  and {len(failed) - _ROWS:,} more; --json and --report list them all"


def comparison(evaluation: Evaluation) -> Iterator[str]:
    """The agreement with the reference, and the images that differ."""
    found = evaluation.comparison
    if not found:
        return
    yield (
        f"agreement: {percent(found.agreement)} ({interval(found.interval)}) of {count(found.n, 'image')};"
        f" the reference is {', '.join([*model_description(found.facts)][1:])}"
    )
    for i in found.differ[:_ROWS]:
        ours, theirs = evaluation.guess(i), evaluation.guess(i, found.answers)
        yield (
            f"  {evaluation.name(i)}: {ours.label} ({ours.score:.2f}), reference"
            f" {theirs.label} ({theirs.score:.2f}), truth {evaluation.truth(i)}"
        )
    if len(found.differ) > _ROWS:
        yield f"  and {len(found.differ) - _ROWS:,} more; --json lists them all"


def accuracy(metrics: AccuracyMetrics, comparison: Comparison | None = None) -> Table:
    """Top-1 and top-5 accuracy, and those of the reference."""
    table = _table("", "accuracy", "95 % interval", *(("reference",) if comparison else ()))
    for name, share, bounds, pair in (
        ("top-1", metrics.top1, metrics.top1_interval, comparison and comparison.top1),
        (f"top-{metrics.k}", metrics.top5, metrics.top5_interval, comparison and comparison.top5),
    ):
        table.add_row(name, percent(share), interval(bounds), *((percent(pair[1]),) if pair else ()))
    return table


def notes(metrics: AccuracyMetrics) -> Iterator[str]:
    """The number of images, and the calibration of the scores."""
    yield f"{count(metrics.n, 'image')} of {count(metrics.classes, 'class', 'classes')}"
    yield (
        f"calibration: mean score {percent(metrics.confidence)}, top-1 {percent(metrics.top1)}; expected calibration"
        f" error {percent(metrics.ece)}"
    )


def levels(metrics: AccuracyMetrics) -> Table:
    """Accuracy by WordNet level: how often the prediction is at least a dog, at least an animal."""
    table = _table("By WordNet level", "images", "top-1", "right at level")
    for level in metrics.levels:
        if level.indent is not None:
            name = f"{'  ' * level.indent}{level.label}"
            table.add_row(name, f"{level.n:,}", percent(level.exact), percent(level.accuracy))
    return table


def worst(metrics: AccuracyMetrics) -> Table:
    """The classes with the lowest accuracy below 100 %."""
    table = _table("Worst classes", "images", "top-1", f"top-{metrics.k}")
    for row in metrics.per_class[:_ROWS]:
        if row.accuracy < 1:
            table.add_row(row.label, f"{row.n:,}", percent(row.accuracy), percent(row.top5))
    return table


def confused(metrics: AccuracyMetrics) -> Table:
    """The most frequent confusions."""
    table = Table(
        Column("Most confused", overflow="fold"),
        Column("predicted", overflow="fold"),
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
    """A fraction as per cent."""
    return f"{100 * share:.{digits}f} %"


def interval(bounds: Interval) -> str:
    """An interval as per cent."""
    return f"{100 * bounds[0]:.1f} to {percent(bounds[1])}"


def count(n: int, one: str, many: str = "") -> str:
    """``1 image``, ``2 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
