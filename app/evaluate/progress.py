"""Live progress on a terminal: how many images are done, at which rate, and when all will be."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_RECENT_S = 30.0


class Live:
    """One bar a run; ``watch(name, total)`` makes the function that moves it. Gone when the block ends."""

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
        self.done = self.total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int) -> None:
        """A new bar."""
        self._task = self._progress.add_task(name, total=total)
        self.done, self.total = 0, total

    def __call__(self, done: int) -> None:
        """The bar's images that are done; what the first call tells was done before."""
        if self.done == 0 and done:
            self._progress.reset(self._task, completed=done)
        self.done = done
        self._progress.update(self._task, completed=done)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} img/s")
