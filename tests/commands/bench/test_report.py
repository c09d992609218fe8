import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from app.commands.bench import chart, report, table
from app.commands.bench.client import Record
from app.commands.bench.loads import Closed, Load, Open
from app.commands.bench.overhead import Overhead
from app.commands.bench.plan import LoadPlan
from app.commands.bench.points import Point, Window, point
from app.commands.bench.run import LoadResult
from app.commands.bench.target import Batches
from app.commands.reports import page
from app.errors import ReportError

WINDOW = Window(0.0, 10.0, 0.5, Batches(0, 0), Batches(80, 20))


def made(load: Load, answers: int, refusals: int = 0, timeouts: int = 0) -> Point:
    records = [Record(1.0, 1.0, 1.0 + number / 1000, 200) for number in range(1, answers + 1)]
    records += [Record(1.0, 1.0, 1.01, 503)] * refusals + [Record(1.0, 1.0, 2.0, 0, "timeout")] * timeouts
    return point(load, records, WINDOW, 1.0)


def result(*points: Point, mode: str = "closed", capacity: float | None = None) -> LoadResult:
    plan = LoadPlan(mode)  # type: ignore[arg-type]
    server = {"model": "<resnet50>", "device": "cuda:0", "device_name": "NVIDIA H100", "batching": {"ceiling": 32}}
    when = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    found = LoadResult("http://host:8000/v1/predict", plan, when, server=server, client=Overhead(0.07, 9000.0))
    found.points += points
    found.capacity = capacity
    return found


CLOSED = result(made(Closed(16), 700), made(Closed(1), 300, refusals=3))
SEARCH = result(
    made(Closed(16), 700), made(Open(80, 1), 700, 60, 40), made(Open(70, 1), 700), mode="capacity", capacity=70.0
)


def printed(found: LoadResult) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        table.print_result(found, console)
    return capture.get()


def test_the_table_has_a_row_for_each_point_by_its_load() -> None:
    rows = [line.split() for line in printed(CLOSED).splitlines() if " client" in line and "client:" not in line]
    assert rows == [
        ["1", "client", "30.0", "30.0", "150", "285", "297", "4.0", "200:", "300,", "503:", "3"],
        ["16", "clients", "70.0", "70.0", "350", "665", "693", "4.0", "200:", "700"],
    ]


def test_what_the_table_omits_is_below_it() -> None:
    text = printed(SEARCH)
    assert "capacity: 70 requests/s" in text
    assert "counts from the scheduled arrival" in text
    assert "0.07 ms of CPU per request, at most 9000 requests/s" in text
    assert "used 5% of a core" in text


def test_the_measured_device_is_named() -> None:
    assert "server: <resnet50>, cuda:0, NVIDIA H100\n" in printed(CLOSED)
    assert re.search("device name.*?NVIDIA H100", report.page(CLOSED), re.DOTALL)
    assert CLOSED.as_dict()["server"]["device_name"] == "NVIDIA H100"


def test_a_server_without_a_description_is_reported_without() -> None:
    unknown = result(made(Closed(1), 5))
    unknown.server = None
    assert "server:" not in printed(unknown)
    assert "No description available." in report.page(unknown)


def test_a_search_that_found_nothing_is_reported() -> None:
    assert "capacity: not found" in printed(result(made(Open(80, 1), 1, 9), mode="capacity"))
    assert "nothing was measured" in printed(result())


@pytest.mark.parametrize("found", [CLOSED, SEARCH])
def test_the_page_needs_nothing_else(found: LoadResult) -> None:
    page = report.page(found)
    assert page.count("<svg") == 2
    assert not re.findall(r"(?:src|href)=\"(?!#)|@import|url\((?!#)|<script|<link", page)
    assert "prefers-color-scheme: dark" in page
    assert "#0102" not in page  # every colour is the page's own
    assert "&lt;resnet50&gt;" in page
    assert "<resnet50>" not in page
    assert "2026" in page


def test_the_two_drawings_share_no_id_and_refer_to_their_own() -> None:
    page = report.page(SEARCH)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_the_page_leads_with_the_capacity_or_the_best_goodput() -> None:
    assert re.search(r"class=value>70 <span>requests/s</span>.*capacity", report.page(SEARCH))
    assert re.search(r"class=value>70 <span>img/s</span>.*at 16 clients", report.page(CLOSED))
    assert re.search(r"<tr class=best><td>70/s", report.page(SEARCH))


@pytest.mark.parametrize("found", [CLOSED, SEARCH])
def test_the_throughput_axis_starts_at_zero(found: LoadResult, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, float]] = []
    monkeypatch.setattr(chart, "svg", lambda drawn, name: limits.append(drawn.axes[0].get_xlim()) or "")
    chart.latency(found)
    [(low, high)] = limits
    assert low == 0
    assert high > max(point.throughput for point in chart.drawn(found))


def test_the_legend_names_only_what_happened() -> None:
    assert "refused (503, 429)</li>" in report.page(SEARCH)
    assert "failed</li>" not in report.page(SEARCH)


@pytest.mark.parametrize("found", [result(), result(made(Closed(16), 0, refusals=9)), result(made(Closed(1), 5))])
def test_too_little_for_curves_is_a_page_without_them(found: LoadResult) -> None:
    assert "<svg" not in report.page(found)


def test_points_without_an_answer_are_no_reason_to_fail() -> None:
    assert "<svg" in report.page(result(made(Open(10, 1), 0, timeouts=9), made(Open(20, 1), 0), mode="open"))


def test_a_report_that_cannot_be_written_fails_before_and_after(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such folder"):
        page.check(tmp_path / "none" / "report.html")
    with pytest.raises(ReportError, match="cannot be written"):
        report.write(CLOSED, tmp_path)
