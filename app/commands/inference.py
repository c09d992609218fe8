"""A model in this process, applied to image files."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from app import loading
from app.classifier import Classifier, Result
from app.commands.files import for_each, read_file
from app.engine import Row, Want
from app.errors import DeviceLost, ReportError, TopkError
from app.settings import Settings

AT_ONCE = 64
"""Images in progress at the same time."""

_TIMEOUT_S = 600.0

T = TypeVar("T")
Outcome = Row | TopkError | OSError


def load(settings: Settings) -> Classifier:
    """Load the model that ``settings`` name. Close the classifier after use. Blocks. Raises ModelError."""
    classifier = Classifier(settings)
    loading.load(classifier)
    return classifier


async def classify(classifier: Classifier, content: bytes, want: Want) -> Result:
    """Classify one image. Raises TopkError."""
    return await classifier.classify(content, want, time.monotonic() + _TIMEOUT_S)


def classify_files(
    classifier: Classifier, paths: Sequence[Path], want: Want, done: Callable[[int, Outcome], None]
) -> None:
    """Classify files and call ``done`` with each file's position and outcome: see ``for_files``."""

    async def work(_: int, content: bytes) -> Row:
        return (await classify(classifier, content, want)).row

    for_files(paths, work, done)


def for_files(
    paths: Sequence[Path],
    work: Callable[[int, bytes], Awaitable[T]],
    done: Callable[[int, T | TopkError | OSError], None],
    read: Callable[[Path], Awaitable[bytes]] = read_file,
) -> None:
    """Read files, ``AT_ONCE`` at a time, and call ``work`` with each file's position and content.

    ``done`` gets its result or its error, in the order in which the files finish. Blocks. Raises the TopkError that
    ``done`` raises, DeviceLost and ReportError. If interrupted, ``done`` has been called for what was finished.
    """

    async def one(position: int) -> None:
        outcome: T | TopkError | OSError
        try:
            outcome = await work(position, await read(paths[position]))
        except (DeviceLost, ReportError):
            raise
        except (TopkError, OSError) as error:
            outcome = error
        done(position, outcome)

    asyncio.run(for_each(len(paths), AT_ONCE, one))
