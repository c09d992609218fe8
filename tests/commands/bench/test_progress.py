import io

from rich.console import Console

from app.commands.bench.client import Record
from app.commands.bench.loads import Closed
from app.commands.bench.progress import LoadProgress, recent


def records(*outcomes: tuple[float, int]) -> list[Record]:
    return [Record(ended - 0.25, ended - 0.25, ended, status) for ended, status in outcomes]


def test_progress_shows_what_was_answered_in_the_last_two_seconds() -> None:
    long_ago, now = [(1.0, 200)] * 50, [(9.5, 200)] * 8 + [(10.0, 503)] * 4
    assert recent(records(*long_ago, *now)) == "4 img/s  p50 250 ms  2/s refused or failed"


def test_progress_without_a_response_is_shown() -> None:
    assert recent([]) == "no response yet"
    assert recent(records((1.0, 500))) == "0 img/s  4/s refused or failed"


def shown(terminal: bool) -> str:
    file = io.StringIO()
    with LoadProgress(Console(file=file, force_terminal=terminal, width=100)) as progress:
        progress(Closed(4), 0.0, [])
        progress(Closed(4), 1.0, records((1.0, 200)))
    return file.getvalue()


def test_progress_is_for_terminals() -> None:
    assert "4 clients" in shown(terminal=True)
    assert shown(terminal=False) == ""
