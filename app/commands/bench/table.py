"""A result as a table on a terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Column, Table

from app.commands.bench.loads import Closed
from app.commands.bench.points import Point
from app.commands.bench.run import LoadResult

FIGURES = ("img/s", "goodput", "p50 ms", "p95 ms", "p99 ms", "batch")
_SERVER = ("model", "weights", "engine", "precision", "device", "device_name")  # of /v1/info


def print_result(result: LoadResult, console: Console) -> None:
    """Print the table of points, then the notes."""
    if not result.points:
        console.print("nothing was measured")
        return
    console.print(table(result))
    for line in notes(result):
        console.print(line, highlight=False, markup=False)


def table(result: LoadResult) -> Table:
    """One row per point."""
    right = (Column(name, justify="right", no_wrap=True) for name in FIGURES)
    found = Table(
        Column("load", no_wrap=True), *right, "responses", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
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


def notes(result: LoadResult) -> Iterator[str]:
    """What was measured, the capacity, definitions, and the client's own cost."""
    if measured := dict(server(result)):
        yield f"server: {', '.join(measured.values())}"
    if result.plan.mode == "capacity":
        yield f"capacity: {capacity(result)}"
    yield f"goodput: 2xx responses within {result.plan.slo_ms:g} ms, per second; latencies are of 2xx responses"
    if any(not isinstance(point.load, Closed) for point in result.points):
        yield "open loop: latency counts from the scheduled arrival; clients give up after the SLO (timeout)"
    if result.client:
        busiest = max((point.client_cpu for point in result.points), default=0.0)
        yield (
            f"client: {result.client.cpu_ms:.2f} ms of CPU per request, at most {result.client.largest_rate:.0f} "
            f"requests/s against a constant response; this run used {busiest:.0%} of a core"
        )


def server(result: LoadResult) -> Iterator[tuple[str, str]]:
    """What the server says of its model and device: name and value of each fact."""
    info = result.server or {}
    return ((name.replace("_", " "), str(info[name])) for name in _SERVER if name in info)


def capacity(result: LoadResult) -> str:
    """The capacity in words."""
    if result.capacity is None:
        return "not found: no tried rate was sustained"
    return f"{result.capacity:g} requests/s, the highest rate at which 97 % of responses were within the SLO"
