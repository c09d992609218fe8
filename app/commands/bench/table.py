"""A result in a terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Column, Table

from app.commands.bench.loads import Closed
from app.commands.bench.points import Point
from app.commands.bench.run import Result

FIGURES = ("img/s", "goodput", "p50 ms", "p95 ms", "p99 ms", "batch")


def show(result: Result, console: Console) -> None:
    """The table of points, and below it in words what it does not say."""
    if not result.points:
        console.print("nothing was measured")
        return
    console.print(table(result))
    for line in notes(result):
        console.print(line, highlight=False, markup=False)


def table(result: Result) -> Table:
    """A row for each point."""
    right = (Column(name, justify="right", no_wrap=True) for name in FIGURES)
    found = Table(Column("load", no_wrap=True), *right, "answers", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for point in result.ordered:
        found.add_row(point.load.label, *figures(point), outcomes(point))
    return found


def figures(point: Point) -> Iterator[str]:
    """The cells under ``FIGURES``."""
    yield f"{point.throughput:.1f}"
    yield f"{point.goodput:.1f}"
    for latency in (point.p50_ms, point.p95_ms, point.p99_ms):
        yield "" if latency is None else f"{latency:.0f}"
    yield "" if point.batch_size_mean is None else f"{point.batch_size_mean:.1f}"


def outcomes(point: Point) -> str:
    """Statuses and errors with their counts."""
    counts = {str(status): count for status, count in point.statuses.items()} | point.errors
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def notes(result: Result) -> Iterator[str]:
    """Capacity, the meaning of goodput, the client's own cost."""
    if result.plan.mode == "capacity":
        yield f"capacity: {capacity(result)}"
    yield f"goodput: 2xx answers within {result.plan.slo_ms:g} ms, a second; latencies are those of 2xx answers"
    if any(not isinstance(point.load, Closed) for point in result.points):
        yield "open loop: latency counts from the scheduled arrival; who waits longer than that leaves (timeout)"
    if result.client:
        busiest = max((point.client_cpu for point in result.points), default=0.0)
        yield (
            f"client: {result.client.cpu_ms:.2f} ms of CPU a request, at most {result.client.largest_rate:.0f} "
            f"requests/s against a constant answer; here it used {busiest:.0%} of a core"
        )


def capacity(result: Result) -> str:
    """The capacity in words."""
    if result.capacity is None:
        return "not found: no rate that was tried was held"
    return f"{result.capacity:g} requests/s, the largest rate of which 97 % were answered within the SLO"
