"""A result as one HTML page that needs nothing else."""

import html
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Template
from typing import Any

from app.errors import LoadTestError
from app.loadtest import table
from app.loadtest.points import Point
from app.loadtest.run import Result

_PAGE = Path(__file__).with_name("report.html")
_SERVER = ("model", "weights", "engine", "precision", "device")
_MODES = {"closed": "closed loop", "open": "open loop", "capacity": "search of the capacity, open loop"}


def check(path: Path | None) -> None:
    """Raise LoadTestError before the run where the report could not be written after it."""
    if path and importlib.util.find_spec("matplotlib") is None:
        raise LoadTestError("a report needs matplotlib, which is not installed here")
    if path and not path.parent.is_dir():
        raise LoadTestError(f"there is no folder {path.parent} for the report")


def write(result: Result, path: Path) -> None:
    """Write the page. Raises LoadTestError."""
    try:
        path.write_text(page(result), encoding="utf-8")
    except OSError as error:
        raise LoadTestError(f"{path} cannot be written: {error.strerror}") from error


def page(result: Result) -> str:
    """The page as HTML, with its charts inline."""
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        url=_text(result.url),
        when=_text(f"{result.started:%d %B %Y, %H:%M} UTC"),
        how=_text(_how(result)),
        headline="".join(_figure(*item) for item in _headline(result)),
        charts=_charts(result),
        head="".join(f"<th>{_text(name)}</th>" for name in ("load", *table.FIGURES, "answers")),
        rows="".join(_row(point, point is result.best) for point in result.ordered),
        server=_list(_server(result.server or {})) or "<p>It does not describe itself.</p>",
        client=_list(_client(result)),
        notes="".join(f"<li>{_text(note)}</li>" for note in (*result.warnings, *table.notes(result))),
    )


def _charts(result: Result) -> str:
    """Both charts; one point makes none."""
    from app.loadtest import chart  # matplotlib: only here, since it takes half a second

    points = chart.drawn(result)
    if len(points) < 2:
        return ""
    used = [part for part in chart.OUTCOMES if any(part.count(point) for point in points)]
    return _chart("Latency", "ms", _legend(chart.CURVES), chart.latency(result)) + _chart(
        "What became of the requests", "a second", _legend(used), chart.outcomes(result)
    )


def _chart(title: str, unit: str, legend: str, svg: str) -> str:
    head = f'<h2>{title} <small>{unit}</small></h2><ul class="legend">{legend}</ul>'
    return f'<section>{head}<div class="scroll">{svg}</div></section>'


def _how(result: Result) -> str:
    plan = result.plan
    images = f"images of {plan.images.name}" if plan.images else "made JPEGs of about 500x375"
    return f"{_MODES[plan.mode]}, {plan.seconds:g} s a point after {plan.warmup:g} s of warm-up, {images}"


def _headline(result: Result) -> Iterator[tuple[str, str, str]]:
    """Figure, unit, what it is."""
    best = result.best
    if result.capacity is not None:
        yield f"{result.capacity:g}", "requests/s", "capacity: the most that is answered in time"
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


def _server(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _SERVER:
        if name in info:
            yield name, str(info[name])
    batching = info.get("batching")
    if isinstance(batching, dict) and "ceiling" in batching:
        yield "largest batch", f"{batching['ceiling']}"


def _client(result: Result) -> Iterator[tuple[str, str]]:
    machine = result.machine
    yield "processor", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    yield "system", f"{machine['system']}, Python {machine['python']}"
    if result.client:
        yield "own cost", f"{result.client.cpu_ms:.2f} ms of CPU a request"
        yield "own limit", f"{result.client.largest_rate:,.0f} requests/s against a constant answer"
    busiest = max((point.client_cpu for point in result.points), default=0.0)
    yield "used here", f"{busiest:.0%} of a core"


def _row(point: Point, best: bool) -> str:
    cells = (point.load.label, *table.figures(point), table.outcomes(point))
    return f"<tr{' class=best' * best}>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"


def _figure(value: str, unit: str, what: str) -> str:
    return f"<div><p class=value>{_text(value)} <span>{_text(unit)}</span></p><p>{_text(what)}</p></div>"


def _legend(items: Iterable[Any]) -> str:
    return "".join(f'<li style="--swatch: var(--{item.colour})">{_text(item.name)}</li>' for item in items)


def _list(items: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in items)
    return f"<dl>{rows}</dl>" if rows else ""


def _text(text: str) -> str:
    return html.escape(text)
