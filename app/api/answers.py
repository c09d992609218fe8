"""Answers that may be large: bounded before anything is computed, and built beside the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from app.api.exchange import Exchange
from app.classifier import Classifier
from app.engine import Want
from app.errors import PayloadTooLarge

T = TypeVar("T")

BYTES_AN_IMAGE = 512 * 2**10  # all outputs of a model of 1000 classes take a third of this
_IMAGES = 32  # whose bytes one image may take: the outputs of a model of 22 000 classes take a fifth of them
_THREAD_BYTES = 256 * 2**10  # larger answers are built in a thread
_CLASS_BYTES = 120  # of one of the k best classes, with its label
_NUMBER_BYTES = 16  # of a number of a whole row


def check_size(classifier: Classifier, want: Want, images: int, most_images: int) -> int:
    """About how many bytes the answer has; all its images share what that many, or 32, may take.

    Raises PayloadTooLarge.
    """
    classes = len(classifier.model.labels)
    size = images * (
        _CLASS_BYTES * min(want.k, classes)
        + _NUMBER_BYTES * classes * (want.logits + want.probabilities)
        + _NUMBER_BYTES * classifier.engine.dim * want.features
    )
    most = BYTES_AN_IMAGE * max(most_images, _IMAGES)
    if size > most:
        raise PayloadTooLarge(
            f"the answer would have about {size} bytes; at most {most}: ask for fewer images, classes or outputs"
        )
    return size


async def build(request: Request, make: Callable[[], T]) -> T:
    """What ``make`` returns, called on a thread where the answer to this request is large. Raises what it raises."""
    if Exchange.of(request.scope).answer_bytes > _THREAD_BYTES:
        return await asyncio.to_thread(make)
    return make()
