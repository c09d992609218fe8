"""What a terminal shows meanwhile; nothing elsewhere."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.train.examples import Advance


class Bars:
    """A bar for what can be counted, a word for what cannot; gone when the block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def busy(self, what: str) -> AbstractContextManager[Any]:
        """``update`` of what it gives changes the words."""
        return self._console.status(what)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
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
            yield lambda: progress.advance(task)
