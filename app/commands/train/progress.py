"""Progress on a terminal. Prints nothing elsewhere."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.commands.evaluate.run import Watch
from app.commands.train.examples import Advance


class TrainingProgress:
    """A bar for countable work, a spinner for other work. Both disappear when their block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def busy(self, description: str) -> AbstractContextManager[Any]:
        """A spinner. The ``update`` method of what the block gets changes the description."""
        return self._console.status(description)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """A bar. Call what the block gets once for each finished item."""
        done = itertools.count(1)
        with self.count(description, total) as watch:
            yield lambda: watch(next(done))

    @contextmanager
    def count(self, description: str, total: int) -> Iterator[Watch]:
        """A bar. Call what the block gets with the number of finished items."""
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        task = progress.add_task(description, total=total)
        with progress:
            yield lambda done: progress.update(task, completed=done)
