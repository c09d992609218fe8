"""What a terminal shows meanwhile; nothing elsewhere."""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.commands.evaluate.run import Watch
from app.commands.train.examples import Advance


class Bars:
    """A bar for what can be counted, a word for what cannot; gone when the block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def busy(self, what: str) -> AbstractContextManager[Any]:
        """``update`` of what it gives changes the words."""
        return self._console.status(what)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        """What it gives is called for each one that is done."""
        done = itertools.count(1)
        with self.count(what, total) as watch:
            yield lambda: watch(next(done))

    @contextmanager
    def count(self, what: str, total: int) -> Iterator[Watch]:
        """What it gives is told how many are done."""
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        task = progress.add_task(what, total=total)
        with progress:
            yield lambda done: progress.update(task, completed=done)
