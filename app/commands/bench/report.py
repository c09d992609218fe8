"""A result as one self-contained HTML page."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.commands.bench import table
from app.commands.bench.points import Point
from app.commands.bench.run import LoadResult
from app.commands.filenames import printable
from app.commands.reports import page as html

_PAGE = Path(__file__).with_name("report.html")
_MODES = {"closed": "closed loop", "open": "open loop", "capacity": "capacity search, open loop"}


def write(result: LoadResult, path: Path) -> None:
    """Write the page. Raises ReportError."""
    html.write(page(result), path)


def page(result: LoadResult) -> str:
    """The page as HTML, with inline charts."""
    return html.fill(
        _PAGE,
        url=html.text(result.url),
        when=f"{result.started:%d %B %Y, %H:%M} UTC",
        how=html.text(_how(result)),
        headline=html.headline(_headline(result)),
        charts=_charts(result),
        head="".join(f"<th>{html.text(name)}</th>" for name in ("load", *table.FIGURES, "responses")),
        rows="".join(_row(point, point is result.best) for point in result.ordered),
        server=html.pairs(_server(result)) or "<p>No description available.</p>",
        client=html.pairs(_client(result)),
        notes=html.items((*result.warnings, *table.notes(result))),
    )


def _charts(result: LoadResult) -> str:
    """Both charts, or none for a single point."""
    from app.commands.bench import chart  # here, because importing matplotlib takes half a second

    points = chart.drawn(result)
    if len(points) < 2:
        return ""
    used = [part for part in chart.OUTCOMES if any(part.count(point) for point in points)]
    return _chart("Latency", "ms", chart.CURVES, chart.latency(result)) + _chart(
        "Outcomes", "requests per second", used, chart.outcomes(result)
    )


def _chart(title: str, unit: str, parts: Sequence[Any], svg: str) -> str:
    legend = html.legend((part.name, part.colour) for part in parts)
    head = f'<h2>{title} <small>{unit}</small></h2><ul class="legend">{legend}</ul>'
    return f'<section>{head}<div class="scroll">{svg}</div></section>'


def _how(result: LoadResult) -> str:
    plan = result.plan
    images = f"images of {printable(plan.images.name)}" if plan.images else "generated JPEGs of about 500x375"
    return f"{_MODES[plan.mode]}, {plan.seconds:g} s per point after {plan.warmup:g} s of warm-up, {images}"


def _headline(result: LoadResult) -> Iterator[tuple[str, str, str]]:
    """Figure, unit and description of each headline."""
    best = result.best
    if result.capacity is not None:
        yield f"{result.capacity:g}", "requests/s", "capacity: the highest rate answered within the SLO"
    if best is None:
        return
    at = f"at {best.load.label}"
    if result.capacity is None:
        yield f"{best.goodput:.3g}", "img/s", f"within {result.plan.slo_ms:g} ms, {at}"
    if best.p50_ms is not None and best.p99_ms is not None:
        yield f"{best.p50_ms:.0f}", "ms", f"median latency {at}"
        yield f"{best.p99_ms:.0f}", "ms", f"99th percentile {at}"
    if best.batch_size_mean is not None:
        yield f"{best.batch_size_mean:.1f}", "images", f"mean batch {at}"


def _server(result: LoadResult) -> Iterator[tuple[str, str]]:
    yield from table.server(result)
    batching = (result.server or {}).get("batching")
    if isinstance(batching, dict) and "ceiling" in batching:
        yield "largest batch", f"{batching['ceiling']}"


def _client(result: LoadResult) -> Iterator[tuple[str, str]]:
    yield from html.machine(result.machine)
    if result.client:
        yield "own cost", f"{result.client.cpu_ms:.2f} ms of CPU per request"
        yield "own limit", f"{result.client.largest_rate:,.0f} requests/s against a constant response"
    busiest = max((point.client_cpu for point in result.points), default=0.0)
    yield "this run", f"{busiest:.0%} of a core"


def _row(point: Point, best: bool) -> str:
    cells = (point.load.label, *table.figures(point), table.outcomes(point))
    return f"<tr{' class=best' * best}>" + "".join(f"<td>{html.text(cell)}</td>" for cell in cells) + "</tr>"
