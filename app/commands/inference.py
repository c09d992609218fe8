"""A model in this process, applied to image files."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from app import loading
from app.classifier import Classifier
from app.commands.files import for_each, read_file
from app.engine import Row, Want
from app.errors import DeviceLost, TopkError
from app.settings import Settings

AT_ONCE = 64
"""Images in progress at the same time."""

_TIMEOUT_S = 600.0

Outcome = Row | TopkError | OSError


def load(settings: Settings) -> Classifier:
    """Load the model that ``settings`` name. Close the classifier after use. Blocks. Raises ModelError."""
    classifier = Classifier(settings)
    loading.load(classifier)
    return classifier


async def classify(classifier: Classifier, content: bytes, want: Want) -> Row:
    """Classify one image. Raises TopkError."""
    result = await classifier.classify(content, want, time.monotonic() + _TIMEOUT_S)
    return result.row


def classify_files(
    classifier: Classifier,
    paths: Sequence[Path],
    want: Want,
    done: Callable[[int, Outcome], None],
    read: Callable[[Path], Awaitable[bytes]] = read_file,
) -> None:
    """Classify files and call ``done`` with each file's position and outcome, in the order in which they finish.

    Blocks. Raises the TopkError that ``done`` raises, and DeviceLost. If interrupted, ``done`` has been called for what
    was finished.
    """

    async def one(position: int) -> None:
        outcome: Outcome
        try:
            outcome = await classify(classifier, await read(paths[position]), want)
        except DeviceLost:
            raise
        except (TopkError, OSError) as error:
            outcome = error
        done(position, outcome)

    asyncio.run(for_each(len(paths), AT_ONCE, one))
