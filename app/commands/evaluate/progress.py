"""Live progress on a terminal: how many images are done, at which rate, and when all will be."""

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text


class Live:
    """A bar for each run, moved by calling it; gone when the block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(28),
            MofNCompleteColumn(),
            _Rate(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self._done = self._total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def interrupted(self) -> str:
        """What to say where all ends before it is through."""
        if self._task is None:
            return "interrupted"
        done = f"{self._name}: {self._done:,} of {self._total:,} images are done"
        return f"interrupted; {done}, and the same command goes on from there"

    def loading(self) -> AbstractContextManager[Any]:
        """Shown while the model is loaded."""
        return self._console.status("loading the model")

    def begin(self, name: str, total: int) -> None:
        """From here on another bar is moved."""
        self._name, self._task = name, None
        self._done, self._total = 0, total

    def __call__(self, done: int) -> None:
        """So many images are done; what the first call tells was done before, and says nothing of the rate."""
        if self._task is None:
            self._task = self._progress.add_task(self._name, total=self._total, completed=done, before=done)
        self._done = done
        self._progress.update(self._task, completed=done)


class _Rate(ProgressColumn):
    """Images a second of this run, and how long the rest will take."""

    def render(self, task: Task) -> Text:
        new = task.completed - task.fields["before"]
        if not new or not task.elapsed:
            return Text("")
        rate = new / task.elapsed
        left = timedelta(seconds=round((task.remaining or 0) / rate))
        return Text(f"{rate:.1f} img/s  {left} left")
