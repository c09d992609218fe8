"""Live progress on a terminal: how many images are done, at which rate, and when all will be."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_RECENT_S = 30.0


class Live:
    """A bar for each run, moved by calling it; gone when the block ends."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(28),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("left:"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            refresh_per_second=4,
            speed_estimate_period=_RECENT_S,
        )
        self._task: TaskID | None = None
        self.done = self.total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int) -> None:
        """From here on another bar is moved."""
        self._name, self._task = name, None
        self.done, self.total = 0, total

    def __call__(self, done: int) -> None:
        """So many images are done; what the first call tells was done before, and says nothing of the rate."""
        if self._task is None:
            self._task = self._progress.add_task(self._name, total=self.total, completed=done)
        self.done = done
        self._progress.update(self._task, completed=done)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} img/s")
