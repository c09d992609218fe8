"""A calibration as tables on a terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Column, Table

from app.calibration.conformal import Regularisation
from app.commands.calibrate.run import Calibrated, Measured
from app.commands.console import print_line
from app.commands.evaluate.table import count, interval, percent


def print_calibration(calibrated: Calibrated, console: Console) -> None:
    """Print the figures of each precision. All are cross-fitted, but for the temperature and the penalty."""
    for one in calibrated.measured:
        for line in _summary(one):
            print_line(console, line)
        console.print(_sets(one))
    for line in _supported(calibrated.measured[0]):
        print_line(console, line)


def _summary(measured: Measured) -> Iterator[str]:
    figures = measured.figures
    yield (
        f"{measured.precision}: top-1 accuracy {percent(figures.accuracy)} ({interval(figures.accuracy_interval)}) of"
        f" {count(figures.images, 'photograph')} of {count(figures.classes, 'class', 'classes')}"
    )
    yield (
        f"temperature {measured.calibration.temperature:.3f}; expected calibration error"
        f" {percent(figures.ece_before)} before, {percent(figures.ece_after)} after"
    )
    yield f"prediction sets: {_penalty(measured.calibration.regularisation)}"


def _penalty(chosen: Regularisation) -> str:
    if not chosen.penalty:
        return "no penalty"
    free = "the first" if chosen.free == 1 else f"the first {chosen.free}"
    return f"penalty {chosen.penalty:g} for each class beyond {free}"


def _sets(measured: Measured) -> Table:
    titles = ("covered", "95 % interval", "classes in a set")
    right = (Column(name, justify="right", no_wrap=True) for name in titles)
    table = Table(Column("Coverage requested"), *right, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for one in measured.figures.covered:
        table.add_row(f"{one.coverage:g}", percent(one.share), interval(one.interval), f"{one.size:.2f}")
    return table


def _supported(measured: Measured) -> Iterator[str]:
    found = measured.calibration
    yield (
        f"{count(found.images, 'photograph')} support a coverage of up to {int(found.most_coverage * 1e4) / 1e4:g}, and"
        f" unknown from {found.least_unknown:.2g}"
    )
