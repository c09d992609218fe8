"""Image files through the path that serves them, many at once."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.classifier import Classifier
from app.commands.tasks import all_of
from app.commands.train.examples import Advance
from app.engine import Row, Want
from app.errors import BadImage, EmptyBody

_AT_ONCE = 64
_PATIENCE_S = 600.0


class Rows:
    """What the device says of files as it comes: ``rows`` by position; ``unreadable`` tells why others have none."""

    def __init__(self, classifier: Classifier, paths: Sequence[Path], want: Want, advance: Advance) -> None:
        self.rows: dict[int, Row] = {}
        self.unreadable: dict[Path, str] = {}
        self._classifier = classifier
        self._paths = paths
        self._want = want
        self._advance = advance

    def ask(self) -> None:
        """Ask for all. Raises TopkError where the device fails; interrupted, what came is kept."""
        asyncio.run(self._all())

    def took(self, position: int, row: Row) -> None:
        self.rows[position] = row

    async def _all(self) -> None:
        waiting = iter(range(len(self._paths)))
        await all_of(self._work(waiting) for _ in range(min(_AT_ONCE, len(self._paths))))

    async def _work(self, waiting: Iterator[int]) -> None:
        for i in waiting:
            path = self._paths[i]
            try:
                content = await asyncio.to_thread(path.read_bytes)
                if not content:
                    raise EmptyBody("the file is empty")
                result = await self._classifier.classify(content, self._want, time.monotonic() + _PATIENCE_S)
            except OSError as error:
                self.unreadable[path] = error.strerror or str(error)
            except (BadImage, EmptyBody) as error:
                self.unreadable[path] = error.detail
            else:
                self.took(i, result.row)
            self._advance()
