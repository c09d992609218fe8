"""A live progress bar on a terminal: images done, rate and remaining time."""

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


class EvaluationProgress:
    """One bar per run. Call it with the number of finished images. The bars disappear when the block ends."""

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
        """The message for an interrupted run."""
        if self._task is None:
            return "interrupted"
        done = f"{self._name}: {self._done:,} of {self._total:,} images are done"
        return f"interrupted; {done}; run the same command again to resume"

    def loading(self) -> AbstractContextManager[Any]:
        """A spinner to show while the model is loaded."""
        return self._console.status("loading the model")

    def fitting(self) -> AbstractContextManager[Any]:
        """A spinner to show while a calibration is fitted and measured."""
        return self._console.status("fitting the calibration")

    def writing(self) -> AbstractContextManager[Any]:
        """A spinner to show while the result is written."""
        return self._console.status("writing the model folder")

    def begin(self, name: str, total: int) -> None:
        """Start the bar of another run."""
        self._name, self._task = name, None
        self._done, self._total = 0, total

    def __call__(self, done: int) -> None:
        """Move the bar. The first call gives the images of an earlier run, which do not count in the rate."""
        if self._task is None:
            self._task = self._progress.add_task(self._name, total=self._total, completed=done, before=done)
        self._done = done
        self._progress.update(self._task, completed=done)


class _Rate(ProgressColumn):
    """Images per second of this run, and the remaining time."""

    def render(self, task: Task) -> Text:
        new = task.completed - task.fields["before"]
        if not new or not task.elapsed:
            return Text("")
        rate = new / task.elapsed
        left = timedelta(seconds=round((task.remaining or 0) / rate))
        return Text(f"{rate:.1f} img/s  {left} left")
