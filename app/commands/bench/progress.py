"""Live progress on a terminal: a bar for each point, with the current throughput."""

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from app.commands.bench.client import Record
from app.commands.bench.loads import Load
from app.commands.bench.points import percentile_ms

_RECENT_S = 2.0


class LoadProgress:
    """Call it with a load, the elapsed share of its point, and the records so far.

    The bars disappear when the block ends.
    """

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:>12}"), BarColumn(28), TextColumn("{task.fields[now]}"))
        disable = not console.is_terminal
        self._progress = Progress(*columns, console=console, transient=True, disable=disable, refresh_per_second=4)
        self._tasks: dict[Load, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        self._waiting = self._progress.add_task("preparing", total=None, now="")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, load: Load, elapsed: float, records: Sequence[Record]) -> None:
        self._progress.update(self._waiting, visible=False)
        if load not in self._tasks:
            self._tasks[load] = self._progress.add_task(load.label, total=1.0, now="")
        now = "warming up" if elapsed <= 0 else recent(records)
        self._progress.update(self._tasks[load], completed=elapsed, now=now)


def recent(records: Sequence[Record]) -> str:
    """Throughput, latency and failures of the last two seconds, in words."""
    if not records:
        return "no response yet"
    last = records[-1].ended
    window = min(_RECENT_S, last - records[0].begun) or _RECENT_S
    tail = []
    for record in reversed(records):
        if record.ended < last - window:
            break
        tail.append(record)
    answers = [record.latency for record in tail if 200 <= record.status < 300]
    words = [f"{len(answers) / window:.0f} img/s"]
    if answers:
        words.append(f"p50 {percentile_ms(answers, 50):.0f} ms")
    if other := len(tail) - len(answers):
        words.append(f"{other / window:.0f}/s refused or failed")
    return "  ".join(words)
